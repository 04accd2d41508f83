"""Texts that join and leave a running batch, against the same texts generated alone."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import kernels_here
from torch import Tensor

from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.row_pool import KernelPool
from gpt2tg.generation.generator import Generator, load
from gpt2tg.generation.live_batch import LiveBatch, LiveText
from gpt2tg.generation.samples import Sample
from gpt2tg.options import DecodingOptions, decoding_options

PROMPTS = ["The owl", "", "The owl sold silence by the ounce", "The owl sold silence by the hour", "é—猫"]
SETTINGS: list[dict[str, Any]] = [
    {"decoding": "greedy"},
    {"decoding": "sample", "temperature": 1.0},
    {"decoding": "top_p", "repetition_penalty": 1.3, "stop": ("e",)},
    {"decoding": "top_k", "no_repeat_ngram": 2, "min_new_tokens": 5},
]


@pytest.fixture(scope="module")
def exact(model_dir: Path) -> Generator:
    """A model with our kernels, whose rows are exact."""
    kernels_here()
    return load(str(model_dir))


def texts_to_write(count: int) -> list[tuple[str, DecodingOptions]]:
    draw = random.Random(0)
    return [
        (
            draw.choice(PROMPTS),
            decoding_options(
                {**draw.choice(SETTINGS), "seed": number, "max_new_tokens": draw.randint(5, 30)}, num_sequences=1
            ),
        )
        for number in range(count)
    ]


def live_text(generator: Generator, prompt: str, options: DecodingOptions) -> LiveText:
    return LiveText(generator.prepare([generator.fit(prompt, options)], options), 0, 0, in_pieces=False)


def written_together(generator: Generator, texts: list[LiveText], rows: int) -> list[Sample]:
    """Let the texts join at random moments, and return their samples in order."""
    batch, draw, waiting = LiveBatch(generator.model, rows), random.Random(1), list(texts)
    samples: dict[LiveText, Sample] = {}
    while waiting or batch.count:
        waiting = [text for text in waiting if draw.random() < 0.7 or not batch.add(text)]
        for written in batch.step() if batch.count else ():
            if written.chunk is not None and written.chunk.sample is not None:
                samples[written.text] = written.chunk.sample
    return [samples[text] for text in texts]


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_texts_equal_those_alone_to_the_last_bit(exact: Generator, rows: int) -> None:
    texts = texts_to_write(24)
    alone = [exact.generate(prompt, options)[0] for prompt, options in texts]
    assert written_together(exact, [live_text(exact, *text) for text in texts], rows) == alone


def test_torch_rows_generate_the_same_ids(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load", lambda: None)
    generator = load(str(model_dir))
    assert generator.model.kernel_model is None
    texts = texts_to_write(10)
    alone = [generator.generate(prompt, options)[0].ids for prompt, options in texts]
    together = written_together(generator, [live_text(generator, *text) for text in texts], 4)
    assert [sample.ids for sample in together] == alone


def test_common_beginning_is_computed_once(exact: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts that are being written, and of texts that have ended."""
    read: list[int] = []
    plain = KernelPool.read

    def noted(self: KernelPool, texts: Mapping[int, Sequence[int]], wanted: Iterable[int]) -> Tensor:
        read.extend(map(len, texts.values()))
        return plain(self, texts, wanted)

    monkeypatch.setattr(KernelPool, "read", noted)
    options = decoding_options({"decoding": "greedy", "max_new_tokens": 2, "suppress_eos": True}, num_sequences=1)
    prompt, longer = PROMPTS[2], PROMPTS[2] + " and the owl"
    batch = LiveBatch(exact.model, 4)
    first, twin, later = (live_text(exact, text, options) for text in (prompt, prompt, longer))
    assert batch.add(first)
    assert not batch.add(twin)  # it waits for the prompt that is about to be read
    batch.step()
    assert batch.add(twin)
    while batch.count:
        batch.step()
    assert batch.add(later)
    while batch.count:
        batch.step()
    ids, longer_ids = exact.encode(prompt), exact.encode(longer)
    common = sum(1 for left, right in zip(ids, longer_ids, strict=False) if left == right)
    assert read == [len(ids), 1, 1, 1, len(longer_ids) - common, 1]


def test_long_prompt_does_not_hold_up_other_texts(exact: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read in parts, and the texts beside it get a token in each of these passes."""
    monkeypatch.setattr(KernelPool, "tokens_per_pass", 4)
    options = decoding_options({"decoding": "greedy", "max_new_tokens": 12, "suppress_eos": True}, num_sequences=1)
    batch = LiveBatch(exact.model, 2)
    short, long = live_text(exact, "A", options), live_text(exact, PROMPTS[2], options)
    assert batch.add(short)
    batch.step()
    assert batch.add(long)
    passes = -(-len(exact.encode(PROMPTS[2])) // 4)
    for _ in range(passes - 1):
        assert [written.text for written in batch.step()] == [short]
    assert [written.text for written in batch.step()] == [short, long]


def test_dropped_text_frees_its_row(exact: Generator) -> None:
    options = decoding_options({"decoding": "greedy", "max_new_tokens": 20, "suppress_eos": True}, num_sequences=1)
    batch = LiveBatch(exact.model, 1)
    dropped, following = live_text(exact, "The owl", options), live_text(exact, "A fox", options)
    assert batch.add(dropped)
    batch.step()
    assert not batch.add(following)
    batch.drop([dropped])
    assert batch.add(following)
    ids = []
    while batch.count:
        ids += [written.token.id for written in batch.step()]
    assert tuple(ids) == exact.generate("A fox", replace(options, prompt_lookup=0))[0].ids


def test_logits_that_are_not_finite_fail_one_text_alone(exact: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the broken row is shared with the next text that begins alike."""
    options = decoding_options({"decoding": "greedy", "max_new_tokens": 8}, num_sequences=1)
    broken, whole = (live_text(exact, prompt, options) for prompt in ("The owl sold silence", "The owl sold silence"))
    batch, read, passes = LiveBatch(exact.model, 4), KernelPool.read, iter(range(100))

    def read_broken(self: KernelPool, texts: Mapping[int, Sequence[int]], wanted: Iterable[int]) -> Tensor:
        logits = read(self, texts, wanted)
        if next(passes) == 3:
            logits[0, 5] = float("nan")
        return logits

    monkeypatch.setattr(KernelPool, "read", read_broken)
    assert batch.add(broken)
    batch.step()
    assert batch.add(whole)
    samples: list[Sample] = []
    while batch.count:
        for written in batch.step():
            assert (written.text is broken) or written.error is None
            if written.error is not None:
                assert "not finite at new token 4" in str(written.error)
                again = live_text(exact, "The owl sold silence", options)
                assert batch.add(again)
            if written.chunk is not None and written.chunk.sample is not None:
                samples.append(written.chunk.sample)
    (alone,) = exact.generate("The owl sold silence", options)
    assert [sample.ids for sample in samples] == [alone.ids, alone.ids]
