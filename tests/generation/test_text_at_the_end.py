"""Where nobody streams, a text is decoded once, at its end. It is the text that is streamed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FABLES

from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.generation.generator import Generator, load
from gpt2tg.generation.visible_text import VisibleText
from gpt2tg.options import decoding_options

SETTINGS: list[dict[str, object]] = [
    {"decoding": "greedy"},
    {"decoding": "sample", "num_sequences": 3},
    {"decoding": "top_p", "best_of": 4, "num_sequences": 2},
    {"decoding": "top_k", "end_at_sentence": True, "max_new_tokens": 60},
    {"decoding": "beam"},
    {"decoding": "diverse_beam", "num_beams": 4},
    {"decoding": "beam_sample", "end_at_sentence": True},
    {"decoding": "contrastive"},
    {"decoding": "greedy", "overflow": "slide", "max_new_tokens": 80},
    {"decoding": "sample", "stop": ("e", "th")},
    {"decoding": "beam", "stop": ("e",), "keep_stop": True},
]
MODELS_AND_SETTINGS = [("random", settings) for settings in SETTINGS] + [
    ("bundled", settings) for settings in SETTINGS[::4]
]


@pytest.fixture(scope="module")
def generators(model_dir: Path) -> dict[str, Generator]:
    """With random weights, most tokens are parts of characters that are never completed."""
    return {"random": load(str(model_dir)), "bundled": load(BUNDLED_DIRECTORY)}


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that are decoded one by one."""
    tokens: list[int] = []
    genuine = VisibleText.push
    monkeypatch.setattr(VisibleText, "push", lambda self, token: (tokens.append(token), genuine(self, token))[1])
    return tokens


@pytest.mark.parametrize("in_steps", [False, True], ids=["ordinary", "in steps"])
@pytest.mark.parametrize(("model", "settings"), MODELS_AND_SETTINGS, ids=str)
def test_samples_equal_those_that_are_streamed(
    generators: dict[str, Generator], model: str, settings: dict[str, object], in_steps: bool, pushed: list[int]
) -> None:
    generator = generators[model]
    chosen = decoding_options({"max_new_tokens": 24, "seed": 6, "overflow": "truncate", **settings})
    requests = [generator.fit(prompt, chosen, index) for index, prompt in enumerate(["", *FABLES[:3], "é—猫🐈"])]
    generator.continuous_batches.are_used = in_steps
    found = [*generator.generate_batch(requests, chosen), *generator.generate_each(requests, chosen, 2)]
    assert bool(pushed) is ("stop" in settings)
    chunks = generator.stream_batch(requests, chosen)
    streamed = {(chunk.prompt_index, chunk.sample.index): chunk.sample for chunk in chunks if chunk.sample}
    assert [len(samples) for samples in found] == [chosen.sequences] * 2 * len(requests)
    for sample in itertools.chain(*found):
        expected = streamed[sample.prompt_index, sample.index]
        assert sample == replace(expected, logprob=sample.logprob, ranking_score=sample.ranking_score)
        assert sample.logprob == pytest.approx(expected.logprob, abs=1e-3)
