"""langchain-openai, against a running server with the haiku model.

Called by run.sh with the server's address and its key; see docs/server.md.
"""

import sys
from typing import Literal

import pydantic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

BASE, KEY = sys.argv[1], sys.argv[2]
PROMPT = "Write a haiku about the sea with the word forty-two"
SERVER = dict(model="haiku", base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)
chat = ChatOpenAI(seed=1, temperature=0.7, **SERVER)


class Sail(pydantic.BaseModel):
    """Sail for some days."""

    model_config = pydantic.ConfigDict(extra="forbid")
    days: Literal[1, 2]


@tool
def fish(deep: bool) -> str:
    """Catch a fish."""
    return "a cod"


def plain_and_streamed():
    whole = chat.invoke(PROMPT)
    assert "forty-two" in whole.content and whole.usage_metadata["total_tokens"] > 0, whole
    chunks = list(chat.stream(PROMPT, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0
    assert len(chat.batch([PROMPT] * 3)) == 3
    # Greedy: a random draw may end the text at once.
    assert OpenAI(max_tokens=5, temperature=0, **SERVER).invoke("and the current")


def names_and_parts():
    turns = [
        SystemMessage("Be kind."),
        HumanMessage("Hi", name="ann"),
        AIMessage("Yes?", name="bob"),
        HumanMessage([{"type": "text", "text": PROMPT, "cache_control": {"type": "ephemeral"}}]),
    ]
    assert chat.invoke(turns).content
    settings = dict(reasoning_effort="low", verbosity="low", service_tier="auto", store=False, metadata={}, logit_bias={})
    assert ChatOpenAI(seed=1, max_tokens=5, **settings, **SERVER).invoke(turns).content


def tools():
    forced = chat.bind_tools([Sail, fish], tool_choice="required", parallel_tool_calls=False, strict=True)
    called = forced.invoke("Go", max_tokens=100)
    (call,) = called.tool_calls
    assert call["name"] in ("Sail", "fish"), called
    again = chat.bind_tools([fish]).invoke(["Go", called, ToolMessage("a gale", tool_call_id=call["id"])], max_tokens=3)
    assert again.usage_metadata["output_tokens"] > 0
    streamed = None
    for chunk in forced.stream("Go", max_tokens=100):
        streamed = chunk if streamed is None else streamed + chunk
    assert [call["args"] for call in streamed.tool_calls] == [call["args"]]


def structured():
    for method in ("json_schema", "function_calling"):
        found = chat.with_structured_output(Sail, method=method).invoke("Go")
        assert isinstance(found, Sail), (method, found)


for test in (plain_and_streamed, names_and_parts, tools, structured):
    test()
    print("ok", test.__name__)
