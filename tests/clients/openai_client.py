"""OpenAI's own client, unmodified, against a running server with the haiku model.

Called by run.sh with the server's address; see docs/server.md.
"""

import asyncio
import json
import sys

import openai
import pydantic

BASE, KEY = sys.argv[1], sys.argv[2]
PROMPT = "Write a haiku about the sea with the word forty-two"
MESSAGES = [{"role": "user", "content": PROMPT}]
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)


def chat(**more):
    return client.chat.completions.create(model="haiku", messages=MESSAGES, seed=1, temperature=0.7, **more)


def expect(error, call, **attributes):
    try:
        call()
    except error as found:
        for name, value in attributes.items():
            assert getattr(found, name) == value, (name, getattr(found, name), value)
    else:
        raise AssertionError(f"{error.__name__} was expected")


def models():
    assert [model.id for model in client.models.list()] == ["haiku"]
    assert client.models.retrieve("haiku").id == "haiku"
    expect(openai.NotFoundError, lambda: client.models.retrieve("gpt-4"), code="model_not_found")


def plain_and_streamed_chat():
    whole = chat(n=2, logprobs=True, top_logprobs=2)
    texts = [choice.message.content for choice in whole.choices]
    assert all("forty-two" in text and len(text.splitlines()) == 3 for text in texts), texts
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    content = whole.choices[0].logprobs.content
    assert "".join(token.token for token in content) == texts[0]
    assert all(len(token.top_logprobs) == 2 for token in content)

    streamed, reasons, usage = ["", ""], [None, None], None
    for chunk in chat(n=2, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert (streamed, reasons) == (texts, ["stop", "stop"])
    assert usage.total_tokens == whole.usage.total_tokens


def history_is_sent_back():
    answer = chat().choices[0].message
    turns = [*MESSAGES, answer.model_dump(), {"role": "user", "content": "Another one"}]
    again = client.chat.completions.create(model="haiku", messages=turns, max_completion_tokens=5)
    assert again.usage.completion_tokens <= 5


def stops():
    cut = chat(stop=["\n"]).choices[0]
    assert cut.finish_reason == "stop" and "\n" not in cut.message.content
    assert chat(max_tokens=3).choices[0].finish_reason == "length"


def completions():
    whole = client.completions.create(
        model="haiku", prompt=["a sail, then", "the lighthouse"], n=2, seed=3, logprobs=2, max_tokens=8
    )
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert len(whole.choices[0].logprobs.tokens) == len(whole.choices[0].logprobs.top_logprobs)
    chunks = client.completions.create(model="haiku", prompt="a sail, then", seed=3, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


class Answer(pydantic.BaseModel):
    word: str = pydantic.Field(max_length=12)
    lines: int = pydantic.Field(ge=0, le=9)
    at_sea: bool


def formats():
    parsed = client.chat.completions.parse(model="haiku", messages=MESSAGES, response_format=Answer, seed=1)
    assert isinstance(parsed.choices[0].message.parsed, Answer), parsed
    free = chat(response_format={"type": "json_object"}, max_tokens=300).choices[0]
    assert free.message.content.startswith("{")
    if free.finish_reason == "stop":
        assert isinstance(json.loads(free.message.content), dict)


def tools():
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    # The haiku model's template knows no tools; that they reach a template that does is tested in tests/server.
    assert chat(tools=[weather], max_tokens=3).usage.prompt_tokens > 0


def errors():
    expect(openai.BadRequestError, lambda: chat(n=1000), param="n")
    expect(openai.BadRequestError, lambda: chat(extra_body={"foo": 1}), param="foo")
    expect(openai.BadRequestError, lambda: chat(logit_bias={"1": 1}), param="logit_bias")
    wrong = openai.OpenAI(base_url=f"{BASE}/v1", api_key="wrong", max_retries=0)
    expect(openai.AuthenticationError, wrong.models.list, code="invalid_api_key")


async def many():
    several = openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0)

    async def one(seed):
        stream = await several.chat.completions.create(
            model="haiku", messages=MESSAGES, seed=seed, temperature=0.7, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    together = await asyncio.gather(*map(one, range(64)))
    for seed in (0, 17, 63):
        assert await one(seed) == together[seed]


def many_at_once():
    asyncio.run(many())


def leaving_midway():
    with chat(stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
    assert chat(max_tokens=1).choices


for test in (
    models,
    plain_and_streamed_chat,
    history_is_sent_back,
    stops,
    completions,
    formats,
    tools,
    errors,
    many_at_once,
    leaving_midway,
):
    test()
    print("ok", test.__name__)
