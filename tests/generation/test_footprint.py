"""A batch that is too large is refused, with its flag, before memory is allocated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import generate_from_finetuned
from gpt2tg.generation import footprint
from gpt2tg.generation.footprint import bytes_per_text, check_footprint
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import decoding_options

Capture = pytest.CaptureFixture[str]

MOST = 2**31 - 1


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decoding", "beam", "--num_beams", "120000"], "--num_beams 120000 is more than the 300 tokens"),
        (["--decoding", "beam", "--num_beams", str(MOST)], f"--num_beams {MOST} is more than the 300 tokens"),
        (["--decoding", "diverse_beam", "--num_beams", "301"], "--num_beams 301 is more than the 300 tokens"),
        (["--decoding", "beam_sample", "--num_beams", "999999"], "--num_beams 999999 is more than the 300 tokens"),
        (["--num_sequences", str(MOST)], f"--num_sequences {MOST}: a batch of {MOST} texts needs about"),
        (["--best_of", str(MOST)], f"--best_of {MOST}: a batch of {MOST} texts needs about"),
        (
            ["--num_sequences", "9" * 30],
            f"--num_sequences {'9' * 30} is out of range: it must be at least 1 and at most",
        ),
        (["--num_beams", "9" * 30], f"--num_beams {'9' * 30} is out of range"),
        (["--batch_size", "9" * 30], f"--batch_size {'9' * 30} is out of range"),
        (["--max_new_tokens", "9" * 30], f"--max_new_tokens {'9' * 30} is out of range"),
        (["--top_k", "9" * 30], f"--top_k {'9' * 30} is out of range"),
        (["--top_k", "9" * 5000], f"--top_k {'9' * 37}... is not valid"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_huge_counts_are_refused_before_allocation(
    model_dir: Path, words: list[str], message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2tg.generation.caches.new_context", lambda *_: pytest.fail("memory is allocated"))
    assert generate_from_finetuned.main(["--model_path", str(model_dir), "--prompt", "The", *words]) == 2
    err = capsys.readouterr().err
    assert f"error: {message}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--top_k", "--no_repeat_ngram", "--penalty_window", "--batch_size", "--candidates"])
def test_counts_that_need_no_memory_may_be_huge(model_dir: Path, flag: str) -> None:
    words = ["--model_path", str(model_dir), "--prompt", "The", "--num_sequences", "1", "--max_new_tokens", "3"]
    assert generate_from_finetuned.main([*words, "--presence_penalty", "1", flag, str(MOST)]) == 0


def test_too_large_batch_names_its_flag(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    options = decoding_options({"decoding": "greedy", "max_new_tokens": 4})
    monkeypatch.setattr(footprint, "device_bytes", lambda _: 10 * bytes_per_text(generator.model, 4))
    requests = [generator.fit("The", options, number) for number in range(20)]
    assert len(list(generator.generate_each(requests, options, batch_size=10))) == 20
    with pytest.raises(ValueError, match="batch_size 15: a batch of 15 texts needs"):
        next(iter(generator.generate_each(requests, options, batch_size=15)))


def test_single_text_is_never_refused(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "device_bytes", lambda _: 1)
    check_footprint(generator.model, decoding_options({"decoding": "greedy"}), 1, 60)


def test_estimate_covers_cache_and_logits(generator: Generator) -> None:
    """Against the size of the tensors that torch allocates."""
    shape = generator.model.shape
    cache = torch.zeros(shape.n_layer, 2, 1, shape.n_head, 50, shape.n_embd // shape.n_head)
    logits = torch.zeros(shape.vocab_size)
    assert bytes_per_text(generator.model, 50) >= cache.nbytes + logits.nbytes
    assert bytes_per_text(generator.model, 50) < 2 * (cache.nbytes + 3 * logits.nbytes)


def test_memory_limit_of_the_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(footprint, "CONTAINER_LIMITS", (limit,))
    of_the_machine = footprint.device_bytes(torch.device("cpu"))
    limit.write_text("1000000\n")
    assert footprint.device_bytes(torch.device("cpu")) == 1_000_000
    limit.write_text("max\n")
    assert footprint.device_bytes(torch.device("cpu")) == of_the_machine > 1_000_000
