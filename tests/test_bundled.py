"""The bundled model: small enough, whole, and the same to transformers and to us."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.engine.contexts import new_context
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import decoding_options

COMMON_WORDS = """
    the and to of a he in was that it his i you had as for her with said she not they but be at him on is have so my
    all when there then were will no from one what would if could them this their out up me do
"""

PROMPTS = ["Once upon a time", "The old king", '"Who are you?" said', "In the middle of the forest there", ""]


@pytest.fixture(scope="module")
def tiny() -> Generator:
    return load("gpt2-tiny")


def test_it_is_small_and_has_room() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_DIRECTORY.iterdir()) <= 20_000_000
    assert load("gpt2-tiny").model.shape.n_positions >= 512


@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_and_greedy_ids_equal_transformers(tiny: Generator, prompt: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(BUNDLED_DIRECTORY, local_files_only=True, dtype=torch.float32).eval()
    ids = tiny.encode(prompt)
    assert AutoTokenizer.from_pretrained(BUNDLED_DIRECTORY, local_files_only=True)(prompt)["input_ids"] in (ids, [])
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(new_context(tiny.model, 512).start([ids])[0], expected, atol=1e-4, rtol=0)
    mask = torch.ones(1, len(ids), dtype=torch.long)
    output = model.generate(
        torch.tensor([ids]), attention_mask=mask, do_sample=False, max_new_tokens=60, pad_token_id=0
    )
    (sample,) = tiny.generate(prompt, decoding_options({"decoding": "greedy", "max_new_tokens": 60}))
    assert list(sample.ids) == output[0, len(ids) :].tolist()


def test_it_writes_words_that_stories_are_made_of(tiny: Generator) -> None:
    """Of fifty of the commonest English words at least a third of its words should be: gibberish has none."""
    common = re.findall(r"[a-z]+", COMMON_WORDS)
    for sample in tiny.generate("Once upon a time", decoding_options({"seed": 1, "max_new_tokens": 120})):
        words = [word.strip('.,;:!?"').lower() for word in sample.completion.split()]
        assert sum(word in common for word in words) > len(words) / 3


def test_a_text_longer_than_the_context_slides_by(tiny: Generator) -> None:
    options = decoding_options(
        {"max_new_tokens": 700, "overflow": "slide", "suppress_eos": True, "seed": 1, "num_sequences": 1}
    )
    (sample,) = tiny.generate("Once upon a time", options)
    assert len(sample.ids) == 700
    assert len(set(sample.completion[-1500:].split())) > 50


def test_bundling_a_missing_checkpoint_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bundle", str(tmp_path)])
    monkeypatch.delitem(sys.modules, "gpt2tg.training.bundle", raising=False)
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_module("gpt2tg.training.bundle", run_name="__main__")
    assert re.fullmatch(r"bundle: error: .*config\.json is missing.*\n", capsys.readouterr().err)
