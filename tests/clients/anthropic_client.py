"""Anthropic's own client, unmodified, against a running server with the haiku model.

Called by run.sh with the server's address and its key; see docs/server.md.
"""

import json
import sys
import typing
import urllib.request

import anthropic
from anthropic import types
from anthropic.types import message_count_tokens_params, message_create_params

BASE, KEY = sys.argv[1], sys.argv[2]
MESSAGES = [{"role": "user", "content": "Write a haiku about the sea with the word forty-two"}]
SETTINGS = dict(model="haiku", max_tokens=200, messages=MESSAGES, extra_body={"seed": 1, "temperature": 0.7})
SAIL = {
    "name": "sail",
    "description": "Go somewhere",
    "input_schema": {"type": "object", "properties": {"days": {"enum": [1, 2]}}, "required": ["days"],
                     "additionalProperties": False},
}
client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)


def ask(**more):
    return client.messages.create(**{**SETTINGS, **more})


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def every_documented_field_is_known():
    """The client's types are Anthropic's documentation; the server's say what becomes of each field."""
    request = urllib.request.Request(f"{BASE}/openapi.json", headers={"x-api-key": KEY})
    document = json.load(urllib.request.urlopen(request))
    objects = {
        "MessagesRequest": [
            message_create_params.MessageCreateParamsBase,
            message_count_tokens_params.MessageCountTokensParams,
        ],
        "InputMessage": typing.get_args(types.MessageParam),
        "InputBlock": [
            types.TextBlockParam,
            types.ThinkingBlockParam,
            types.RedactedThinkingBlockParam,
            types.ToolUseBlockParam,
            types.ToolResultBlockParam,
            types.ImageBlockParam,
            types.DocumentBlockParam,
            types.TextBlock,
            types.ThinkingBlock,
            types.ToolUseBlock,
        ],
        "MessagesTool": [types.ToolParam],
        "MessagesToolChoice": [types.ToolChoiceAnyParam, types.ToolChoiceToolParam, types.ToolChoiceNoneParam],
        "ThinkingOptions": [types.ThinkingConfigEnabledParam, types.ThinkingConfigAdaptiveParam],
        "OutputConfig": [types.OutputConfigParam],
        "OutputFormat": [types.JSONOutputFormatParam],
        "Metadata": [types.MetadataParam],
    }
    for name, params in objects.items():
        known = set(document["components"]["schemas"][name]["properties"])
        for type_ in params:
            documented = set(getattr(type_, "model_fields", None) or typing.get_type_hints(type_))
            assert documented <= known, (name, documented - known)


def plain_and_streamed():
    whole = ask()
    assert "forty-two" in text_of(whole) and whole.stop_reason == "end_turn", whole
    with client.messages.stream(**SETTINGS) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert "".join(pieces) == text_of(streamed) == text_of(whole)
    assert streamed.stop_reason == "end_turn" and streamed.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(model="haiku", messages=MESSAGES).input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def stops():
    cut = ask(stop_sequences=["\n", "never"])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", "\n") and "\n" not in text_of(cut), cut
    assert ask(max_tokens=3).stop_reason == "max_tokens"


def tools():
    forced = dict(tools=[SAIL], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    called = ask(**forced)
    (call,) = called.content
    assert called.stop_reason == "tool_use" and call.name == "sail" and call.input["days"] in (1, 2), called
    with client.messages.stream(**SETTINGS, **forced) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.input == call.input
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "a gale"}]}
    turns = [*MESSAGES, {"role": "assistant", "content": called.content}, result]
    assert ask(messages=turns, tools=[SAIL], max_tokens=3).usage.output_tokens > 0


def forms_and_fields_that_change_nothing():
    schema = {"type": "object", "properties": {"at_sea": {"type": "boolean"}}, "required": ["at_sea"], "additionalProperties": False}
    formed = ask(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert isinstance(json.loads(text_of(formed))["at_sea"], bool)
    same = ask(metadata={"user_id": "ann"}, service_tier="auto", thinking={"type": "adaptive"}, system=anthropic.NOT_GIVEN)
    assert text_of(same) == text_of(ask())


def errors():
    for error, more in [
        (anthropic.BadRequestError, {"tool_choice": {"type": "any"}}),
        (anthropic.BadRequestError, {"messages": []}),
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "the sea " * 600}]}),
        (anthropic.NotFoundError, {"model": "claude"}),
    ]:
        try:
            ask(**more)
        except error as found:
            assert found.body["type"] == "error" and found.body["error"]["message"], found.body
        else:
            raise AssertionError(f"{error.__name__} was expected")
    try:
        anthropic.Anthropic(base_url=BASE, api_key="wrong", max_retries=0).messages.create(**SETTINGS)
    except anthropic.AuthenticationError:
        pass
    else:
        raise AssertionError("a wrong key was let in")


for test in (
    every_documented_field_is_known,
    plain_and_streamed,
    stops,
    tools,
    forms_and_fields_that_change_nothing,
    errors,
):
    test()
    print("ok", test.__name__)
