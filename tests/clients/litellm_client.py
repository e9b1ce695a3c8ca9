"""litellm, which turns what it is asked into OpenAI's interface, against a running server with the haiku model.

Called by run.sh with the server's address and its key; see docs/server.md.
"""

import asyncio
import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # It would fetch a list of prices.

import litellm  # noqa: E402

BASE, KEY = sys.argv[1], sys.argv[2]
MESSAGES = [{"role": "user", "content": "Write a haiku about the sea with the word forty-two"}]
SERVER = dict(api_base=f"{BASE}/v1", api_key=KEY, num_retries=0)
TOOL = {
    "type": "function",
    "function": {
        "name": "sail",
        "parameters": {"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"],
                       "additionalProperties": False},
    },
}


def ask(model="openai/haiku", **more):
    return litellm.completion(model=model, messages=MESSAGES, seed=1, temperature=0.7, **SERVER, **more)


def plain_and_streamed():
    whole = ask()
    text = whole.choices[0].message.content
    assert "forty-two" in text and whole.usage.total_tokens > 0, whole
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True) if chunk.choices]
    assert "".join(pieces) == text
    usages = [chunk for chunk in ask(stream=True, stream_options={"include_usage": True}) if getattr(chunk, "usage", None)]
    assert usages[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert ask(model="hosted_vllm/haiku").choices[0].message.content == text
    assert asyncio.run(litellm.acompletion(model="openai/haiku", messages=MESSAGES, seed=1, temperature=0.7, **SERVER))


def fields_that_change_nothing():
    text = ask().choices[0].message.content
    more = dict(user="ann", logit_bias={}, n=1, parallel_tool_calls=None, store=False, metadata={"a": "b"}, service_tier="auto")
    assert ask(**more).choices[0].message.content == text
    allowed = dict(reasoning_effort="low", drop_params=True, allowed_openai_params=["reasoning_effort"])
    assert ask(**allowed).choices[0].message.content == text


def history_and_tools():
    called = ask(tools=[TOOL], tool_choice="required", parallel_tool_calls=False).choices[0]
    (call,) = called.message.tool_calls
    assert called.finish_reason == "tool_calls" and json.loads(call.function.arguments)["days"] in (1, 2), called
    answer = {"role": "tool", "tool_call_id": call.id, "name": "sail", "content": "a gale"}
    for turn in (called.message, called.message.model_dump()):
        again = litellm.completion(
            model="openai/haiku", messages=[*MESSAGES, turn, answer], tools=[TOOL], max_tokens=3, **SERVER
        )
        assert again.usage.completion_tokens > 0


def errors():
    try:
        litellm.completion(model="openai/haiku", messages=[{"role": "user", "content": "the sea " * 600}], **SERVER)
    except litellm.ContextWindowExceededError:
        pass
    else:
        raise AssertionError("a prompt that is too long was expected to be refused")


for test in (plain_and_streamed, fields_that_change_nothing, history_and_tools, errors):
    test()
    print("ok", test.__name__)
