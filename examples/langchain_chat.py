"""LangChain: a chat model whose answers are improved before they come back.

    pip install langchain-openai
    python examples/langchain_chat.py [URL]          (PIT_API_KEY, where the server asks for a key)
"""

import os
import sys

from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
improved = ChatOpenAI(
    model="pit",
    base_url=f"{URL}/v1",
    api_key=os.environ.get("PIT_API_KEY", "none"),
    extra_body={"pit": {"max_iterations": 3}},
)

chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | improved
print(chain.invoke({"question": "What does the lamp cost?"}).content)

# A draft that another model wrote: end the conversation with it.
draft = [("user", "What does the lamp cost?"), ("assistant", "It costs 24 euros, I think.")]
print(improved.invoke(draft).content)

for chunk in improved.stream("What color is it?"):
    print(chunk.content, end="", flush=True)
print()
