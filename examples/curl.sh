#!/usr/bin/env bash
# The API by hand: improve, stream, score, feedback, the run again.   examples/curl.sh [URL]
set -euo pipefail
url=${1:-http://127.0.0.1:8000}
ask() {
  curl -sS --fail-with-body -H 'content-type: application/json' -H "authorization: Bearer ${PIT_API_KEY:-none}" "$@"
}

answer=$(ask "$url/v1/improve" -d '{
  "messages": [{"role": "user", "content": "What does the lamp cost?"}],
  "reference": "It costs 24 euros, I think.",
  "max_iterations": 2, "seed": 1
}')
echo "$answer"
run=$(grep -o 'imp_[0-9a-f]*' <<< "$answer" | head -n 1)

# Events while they happen.
ask -N "$url/v1/improve" -d '{
  "messages": [{"role": "user", "content": "What color is it?"}], "stream": true
}'

# Which of several answers is better than "Red."?
ask "$url/v1/score" -d '{
  "messages": [{"role": "user", "content": "What color is it?"}],
  "candidate": ["The lamp is red.", "Blue."], "baseline": "Red."
}'

# The run again, and its events from the third on.
ask "$url/v1/improve/$run"
ask "$url/v1/improve/$run/events" -H 'last-event-id: 2'

# What you preferred; it becomes training data (docs/feedback.md).
ask "$url/v1/feedback" -d "{\"type\": \"rating\", \"run\": \"$run\", \"rating\": 4}"
