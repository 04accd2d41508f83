"""Our texts against transformers' `generate`, token by token, over random models, prompts and settings.

A few dozen configurations always; `make test-oracle` runs 2,000 of them and prints the counts by class.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import transformers

from gpt2tg import selftest

CONFIGURATIONS = int(os.environ.get("GPT2TG_ORACLE", "60"))
PER_MODEL = 20


@pytest.mark.parametrize("number", range(CONFIGURATIONS // PER_MODEL))
def test_ids_equal_transformers(number: int, oracle_counts: Counter) -> None:
    counts, differences = selftest.compare(1000 + number, settings_tried=PER_MODEL)
    oracle_counts.update(counts)
    assert differences == []
    assert counts.total() == PER_MODEL * selftest.PROMPTS


def test_wrong_decoder_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy decoding that takes the second best token."""

    def wrong(logits: object, samples: object) -> object:
        return logits.topk(2, dim=1).indices[:, 1]  # type: ignore[attr-defined]

    monkeypatch.setattr("gpt2tg.decoding.sampling.most_probable", wrong)
    _, differences = selftest.compare(0, settings_tried=10)
    assert differences != []


def test_selftest_prints_a_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(selftest, "MODELS", 1)
    assert selftest.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("gpt2tg ")
    assert "verdict: the same texts as transformers, in 15 comparisons" in out


def test_selftest_refuses_unknown_words_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        selftest.main(["--nope"])
    assert capsys.readouterr().err == "python -m gpt2tg.selftest: error: unrecognized arguments: --nope\n"


def test_selftest_shows_no_progress_bars(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """It saves each model in a moment: bars of transformers would only scroll past."""

    def compare(seed: int) -> tuple[Counter, list]:
        selftest.generator_of(selftest.random_model(seed, layers=1, width=8))
        return Counter(), []

    transformers.logging.enable_progress_bar()
    monkeypatch.setattr(selftest, "compare", compare)
    monkeypatch.setattr(selftest, "MODELS", 1)
    assert selftest.main([]) == 0
    assert capfd.readouterr().err == ""
