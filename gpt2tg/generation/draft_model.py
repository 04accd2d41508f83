"""The draft model: a smaller GPT-2 that guesses what the model will write (speculative decoding)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.decoding.pace import Costs, Pace
from gpt2tg.engine.context import Context
from gpt2tg.engine.contexts import has_reusable_context, new_context
from gpt2tg.engine.model import GPT2
from gpt2tg.errors import UserError
from gpt2tg.options import Precision

# Bits that the draft's weights take cost time, and its guesses are verified whatever its precision.
DRAFT_PRECISION: Precision = "int8"

# The flag that its name comes from.
OPTION = "draft_model"

# Bytes of a weight by precision.
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


class DraftModel:
    """A model that drafts for another one, and what is known about its guesses."""

    def __init__(self, model: GPT2, verifier: GPT2) -> None:
        """
        Args:
            verifier: the model that verifies its guesses.
        """
        self.model = model
        self._share = _share(model, verifier)
        self.pace = Pace(Costs(self._share))
        """How far it guesses, learned from all texts so far."""
        self._spare: Context | None = None

    def pace_in(self, rows: Context) -> Pace:
        """Return the pace of the next texts, which these rows will hold.

        If the rows are not exact, a text may depend on what is guessed. Then guesses must not depend on the time that
        anything takes, nor on earlier texts.
        """
        return self.pace if rows.is_exact else Pace(Costs(self._share, is_measured=False))

    @contextmanager
    def lend(self, texts: int, capacity: int) -> Iterator[Context]:
        """Lend a KV cache of the draft. That of a single text is kept for the next one."""
        positions = self.model.shape.n_positions
        if texts > 1 or not has_reusable_context(self.model):
            yield new_context(self.model, min(capacity, positions))
            return
        context, self._spare = self._spare, None
        context = new_context(self.model, positions) if context is None else context
        try:
            yield context
        finally:
            self._spare = context


def _share(draft: GPT2, model: GPT2) -> float:
    """Estimate what a decode step of the draft costs, as a share of the model's: as much as it reads.

    On a CUDA GPU, launching operations sets the pace: a layer of a small model takes about as long as a large one.
    """
    read = _bytes_read(draft) / _bytes_read(model)
    return max(read, draft.shape.n_layer / model.shape.n_layer) if model.device.type == "cuda" else read


def _bytes_read(model: GPT2) -> int:
    """Return about how many bytes of weights a decode step reads."""
    return BYTES[model.precision] * sum(prod(size) for _, size in model.shape.tensors())


def check_draft(draft: Checkpoint, checkpoint: Checkpoint) -> None:
    """Refuse a draft model whose tokens are not those of the model.

    Raises:
        UserError: names the draft model.
    """
    (size, tokens), (draft_size, draft_tokens) = _vocabulary(checkpoint), _vocabulary(draft)
    if (size, tokens) != (draft_size, draft_tokens):
        sizes = f" ({draft_size:,} and {size:,} ids)" if size != draft_size else ""
        raise UserError(
            f"{draft.name} cannot draft for {checkpoint.name}, since their tokens differ{sizes}: "
            "give a model with the same tokenizer",
            OPTION,
        )


def _vocabulary(checkpoint: Checkpoint) -> tuple[int, dict[str, int]]:
    """Return the number of ids of a model, and the id of each of its tokens."""
    shape = checkpoint.shape
    tokenizer = load_tokenizer(checkpoint.tokenizer_directory, shape.vocab_size, shape.end_ids)
    return shape.vocab_size, tokenizer.raw.get_vocab(with_added_tokens=True)


def load_draft(draft: Checkpoint, model: GPT2) -> DraftModel:
    """Load a draft model that was checked before, on the device of the model for which it drafts.

    Raises:
        UserError: its files are broken.
    """
    precision = DRAFT_PRECISION if model.device.type == "cpu" else "auto"
    return DraftModel(GPT2(stream_weights(draft), draft.shape, model.device, precision), model)
