"""Measure the final model on the test text, once, at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2tg.inspection.perplexity import perplexity
from gpt2tg.training.console import log
from gpt2tg.training.data.blocks import Blocks
from gpt2tg.training.trainer import LanguageTrainer


def measure_test(trainer: LanguageTrainer, blocks: Blocks, output_dir: Path, step: int) -> dict[str, Any] | None:
    """Return the result of the final model on the test text, as run.json holds it; None if its checkpoint is gone.

    Args:
        step: of the checkpoint that becomes the final model.
    """
    checkpoint = output_dir / f"checkpoint-{step}"
    if not checkpoint.is_dir():
        log.warning(f"--test_file is not measured: {checkpoint} is gone")
        return None
    loss, tokens = trainer.measure(blocks, checkpoint)
    log.info(f"test loss {loss:.4f}, perplexity {perplexity(loss):.2f}: step {step:,} on {tokens:,} tokens")
    return {"loss": loss, "tokens": tokens, "step": step, "fingerprint": blocks.fingerprint}
