"""pydantic-ai, against a running server with the haiku model.

Called by run.sh with the server's address and its key; see docs/server.md.
"""

import asyncio
import sys
from typing import Literal

import pydantic
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

BASE, KEY = sys.argv[1], sys.argv[2]
PROMPT = "Write a haiku about the sea with the word forty-two"
model = OpenAIChatModel("haiku", provider=OpenAIProvider(base_url=f"{BASE}/v1", api_key=KEY))
settings = {"seed": 1, "temperature": 0.7, "max_tokens": 120}


class Sail(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    days: Literal[1, 2]


def plain_and_streamed():
    agent = Agent(model, model_settings=settings)
    whole = agent.run_sync(PROMPT)
    assert "forty-two" in whole.output and whole.usage.output_tokens > 0, whole
    again = agent.run_sync("Another", message_history=whole.all_messages())
    assert again.output

    async def streamed():
        async with agent.run_stream(PROMPT) as stream:
            return await stream.get_output()

    assert asyncio.run(streamed()) == whole.output


def structured():
    for output in (ToolOutput(Sail, strict=True), NativeOutput(Sail, strict=True)):
        found = Agent(model, output_type=output, model_settings=settings).run_sync("Go").output
        assert isinstance(found, Sail), found


for test in (plain_and_streamed, structured):
    test()
    print("ok", test.__name__)
