"""OpenAI's own client, unmodified, against a running server with the haiku model.

Called by run.sh with the server's address; see docs/server.md.
"""

import asyncio
import json
import sys
import typing
import urllib.request

import openai
import pydantic
from openai.types import chat as types
from openai.types import completion_create_params, responses
from openai.types.responses import response_create_params, response_input_item_param

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


def every_documented_field_is_known():
    """The client's types are OpenAI's documentation; the server's say what becomes of each field."""
    request = urllib.request.Request(f"{BASE}/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    document = json.load(urllib.request.urlopen(request))
    objects = {
        "ChatRequest": [types.completion_create_params.CompletionCreateParamsBase],
        "CompletionRequest": [completion_create_params.CompletionCreateParamsBase],
        "StreamOptions": [types.ChatCompletionStreamOptionsParam],
        "ChatMessage": [
            types.ChatCompletionDeveloperMessageParam,
            types.ChatCompletionSystemMessageParam,
            types.ChatCompletionUserMessageParam,
            types.ChatCompletionAssistantMessageParam,
            types.ChatCompletionToolMessageParam,
            types.ChatCompletionMessage,
        ],
        "ContentPart": [
            types.ChatCompletionContentPartTextParam,
            types.ChatCompletionContentPartRefusalParam,
            types.ChatCompletionContentPartImageParam,
            types.ChatCompletionContentPartInputAudioParam,
        ],
        "GivenCall": [types.ChatCompletionMessageFunctionToolCallParam],
        "Tool": [types.ChatCompletionFunctionToolParam],
        "Function": [openai.types.shared_params.FunctionDefinition],
        "JsonSchema": [openai.types.shared_params.response_format_json_schema.JSONSchema],
        "ResponsesRequest": [
            response_create_params.ResponseCreateParamsBase,
            response_create_params.ResponseCreateParamsStreaming,
        ],
        "InputItem": [
            responses.EasyInputMessageParam,
            response_input_item_param.Message,
            response_input_item_param.FunctionCallOutput,
            responses.ResponseOutputMessage,
            responses.ResponseFunctionToolCall,
            responses.ResponseFunctionToolCallParam,
            responses.ResponseReasoningItem,
        ],
        "InputPart": [
            responses.ResponseInputTextParam,
            responses.ResponseOutputText,
            responses.ResponseOutputRefusalParam,
            responses.ResponseInputImageParam,
            responses.ResponseInputFileParam,
        ],
        "Reasoning": [openai.types.shared_params.Reasoning],
        "TextOptions": [responses.ResponseTextConfigParam],
        "TextFormat": [responses.ResponseFormatTextJSONSchemaConfigParam],
        "FlatTool": [responses.FunctionToolParam],
        "FlatChoice": [responses.ToolChoiceFunctionParam],
    }
    for name, params in objects.items():
        known = set(document["components"]["schemas"][name]["properties"])
        for type_ in params:
            documented = set(getattr(type_, "model_fields", None) or typing.get_type_hints(type_))
            assert documented <= known, (name, documented - known)


def fields_that_ask_for_nothing():
    text = chat().choices[0].message.content
    nothing = dict(logit_bias={}, metadata={}, store=False, user="ann", n=1, tools=[], modalities=["text"], top_p=1)
    ignored = dict(reasoning_effort="low", verbosity="low", service_tier="auto", prompt_cache_key="a", safety_identifier="a")
    assert chat(**nothing, **ignored).choices[0].message.content == text
    named = [{**MESSAGES[0], "name": "ann"}]
    assert client.chat.completions.create(model="haiku", messages=named, max_tokens=3).choices


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
    echoed = client.completions.create(model="haiku", prompt="a sail, then", seed=3, max_tokens=8, echo=True, logprobs=1).choices[0]
    assert echoed.text == "a sail, then" + whole.choices[0].text
    assert echoed.logprobs.token_logprobs[0] is None and echoed.logprobs.text_offset[0] == 0
    best = client.completions.create(model="haiku", prompt="a sail, then", seed=3, max_tokens=8, n=2, best_of=4)
    assert len(best.choices) == 2
    suffix = lambda: client.completions.create(model="haiku", prompt="a", suffix="b")
    expect(openai.BadRequestError, suffix, param="suffix")


def samplers():
    """llama.cpp's fields, a grammar and biases."""
    further = dict(dry_multiplier=0.8, xtc_probability=0.5, typical_p=0.9, samplers=["top_k", "xtc", "temperature"])
    assert chat(extra_body=further).choices[0].message.content
    assert chat(extra_body=dict(grammar='root ::= "sail" | "gull"')).choices[0].message.content in ["sail", "gull"]
    # Twice the same token, which the model would not say.
    forced = chat(logit_bias={"300": 100}, max_tokens=2, logprobs=True).choices[0].logprobs.content
    assert forced[0].bytes == forced[1].bytes and forced[0].logprob < -1, forced


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


class Sail(pydantic.BaseModel):
    days: int = pydantic.Field(ge=0, le=9)


def tools():
    sail, fish = openai.pydantic_function_tool(Sail), {"type": "function", "function": {"name": "fish"}}
    forced = dict(tools=[sail, fish], tool_choice="required", parallel_tool_calls=False)
    answers = chat(n=4, **forced)
    for choice in answers.choices:
        assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
        (call,) = choice.message.tool_calls
        given = json.loads(call.function.arguments)
        assert Sail(**given) if call.function.name == "Sail" else (call.function.name, given) == ("fish", {}), call

    names, arguments, reasons = [""] * 4, [""] * 4, [None] * 4
    for chunk in chat(n=4, stream=True, **forced):
        for choice in chunk.choices:
            assert not choice.delta.content
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            for call in choice.delta.tool_calls or []:
                # The first piece has id and name, the others the arguments.
                assert call.index == 0 and (call.id is None) == bool(names[choice.index])
                names[choice.index] += call.function.name or ""
                arguments[choice.index] += call.function.arguments
    whole = [choice.message.tool_calls[0].function for choice in answers.choices]
    assert names == [call.name for call in whole] and arguments == [call.arguments for call in whole]
    assert reasons == ["tool_calls"] * 4

    # The client's own ways: it adds up a stream, and reads arguments into a class.
    named = {"type": "function", "function": {"name": "Sail"}}
    settings = dict(model="haiku", messages=MESSAGES, tools=[sail], tool_choice=named, seed=1, max_tokens=100)
    with client.chat.completions.stream(**settings, parallel_tool_calls=False) as stream:
        streamed = stream.get_final_completion().choices[0].message
    parsed = client.chat.completions.parse(**settings, parallel_tool_calls=False).choices[0].message
    for message in (streamed, parsed):
        (call,) = message.tool_calls
        assert message.content is None and isinstance(call.function.parsed_arguments, Sail), message

    # What was called and what came of it go back.
    called = answers.choices[0].message
    turns = [*MESSAGES, called, {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "a gale"}]
    again = client.chat.completions.create(model="haiku", messages=turns, tools=[sail], max_tokens=3, seed=1)
    assert again.usage.completion_tokens > 0

    # A model that does not call says what it says, also where its calls would be constrained.
    free, strict = chat(tools=[fish]).choices[0], chat(tools=[sail]).choices[0]
    for choice in (free, strict):
        assert choice.finish_reason == "stop" and choice.message.content and not choice.message.tool_calls, choice
    expect(openai.BadRequestError, lambda: chat(tool_choice="required"), param="tool_choice")
    walk = {"type": "function", "function": {"name": "walk"}}
    expect(openai.BadRequestError, lambda: chat(tools=[sail], tool_choice=walk), param="tool_choice.function.name")


def answers_of_responses():
    settings = dict(model="haiku", input=PROMPT, temperature=0.7, extra_body={"seed": 1})
    whole = client.responses.create(**settings)
    text = whole.output_text
    assert whole.status == "completed" and "forty-two" in text, whole
    with client.responses.stream(**settings) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        streamed = stream.get_final_response()
    assert "".join(pieces) == streamed.output_text == text and streamed.usage == whole.usage or streamed.usage.total_tokens
    again = client.responses.create(model="haiku", input="Another one", previous_response_id=whole.id, max_output_tokens=5)
    assert again.status == "incomplete" and again.usage.input_tokens > whole.usage.input_tokens
    assert client.responses.retrieve(whole.id).output_text == text
    client.responses.delete(whole.id)
    expect(openai.NotFoundError, lambda: client.responses.retrieve(whole.id))
    parsed = client.responses.parse(**settings, text_format=Answer)
    assert isinstance(parsed.output_parsed, Answer), parsed

    sail = {"type": "function", "name": "sail", "strict": True, "parameters": Sail.model_json_schema() | {"additionalProperties": False}}
    forced = dict(tools=[sail], tool_choice="required", parallel_tool_calls=False)
    called = client.responses.create(**settings, **forced)
    (call,) = called.output
    assert call.type == "function_call" and Sail(**json.loads(call.arguments)), called
    with client.responses.stream(**settings, **forced) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "a gale"}
    turns = [{"role": "user", "content": PROMPT}, *called.output, result]
    items = client.responses.create(model="haiku", input=turns, tools=[sail], max_output_tokens=3)
    by_id = client.responses.create(model="haiku", input=[result], previous_response_id=called.id, tools=[sail], max_output_tokens=3)
    assert items.usage.input_tokens == by_id.usage.input_tokens


def errors():
    expect(openai.BadRequestError, lambda: chat(n=1000), param="n")
    expect(openai.BadRequestError, lambda: chat(extra_body={"foo": 1}), param="foo")
    expect(openai.BadRequestError, lambda: chat(logit_bias={"1": 1e7}), param="logit_bias")
    long = [{"role": "user", "content": "the sea " * 600}]
    expect(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model="haiku", messages=long),
        code="context_length_exceeded",
        param="messages",
    )
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
    every_documented_field_is_known,
    fields_that_ask_for_nothing,
    plain_and_streamed_chat,
    history_is_sent_back,
    stops,
    completions,
    samplers,
    formats,
    tools,
    answers_of_responses,
    errors,
    many_at_once,
    leaving_midway,
):
    test()
    print("ok", test.__name__)
