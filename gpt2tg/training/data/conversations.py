"""The chat template that turns the conversations of a table into text, chosen when the first one is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from gpt2tg.checkpoint.base_tokenizer import END_OF_TEXT
from gpt2tg.checkpoint.chat_template import (
    PLAIN,
    PLAIN_NAME,
    ChatTemplate,
    Message,
    Piece,
    chat_template_of,
    read_template,
    with_tokens,
)
from gpt2tg.checkpoint.checkpoint import Checkpoint, resolve_checkpoint
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer

# The value of --chat_template that stands for our own.
PLAIN_CHOICE = "plain"

# The special tokens of a tokenizer that is trained from scratch.
NEW_TOKENS = tuple(dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT).items())


class TemplateChoice:
    """The chat template of a run, which loads nothing before a conversation is read. It can be pickled."""

    def __init__(self, chosen: str | None = None, model: Checkpoint | str | None = None) -> None:
        """
        Args:
            chosen: the value of --chat_template: a file, or `plain`. None takes the model's own, or the plain one if
                it has none.
            model: the model, or its name; None if it is trained from scratch.
        """
        self._chosen, self._model = chosen, model

    @cached_property
    def template(self) -> ChatTemplate:
        """The template.

        Raises:
            UserError: there is no such file or model, or the model's tokenizer is broken.
        """
        model = resolve_checkpoint(self._model) if isinstance(self._model, str) else self._model
        source, name = PLAIN, PLAIN_NAME
        if self._chosen not in (None, PLAIN_CHOICE):
            path = Path(self._chosen or "").expanduser()
            source, name = read_template(path, "chat_template"), f"the chat template {path}"
        if model is None:
            return ChatTemplate(source, name, NEW_TOKENS)
        tokenizer = load_tokenizer(model.directory, model.shape.vocab_size, model.shape.end_ids)
        own = chat_template_of(model.directory, model.name, tokenizer) if self._chosen is None else None
        return own or with_tokens(source, name, tokenizer)

    @property
    def used(self) -> ChatTemplate | None:
        """The template if any conversation was read, else None."""
        return self.__dict__.get("template")

    @property
    def key(self) -> tuple[str, ...]:
        """What the text of conversations depends on besides them; empty if none was read."""
        return () if self.used is None else (self.used.source, repr(self.used.tokens), self.used.prefix)

    def template_name(self) -> str:
        """Return the name of the template, for a notice."""
        return self.template.name

    def pieces(self, messages: Sequence[Message]) -> Sequence[Piece]:
        """Return the text of a conversation in pieces, each with whether it carries loss.

        Raises:
            TemplateRefusal: the template refuses the messages.
        """
        return self.template.pieces(messages)
