"""The same server through OpenAI's own package: model `pit` answers with an improved response.

    pip install openai
    python examples/openai_client.py [URL]          (PIT_API_KEY, where the server asks for a key)
"""

import os
import sys

from openai import OpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("PIT_API_KEY", "none"))

# The policy drafts, the improver improves, the gap reward decides.
answer = client.chat.completions.create(
    model="pit",
    messages=[{"role": "user", "content": "What does the lamp cost?"}],
    extra_body={"pit": {"max_iterations": 3, "candidates": 2}},
)
print(answer.choices[0].message.content)

# A conversation that ends with the assistant: that message is the reference, and is improved.
answer = client.chat.completions.create(
    model="pit",
    messages=[
        {"role": "user", "content": "What does the lamp cost?"},
        {"role": "assistant", "content": "It costs 24 euros, I think."},
    ],
)
print(answer.choices[0].message.content)

# Streams are ordinary chunks, from the moment at which the best response is chosen.
for chunk in client.chat.completions.create(
    model="pit", messages=[{"role": "user", "content": "What color is it?"}], stream=True
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
