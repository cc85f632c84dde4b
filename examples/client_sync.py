"""Improve an answer and watch it happen, with the typed client.

    python examples/client_sync.py [URL]          (PIT_API_KEY, where the server asks for a key)
"""

import os
import sys

from app.client import Client, IterationAccepted, IterationRejected, OutputDelta, RateLimited, RunCompleted

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
QUESTION = "What does the lamp cost, and what color is it?"
DRAFT = "It costs 24 euros, I think."

with Client(URL, os.environ.get("PIT_API_KEY")) as client:
    try:
        for event in client.stream(QUESTION, DRAFT, max_iterations=3, seed=1):
            match event:
                case OutputDelta(text=text):
                    print(text, end="", flush=True)
                case IterationAccepted(iteration=one) | IterationRejected(iteration=one):
                    verdict = "accepted" if one.accepted else "rejected"
                    print(f"\n-- {verdict}, better with probability {one.win_probability}")
                case RunCompleted(improvement=answer):
                    print(f"== {answer.response}\n(stopped by {answer.stop_reason})")
    except RateLimited as error:
        sys.exit(f"{error.message} Come again in {error.retry_after} s.")

    score = client.score(QUESTION, answer.response, DRAFT)
    print(f"better than the draft with probability {score.win_probability:.2f}")
    if answer.stored and answer.improved:  # what you prefer trains the next improver
        client.feedback("comparison", run=answer.id, preferred="response", other="reference")
