"""Writes golden.json: templates with what Python's jinja2 makes of them, set up as transformers does for chat templates
(`utils/chat_template_utils.py`: an immutable sandbox, trimmed blocks, loop controls, its own `tojson`, the tag `generation`).

    pip install jinja2==3.1.6
    python tests/data/jinja/make_jinja_golden.py

A case without `expected` is one that Python refuses.
"""

import copy
import json
import pathlib

import jinja2.ext
from cases import CONTEXT, EXPRESSIONS, STATEMENTS
from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks text for training and renders its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise TemplateError(message)


def environment():
    extensions = [Generation, jinja2.ext.loopcontrols]
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def case(env, source):
    found = {"template": source}
    try:
        found["expected"] = env.from_string(source).render(copy.deepcopy(CONTEXT))  # The filter `indent` changes a list.
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def main():
    env = environment()
    sources = ["{{ " + expression + " }}" for expression in EXPRESSIONS] + STATEMENTS
    assert len(set(sources)) == len(sources), [s for s in sources if sources.count(s) > 1]
    golden = {"context": CONTEXT, "cases": [case(env, source) for source in sources]}
    path = pathlib.Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
    refused = sum("error" in case for case in golden["cases"])
    print(f"{len(sources)} cases, {refused} of them refused")


if __name__ == "__main__":
    main()
