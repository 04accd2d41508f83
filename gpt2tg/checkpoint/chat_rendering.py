"""Render the Jinja templates that come with checkpoints, in a sandbox like that of transformers.

Templates come from strangers: they reach no attribute of Python's own, change nothing, and fill no memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Enclose what `{% generation %}` encloses in a template. Unicode reserves these code points for such uses.
ANSWER_BEGINS, ANSWER_ENDS = "\ufdd0", "\ufdd1"

# The longest text that a template may make of messages: this many characters, and some for each of theirs.
MAX_CHARACTERS, MAX_GROWTH = 1 << 20, 16

# Results of `*` and `**` in a template may not be larger.
MAX_PRODUCT = 1 << 20
MAX_EXPONENT = 64


def render(source: str, messages: Sequence[Mapping[str, str]], **values: Any) -> str:
    """Return the text of messages, with marks around what `{% generation %}` encloses.

    Args:
        values: further variables of the template, such as `add_generation_prompt` and `eos_token`.

    Raises:
        jinja2.TemplateError: the template is broken, refuses the messages, or writes too much.
    """
    limit = MAX_CHARACTERS + MAX_GROWTH * sum(map(len, (text for message in messages for text in message.values())))
    parts: list[str] = []
    # The template gets copies, so that it cannot change what the next one reads.
    for part in _compiled(source).generate(messages=[dict(message) for message in messages], **values):
        parts.append(part)
        limit -= len(part)
        if limit < 0:
            raise jinja2.TemplateError("it writes without end")
    return "".join(parts)


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=_now, dict=_dict, namespace=_Namespace)
    return environment.from_string(source)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses products and powers that would fill the memory or take for ever."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (isinstance(right, (int, float)) and abs(right) <= MAX_EXPONENT):
            raise jinja2.TemplateError(f"its exponent {str(right)[:20]} is too large")
        lengths = [len(value) if hasattr(value, "__len__") else value for value in (left, right)]
        is_repeated = any(hasattr(value, "__len__") for value in (left, right))
        if operator == "*" and is_repeated and lengths[0] * lengths[1] > MAX_PRODUCT:
            raise jinja2.TemplateError(f"it repeats a value {str(lengths[1])[:20]} times")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """The block `{% generation %}`, which encloses what the assistant says."""

    tags = {"generation"}  # noqa: RUF012  # as in the class of Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body of the block between the marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (ANSWER_BEGINS, ANSWER_ENDS))
        return [begin, *body, end]


class _Namespace(jinja2.utils.Namespace):
    """A namespace whose attributes do not begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:
        self, rest = args[0], args[1:]
        found = dict(*rest, **values)
        for name in found:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"it sets {name}, a name that begins with an underscore")


def _raise(message: object) -> None:
    """Refuse the messages; templates call this."""
    raise jinja2.TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _dict(*args: Any, **values: Any) -> dict[Any, Any]:
    return dict(*args, **values)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as it is: Jinja's own filter escapes it for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
