"""Conversations as prompts: written with the chat template of the model, and shortened to fit its context."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from gpt2tg.checkpoint.chat_template import ChatTemplate, Message, TemplateRefusal, chat_template_of
from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.file_names import CHAT_TEMPLATE
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.errors import UserError


class Chat:
    """Turns conversations with one model into prompts."""

    def __init__(self, checkpoint: Checkpoint | None, tokenizer: TextTokenizer, end_ids: Sequence[int]) -> None:
        self._checkpoint, self._tokenizer = checkpoint, tokenizer
        self._ends = [tokenizer.special[number] for number in end_ids if number in tokenizer.special]

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template of the model.

        Raises:
            UserError: it has none.
        """
        checkpoint = self._checkpoint
        name = "this model" if checkpoint is None else checkpoint.name
        found = None if checkpoint is None else chat_template_of(checkpoint.directory, name, self._tokenizer)
        if found is None:
            raise UserError(
                f"{name} has no chat template: fine-tune it on conversations, such as a .jsonl with messages, or put "
                f"a {CHAT_TEMPLATE} into its directory"
            )
        return found

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the text that the model continues with its answer to the last message.

        Raises:
            UserError: the model has no chat template, or it refuses the messages.
        """
        try:
            return self.template.prompt(messages)
        except TemplateRefusal as error:
            raise UserError(str(error)) from None

    @cached_property
    def stop(self) -> tuple[str, ...]:
        """Stop strings at which an answer ends; none if it ends with an end-of-text token of the model anyway."""
        end = self.template.answer_end()
        return () if end is None or end.startswith(tuple(self._ends)) else (end,)

    def fitting(self, messages: Sequence[Message], most_tokens: int) -> Sequence[Message]:
        """Return the messages without the oldest turns, so that their prompt has at most so many tokens.

        A turn is a question with all that follows it up to the next one. System messages before the first question
        and the last question always stay.
        """
        questions = [number for number, message in enumerate(messages) if message["role"] == "user"]
        kept = messages
        for begin in questions[1:]:
            if len(self._tokenizer.encode_prompt(self.prompt(kept))) <= most_tokens:
                break
            kept = [*messages[: questions[0]], *messages[begin:]]
        return kept
