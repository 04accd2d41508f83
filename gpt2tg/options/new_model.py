"""The options of a model that is trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2tg.options.fields import Options, option


@dataclass(frozen=True)
class NewModelOptions(Options):
    """A new tokenizer and a new model, or new tokens for an existing one."""

    add_tokens: tuple[str, ...] = option(
        (),
        "add tokens to the vocabulary, such as <|user|>; the embedding grows by a row for each",
        group="data",
        metavar="TOKEN",
        shown_default="none",
        is_text=True,
        accepts_string=True,
    )
    from_scratch: bool = option(
        False,
        "train a new tokenizer and a new model instead of fine-tuning one",
        group="from scratch",
        is_common=True,
    )
    vocab_size: int = option(4096, "vocabulary size of the new tokenizer", group="from scratch", low=257)
    n_layer: int = option(6, "number of layers of the new model", group="from scratch", low=1)
    n_embd: int = option(256, "embedding size of the new model", group="from scratch", low=1)
    n_head: int = option(4, "number of attention heads of the new model", group="from scratch", low=1)
    n_positions: int = option(512, "context length of the new model, in tokens", group="from scratch", low=2)
