"""The chat template of a checkpoint: how it writes a conversation as text, and which parts of it are answers.

A template is Jinja, as in transformers, and stored where transformers looks for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.file_names import CHAT_TEMPLATE, TOKENIZER_CONFIG
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_files import tokenizer_directory
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_json

Message = Mapping[str, str]

# A piece of a conversation, and whether it carries loss in training: only answers do.
Piece = tuple[str, bool]

# The template of models that have none. Each answer ends with the end-of-text token, at which generation stops.
PLAIN = """\
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- message['content'] + '\\n\\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- 'User: ' + message['content'] + '\\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- 'Assistant: ' + message['content'] + eos_token + '\\n' -}}
    {%- else -%}
        {{- raise_exception('unknown role ' + message['role'] + ': use system, user or assistant') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'Assistant:' -}}
{%- endif -%}
"""
PLAIN_NAME = "the plain chat template"

# Contents of messages by which the end of an answer is found.
SOME_QUESTION, SOME_ANSWER, NEXT_QUESTION = "AnyQuestion", "AnyAnswer", "NextQuestion"


class TemplateRefusal(ValueError):
    """A template that is broken, or messages that it refuses."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the special tokens of its tokenizer."""

    source: str
    """Jinja."""
    name: str
    """What messages for the user call it."""
    tokens: tuple[tuple[str, str], ...]
    """The special tokens, such as `eos_token`, by role. Templates may use them."""
    prefix: str = ""
    """The text of the tokens that the tokenizer itself puts before every text. Templates often write them too."""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation, as `apply_chat_template` of transformers does.

        Args:
            add_generation_prompt: end the text with the beginning of an answer.

        Raises:
            TemplateRefusal: the template is broken, or refuses the messages.
        """
        return re.sub("[\ufdd0\ufdd1]", "", self._render(messages, add_generation_prompt))

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the text to continue with an answer, for a tokenizer that adds its prefix."""
        return self.render(messages, add_generation_prompt=True).removeprefix(self.prefix)

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """Return a conversation in pieces for training, up to its last answer and without an end-of-text token there.

        Answers carry loss, and so does what ends them. They are what `{% generation %}` encloses in the template;
        without such marks, what the template writes after the prompt of each answer.

        Raises:
            TemplateRefusal: the template is broken, refuses the messages, or writes earlier turns in another way later.
        """
        text = self._render(messages)
        pieces = _between_marks(text) if "\ufdd0" in text else self._by_prompts(messages, text)
        parts = [part for piece in pieces for part in self._until_end(piece) if part[0]]
        runs = ((learned, list(run)) for learned, run in groupby(parts, key=itemgetter(1)))
        pieces = [("".join(text for text, _ in run), learned) for learned, run in runs]
        if pieces and not pieces[-1][1]:
            pieces.pop()
        if not pieces:
            raise TemplateRefusal(f"{self.name} writes no answer of this conversation: use another template")
        text, is_learned = pieces[0]
        pieces[0] = text.removeprefix(self.prefix), is_learned
        text, is_learned = pieces[-1]
        pieces[-1] = text.removesuffix(self._end) or text, is_learned
        return [piece for piece in pieces if piece[0]]

    def _by_prompts(self, messages: Sequence[Message], text: str) -> list[Piece]:
        pieces, shown = list[Piece](), 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, answered = self._render(messages[:number], True), self._render(messages[: number + 1])
            if not (answered.startswith(prompt) and text.startswith(answered) and len(prompt) >= shown):
                raise TemplateRefusal(
                    f"{self.name} does not show which part of its text is an answer: enclose answers in "
                    "{% generation %} and {% endgeneration %} there, or use another template"
                )
            pieces += [(text[shown : len(prompt)], False), (text[len(prompt) : len(answered)], True)]
            shown = len(answered)
        return pieces

    def _until_end(self, piece: Piece) -> list[Piece]:
        """Return an answer, and separately what follows its end-of-text token, such as a line break."""
        text, is_learned = piece
        if not is_learned or not self._end or self._end not in text:
            return [piece]
        end = text.rindex(self._end) + len(self._end)
        return [(text[:end], True), (text[end:], False)]

    @property
    def _end(self) -> str:
        return dict(self.tokens).get("eos_token", "")

    def answer_end(self) -> str | None:
        """Return the text by which an answer ends in this template; None if nothing shows it."""
        messages = [{"role": "user", "content": SOME_QUESTION}, {"role": "assistant", "content": SOME_ANSWER}]
        try:
            _, found, after = self.render(messages).rpartition(SOME_ANSWER)
            if not found or after.strip():
                return after.strip() if found else None
            text = self.render([*messages, {"role": "user", "content": NEXT_QUESTION}])
            return text.rpartition(SOME_ANSWER)[2].partition(NEXT_QUESTION)[0].rstrip() or None
        except TemplateRefusal:
            return None

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        from gpt2tg.checkpoint.chat_rendering import render  # jinja2 takes a while to load

        values: dict[str, Any] = {"tools": None, "documents": None, **dict(self.tokens)}
        try:
            return render(self.source, messages, add_generation_prompt=add_generation_prompt, **values)
        except Exception as error:  # those of Jinja, and any that an expression raises
            is_broken = type(error).__name__ == "TemplateSyntaxError"
            raise TemplateRefusal(
                f"{self.name} {'is not valid Jinja' if is_broken else 'refuses the messages'}: {one_line(error)}"
            ) from None


def _between_marks(text: str) -> list[Piece]:
    """Return the parts of a text by its marks, which are removed."""
    parts = re.split("([\ufdd0\ufdd1])", text)
    return [(part, number > 0 and parts[number - 1] == "\ufdd0") for number, part in enumerate(parts) if not number % 2]


def stored_template(directory: Path) -> str | None:
    """Return the source of the chat template in a checkpoint, where transformers looks for it; None without one.

    Raises:
        UserError: a file cannot be read, or there is no tokenizer.
    """
    where = tokenizer_directory(directory)
    if (where / CHAT_TEMPLATE).is_file():
        return read_template(where / CHAT_TEMPLATE)
    path = where / TOKENIZER_CONFIG
    found = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(found, list):  # several templates with names
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def read_template(path: Path, option: str | None = None) -> str:
    """Return the source of a template in a file of its own.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", option) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8: give a Jinja template in UTF-8", option) from None


def with_tokens(source: str, name: str, tokenizer: TextTokenizer) -> ChatTemplate:
    """Return a template for the tokenizer of its model."""
    end = tokenizer.raw.id_to_token(tokenizer.end_id) or ""
    prefix = "".join(tokenizer.raw.id_to_token(number) or "" for number in tokenizer.prefix)
    return ChatTemplate(source, name, tuple({"eos_token": end, **tokenizer.roles}.items()), prefix)


def chat_template_of(directory: Path, name: str, tokenizer: TextTokenizer) -> ChatTemplate | None:
    """Return the chat template in a checkpoint; None without one.

    Args:
        name: what the user calls the model.
    """
    source = stored_template(directory)
    if source is None:
        return None
    return with_tokens(source, PLAIN_NAME if source == PLAIN else f"the chat template of {name}", tokenizer)
