#!/usr/bin/env python3
"""What Python's jinja2, set up as transformers does it, makes of conversations in the dialects of Qwen's templates.

    python3 make_golden.py > golden.json
    python3 make_golden.py FOLDER > golden.json     # of all *.jinja there, such as those of published models

Needs jinja2 3.1. For each template and each conversation the golden file has the text, or what the template refused.
"""

import json
import sys
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refused(Exception):
    pass


def refuse(message):
    raise Refused(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    return env


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> & here",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


def call(name, arguments, i=1):
    return {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "Be brief.\n"}
USER = {"role": "user", "content": "Wie wird's in „Łódź“?"}
AGAIN = {"role": "user", "content": "And <b>tomorrow</b>?"}
PLAIN = {"role": "assistant", "content": "Rain."}
THOUGHT = {"role": "assistant", "content": "Rain.", "reasoning_content": "\nIt is autumn.\n"}
INLINE = {"role": "assistant", "content": "<think>\nIt is autumn.\n</think>\n\nRain."}
CALLS = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "I look.",
    "tool_calls": [
        call("weather", {"city": "Łódź", "days": 2, "exact": True, "near": ["a", {"b": None}], "x": 1e-05}),
        call("now", {}, 2),
    ],
}
SAYS_AND_CALLS = {"role": "assistant", "content": "I look.", "tool_calls": [call("now", {})]}
RESULTS = [
    {"role": "tool", "tool_call_id": "call_1", "content": '{"rain": "90 %"}'},
    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
]
PARTS = {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}

CONVERSATIONS = {
    "one question": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, PLAIN, AGAIN],
    "thoughts before a question": [USER, THOUGHT, AGAIN],
    "thoughts in the content": [USER, INLINE, AGAIN],
    "calls and results": [SYSTEM, USER, CALLS, *RESULTS],
    "calls, results, a question": [USER, CALLS, *RESULTS, PLAIN, AGAIN],
    "says and calls": [USER, SAYS_AND_CALLS, RESULTS[1]],
    "parts": [PARTS],
    "late system": [USER, PLAIN, SYSTEM, AGAIN],
    "no user": [SYSTEM],
    "ends with the assistant": [USER, THOUGHT],
    "unknown role": [{"role": "critic", "content": "Hm."}, USER],
}

VARIABLES = [
    {},
    {"tools": TOOLS},
    {"enable_thinking": False},
    {"enable_thinking": True, "tools": TOOLS, "preserve_thinking": True},
    {"reasoning_effort": "low"},
    {"reasoning_effort": "high"},
]


def rendered(template, messages, variables):
    """What comes of it: ["text", …], ["refused", …] or ["failed", …]."""
    given = {"tools": None, "bos_token": "<bos>", "eos_token": "<eos>", "add_generation_prompt": True}
    try:
        return ["text", template.render(messages=messages, **{**given, **variables})]
    except Refused as refused:
        return ["refused", str(refused)]
    except (jinja2.TemplateError, TypeError, AttributeError) as error:
        return ["failed", str(error)]


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        template = environment().from_string(path.read_text())
        for name, messages in CONVERSATIONS.items():
            for i, variables in enumerate(VARIABLES):
                cases.append([path.name, name, i, *rendered(template, messages, variables)])
    print('{"conversations": ' + json.dumps(CONVERSATIONS, ensure_ascii=False) + ",")
    print('"variables": ' + json.dumps(VARIABLES, ensure_ascii=False) + ",")
    print('"cases": [\n' + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]}")


main()
