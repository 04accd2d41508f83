"""Compute what fits on which GPU, and fill the tables of docs/gpu.md. No GPU is needed: nothing is measured.

    python benchmarks/gpu_memory.py

Memory is the estimate that `--dry_run` prints, for pretended settings; a tenth of each card is left for CUDA itself and
for what the allocator wastes. Speed is the arithmetic of the model against the data sheet of the card.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import chart
import formats
import train

from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.generation.footprint import bytes_per_text
from gpt2tg.options import TrainingOptions
from gpt2tg.training.model.memory_estimate import estimate_memory

PAGE = formats.ROOT / "docs" / "gpu.md"

USABLE = 0.9  # of a card's memory

# Blocks of a step, in one batch or several: as many as GPT-2 is often fine-tuned with.
BLOCKS = 32

# The share of the data sheet that nanoGPT's published 107,000 tokens/s of gpt2 on an A100 are.
REACHED = 0.3


@dataclass(frozen=True)
class Card:
    """A kind of GPU, by its data sheet."""

    name: str
    gigabytes: int
    half: str
    """The flag for 16 bits."""
    flops: float
    """Operations per second in 16 bits with sums in 32."""
    bandwidth: float
    """Bytes per second of its memory."""

    @property
    def usable(self) -> float:
        """The bytes that a run may take."""
        return USABLE * self.gigabytes * 1e9


CARDS = (
    Card("T4, 16 GB", 16, "fp16", 65e12, 320e9),
    Card("RTX 3090, 24 GB", 24, "bf16", 71e12, 936e9),
    Card("A100, 80 GB", 80, "bf16", 312e12, 2039e9),
)
MODELS = {
    name: ModelShape(
        formats.VOCABULARY, formats.POSITIONS, sizes["n_embd"], sizes["n_layer"], sizes["n_head"], 4 * sizes["n_embd"],
        "gelu_new", 1e-5, True, False, True, (50256,),
    )
    for name, sizes in (formats.SHAPES | formats.LARGE_SHAPES).items()
}  # fmt: skip


def main() -> None:
    """Fill the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in tables().items():
        text = chart.fill(text, name, "\n".join(lines))
    PAGE.write_text(text, encoding="utf-8")


def tables() -> dict[str, list[str]]:
    """Return the tables of the page by name."""
    return {"training": list(training_table()), "generation": list(generation_table())}


def training_table() -> Iterator[str]:
    """Yield the lines of the table of fine-tuning."""
    yield "| Card | Model | All weights | Estimate | tokens/s, by arithmetic | LoRA | Estimate |"
    yield "|---|---|---|---|---|---|---|"
    for card in CARDS:
        for name, shape in MODELS.items():
            whole, lora = (fitting(card, shape, lora) for lora in (False, True))
            yield (
                "| "
                + " | ".join([card.name, f"`{name}`", *cells(card, shape, whole), *cells(card, shape, lora)[:2]])
                + " |"
            )


def cells(card: Card, shape: ModelShape, options: TrainingOptions | None) -> list[str]:
    """Return flags, memory and speed of a run."""
    if options is None:
        return ["does not fit", "", ""]
    flags = [f"--batch_size {options.batch_size}"]
    if options.gradient_checkpointing:
        flags.append("--gradient_checkpointing")
    if options.optim == "adafactor":
        flags.append("--optim adafactor")
    # With checkpointing, the forward pass is computed twice.
    work = train.flops_per_token(shape, options) * (4 / 3 if options.gradient_checkpointing else 1)
    memory = estimate_memory(shape, options).peak
    return [f"`{' '.join(flags)}`", f"{memory / 1e9:.1f} GB", rounded(REACHED * card.flops / work)]


def fitting(card: Card, shape: ModelShape, lora: bool) -> TrainingOptions | None:
    """Return the settings for a card: the first of these ways with at least 4 blocks in a batch, or else 1.

    The ways are nothing special, gradient checkpointing, and, unless it is LoRA, both with Adafactor.
    """
    plain = TrainingOptions(train_file="text.txt", block_size=formats.POSITIONS, lora=lora, **{card.half: True})
    ways = [plain, replace(plain, gradient_checkpointing=True)]
    if not lora:
        ways.append(replace(plain, gradient_checkpointing=True, optim="adafactor"))
    for least in (4, 1):
        for options in ways:
            for batch in (32, 16, 8, 4, 2, 1):
                sized = replace(options, batch_size=batch, gradient_accumulation_steps=BLOCKS // batch)
                if batch >= least and estimate_memory(shape, sized).peak <= card.usable:
                    return sized
    return None


def generation_table() -> Iterator[str]:
    """Yield the lines of the table of generation."""
    yield "| Card | Model | Weights | Cache and logits of a text | Largest batch | One text, limit by arithmetic |"
    yield "|---|---|---|---|---|---|"
    for card in CARDS:
        for name, shape in MODELS.items():
            weights = 2 * sum(count(size) for _, size in shape.tensors())
            text = bytes_per_text(SimpleNamespace(shape=shape, precision="fp16"), shape.n_positions)  # type: ignore[arg-type]
            rows = int((card.usable - weights) // text)
            power = 2 ** (rows.bit_length() - 1)
            told = [f"{weights / 1e9:.1f} GB", f"{text / 1e6:.0f} MB", f"`--batch_size {power}`"]
            yield (
                "| "
                + " | ".join([card.name, f"`{name}`", *told, f"{rounded(card.bandwidth / weights)} tokens/s"])
                + " |"
            )


def count(size: tuple[int, ...]) -> int:
    """Return the number of elements of a tensor."""
    total = 1
    for length in size:
        total *= length
    return total


def rounded(value: float) -> str:
    """Return a number with two digits that count: it is no more exact than that."""
    digits = len(str(int(value))) - 2
    return f"{round(value, -digits):,.0f}"


if __name__ == "__main__":
    main()
