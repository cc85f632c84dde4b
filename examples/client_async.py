"""Improve many answers side by side, with the typed client for asyncio.

    python examples/client_async.py [URL]          (PIT_API_KEY, where the server asks for a key)
"""

import asyncio
import os
import sys

from app.client import AsyncClient, Improvement

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
DRAFTS = {
    "What does the lamp cost?": "It costs 24 euros, I think.",
    "What color is it?": "Red.",
    "Where is it from?": "Oslo!! My cat sleeps.",
}


async def main() -> None:
    async with AsyncClient(URL, os.environ.get("PIT_API_KEY")) as client:

        async def improved(question: str, draft: str) -> Improvement:
            return await client.improve(question, draft, candidates=4, patience=2)

        answers = await asyncio.gather(*(improved(*pair) for pair in DRAFTS.items()))
        for question, answer in zip(DRAFTS, answers, strict=True):
            print(f"{question}\n  was {answer.reference}\n  is  {answer.response}")


asyncio.run(main())
