"""DSPy: a program whose language model is the server, and a module that improves another module's answer.

    pip install dspy
    python examples/dspy_program.py [URL]          (PIT_API_KEY, where the server asks for a key)
"""

import os
import sys

import dspy

from app.client import Client

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
KEY = os.environ.get("PIT_API_KEY")


class Improved(dspy.Module):
    """The answer of `program`, improved: what dspy.Refine does with a reward function of yours, with the
    trained improver and gap reward instead."""

    def __init__(self, program: dspy.Module) -> None:
        super().__init__()
        self.program, self.client = program, Client(URL, KEY)

    def forward(self, question: str) -> dspy.Prediction:
        draft = self.program(question=question).answer
        run = self.client.improve(question, draft, max_iterations=3)
        return dspy.Prediction(answer=run.response, draft=draft, improved=run.improved)


class Answer(dspy.Module):
    """Asks the policy as it is. (dspy.Predict asks for fields in a form that a small model does not keep.)"""

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=dspy.settings.lm(question)[0])


dspy.configure(lm=dspy.LM("openai/policy", api_base=f"{URL}/v1", api_key=KEY or "none", cache=False))
found = Improved(Answer())(question="What does the lamp cost?")
print(f"was {found.draft}\nis  {found.answer}")
