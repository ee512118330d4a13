"""LangChain: a chain whose questions are answered in either mode, streamed, in a batch, and as typed objects.

    pip install langchain-openai
    python examples/langchain_chain.py

TWOGEAR_URL is where the server is, TWOGEAR_API_KEY the key, if it needs one.
"""

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel, SecretStr


class Person(BaseModel):
    """A person in a text."""

    name: str
    age: int
    city: str


base_url = os.environ.get("TWOGEAR_URL", "http://127.0.0.1:8000") + "/v1"
api_key = os.environ.get("TWOGEAR_API_KEY", "none")
model = OpenAI(base_url=base_url, api_key=api_key).models.list().data[0].id


def chat_model(mode: str) -> ChatOpenAI:
    """LangChain's model of a mode; the mode's alias is all that it takes."""
    return ChatOpenAI(base_url=base_url, api_key=SecretStr(api_key), model=f"{model}:{mode}", max_completion_tokens=400)


sums = ChatPromptTemplate.from_messages([("user", "What is {a} + {b}?")])
for mode in ("standard", "reasoning"):
    chain = sums | chat_model(mode) | StrOutputParser()
    print(mode, chain.batch([{"a": 38, "b": 45}, {"a": 7, "b": 8}]))
for piece in (sums | chat_model("reasoning")).stream({"a": 1, "b": 2}):
    print(piece.text, end="", flush=True)
print()
extract = chat_model("standard").with_structured_output(Person, method="json_schema")
print(extract.invoke("Extract the person as JSON: Paul lives in Lisbon and is 27."))
