"""The preview of training blocks."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.sources import plan_sources
from gpt2tg.training.data.training_data import load_data
from gpt2tg.training.preview import preview_blocks


def test_preview_marks_tokens_without_loss(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{"prompt": f"Owl {n}:", "completion": " flew."} for n in range(2)]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = TrainingOptions(train_file=str(path), validation_split=0, block_size=64, show_blocks=3)
    data = load_data(plan_sources(options), tokenizer, options)
    head, *texts = preview_blocks(data, tokenizer, options)
    assert texts == ["⟦Owl 0:⟧ flew.<|endoftext|>", "⟦Owl 1:⟧ flew.<|endoftext|>"]
    learned = 2 * (len(tokenizer.encode(" flew.")) + 1)
    assert head.startswith("block 0: ")
    assert f"{learned} carry loss" in head


def test_preview_separates_isolated_examples(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "t.txt").write_text("xy\nyz\n")
    options = TrainingOptions(
        train_file=str(tmp_path / "t.txt"), validation_split=0, block_size=16, no_cross_examples=True, show_blocks=1
    )
    lines = list(preview_blocks(load_data(plan_sources(options), tokenizer, options), tokenizer, options))
    assert sorted(lines[1:]) == ["⟦x⟧y<|endoftext|>", "⟦y⟧z<|endoftext|>"]
