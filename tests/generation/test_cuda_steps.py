"""Generation with CUDA graphs gives the texts of the ordinary path. Here the steps run one by one, without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import FABLES

from gpt2tg.engine.continuous_batch import ContinuousBatch
from gpt2tg.engine.cuda_graph import SWITCH, GraphCapture
from gpt2tg.engine.decode_step import DecodeStep
from gpt2tg.errors import RunError
from gpt2tg.generation import cuda_steps
from gpt2tg.generation.generator import Generator, Request, Sample, load
from gpt2tg.options import DecodingOptions, decoding_options

PROMPTS = [*FABLES, "", "The", "A fox", "Two bells", "é—猫🐈", "The owl"]

WRITTEN_IN_STEPS: list[dict[str, object]] = [
    {"decoding": "greedy"},
    {"decoding": "greedy", "stop": ("e", "zz")},
    {"decoding": "sample", "seed": 3, "temperature": 1.5},
    {"decoding": "sample", "seed": 3, "num_sequences": 3, "typical_p": 0.8},
    {"decoding": "sample", "seed": 3, "best_of": 4, "num_sequences": 2, "min_p": 0.02},
    {"decoding": "top_k", "seed": 4, "stop": ("a",), "keep_stop": True},
    {"decoding": "top_p", "seed": 5, "num_sequences": 2},
]

WRITTEN_STEP_BY_STEP: list[dict[str, object]] = [
    {"decoding": "greedy", "repetition_penalty": 1.2},
    {"decoding": "greedy", "presence_penalty": 0.5},
    {"decoding": "greedy", "no_repeat_ngram": 3},
    {"decoding": "greedy", "min_new_tokens": 4},
    {"decoding": "greedy", "suppress_eos": True},
    {"decoding": "greedy", "ban_words": ("owl",)},
    {"decoding": "greedy", "prompt_lookup": 5},
    {"decoding": "greedy", "overflow": "slide", "max_new_tokens": 80},
    {"decoding": "greedy", "no_repeat_ngram": 1, "suppress_eos": True, "overflow": "slide", "max_new_tokens": 310},
    {"decoding": "beam"},
    {"decoding": "contrastive"},
]


@pytest.fixture(scope="module")
def ordinary(model_dir: Path) -> Generator:
    return load(str(model_dir))


@pytest.fixture
def in_steps(ordinary: Generator) -> Generator:
    generator = Generator(copy.copy(ordinary.model), ordinary.tokenizer)
    generator.continuous_batches.are_used = True
    return generator


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[ContinuousBatch]:
    """All batches that are created."""
    made: list[ContinuousBatch] = []

    class Noted(ContinuousBatch):
        def __init__(self, *arguments: object, **settings: object) -> None:
            super().__init__(*arguments, **settings)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(cuda_steps, "ContinuousBatch", Noted)
    return made


def options(settings: dict[str, object]) -> DecodingOptions:
    return decoding_options({"max_new_tokens": 26, "overflow": "truncate", **settings})


def requests_of(generator: Generator, settings: DecodingOptions, prompts: Sequence[str] = PROMPTS) -> list[Request]:
    return [generator.fit(prompt, settings, index) for index, prompt in enumerate(prompts)]


def outcomes(samples: Sequence[Sample]) -> list[tuple]:
    return [(sample.prompt_index, sample.index, sample.ids, sample.completion, sample.finish_reason, sample.replay)
            for sample in samples]  # fmt: skip


@pytest.mark.parametrize("settings", WRITTEN_IN_STEPS, ids=str)
def test_chunks_equal_those_without_cuda_graphs(
    ordinary: Generator, in_steps: Generator, batches: list[ContinuousBatch], settings: dict[str, object]
) -> None:
    """Also in the same order, since every text has a row of its own."""
    chosen = options(settings)
    requests = requests_of(ordinary, chosen)
    expected, found = (list(writer.stream_batch(requests, chosen)) for writer in (ordinary, in_steps))
    assert [(chunk.prompt_index, chunk.index, chunk.text) for chunk in found] == [
        (chunk.prompt_index, chunk.index, chunk.text) for chunk in expected
    ]
    finished, others = ([chunk.sample for chunk in chunks if chunk.sample] for chunks in (found, expected))
    assert outcomes(finished) == outcomes(others)
    assert [sample.logprob for sample in finished] == pytest.approx([sample.logprob for sample in others], abs=1e-3)
    assert len(batches) == 1


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("settings", WRITTEN_IN_STEPS, ids=str)
def test_samples_come_in_the_order_of_the_prompts(
    ordinary: Generator, in_steps: Generator, settings: dict[str, object], batch_size: int
) -> None:
    """Texts of unequal lengths end in another order than they began, and others take over their rows."""
    chosen = options(settings)
    requests = [
        ordinary.fit(prompt, options({**settings, "max_new_tokens": 2 + 11 * index % 26}), index)
        for index, prompt in enumerate(PROMPTS)
    ]
    expected = ordinary.generate_batch(requests, chosen)
    found = list(in_steps.generate_each(requests, chosen, batch_size))
    assert [outcomes(samples) for samples in found] == [outcomes(samples) for samples in expected]


@pytest.mark.parametrize("settings", WRITTEN_STEP_BY_STEP, ids=str)
def test_other_texts_are_chosen_step_by_step(
    ordinary: Generator, in_steps: Generator, batches: list[ContinuousBatch], settings: dict[str, object]
) -> None:
    chosen = options(settings)
    requests = requests_of(ordinary, chosen, PROMPTS[-3:])
    expected = ordinary.generate_batch(requests, chosen)
    found = list(in_steps.generate_each(requests, chosen, 8))
    assert [outcomes(samples) for samples in found] == [outcomes(samples) for samples in expected]
    assert batches == []


def test_captured_batch_is_reused_for_equal_settings(in_steps: Generator, batches: list[ContinuousBatch]) -> None:
    for settings, made in [
        ({"decoding": "top_k", "top_k": 9, "seed": 1}, 1),
        ({"decoding": "top_k", "top_k": 9, "seed": 2, "stop": ("a",)}, 1),
        ({"decoding": "top_k", "top_k": 8, "seed": 1}, 2),
        ({"decoding": "greedy"}, 3),
        ({"decoding": "beam"}, 3),
        ({"decoding": "greedy"}, 4),
    ]:
        in_steps.generate("The owl", options(settings))
        assert len(batches) == made, settings


def test_interleaved_streams_use_separate_batches(in_steps: Generator, batches: list[ContinuousBatch]) -> None:
    chosen = options({"decoding": "greedy"})
    streams = [in_steps.stream(prompt, chosen) for prompt in ("The owl", "Two bells argued")]
    pieces = ["", ""]
    for both in zip(*streams, strict=False):
        pieces = [piece + chunk.text for piece, chunk in zip(pieces, both, strict=True)]
    for stream in streams:
        stream.close()
    (alone,) = in_steps.generate("Two bells argued", chosen)
    assert pieces[1]
    assert alone.completion.startswith(pieces[1])
    assert len(batches) == 2


def test_max_time_ends_texts_with_cuda_graphs(in_steps: Generator, batches: list[ContinuousBatch]) -> None:
    chosen = options({"decoding": "greedy", "max_time": 1e-9})
    requests = requests_of(in_steps, chosen, PROMPTS[:4])
    found = [sample for samples in in_steps.generate_each(requests, chosen, 2) for sample in samples]
    assert [(sample.finish_reason, len(sample.ids)) for sample in found] == [("time", 1)] * 4
    assert batches


def test_broken_weights_raise_with_cuda_graphs(in_steps: Generator) -> None:
    broken = Generator(copy.copy(in_steps.model), in_steps.tokenizer)
    broken.continuous_batches.are_used = True
    weights = broken.model.weights
    broken.model.weights = {**weights, "ln_f.bias": torch.full_like(weights["ln_f.bias"], torch.nan)}
    for settings in ({"decoding": "greedy"}, {"decoding": "sample"}):
        with pytest.raises(RunError, match="not finite at new token 1"):
            broken.generate("The owl", options(settings))


def test_out_of_memory_frees_the_batch(in_steps: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> object:
        raise torch.OutOfMemoryError

    chosen = options({"decoding": "greedy"})
    monkeypatch.setattr(ContinuousBatch, "write", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        in_steps.generate("The owl", chosen)
    monkeypatch.undo()
    assert in_steps.continuous_batches._kept is None
    assert in_steps.generate("The owl", chosen)


class PretendedGraphs:
    """CUDA graphs without CUDA: a capture computes nothing, and a replay runs the step."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.stream = "default"
        self.errors: dict[str, list[Exception]] = {}
        """What the next captures raise, by `begin`, `step` and `end`."""
        self.is_capturing = False
        self.captured: Callable[[], None] | None = None

    def at(self, stage: str) -> None:
        """Raise the error of this stage, if there is one."""
        if self.errors.get(stage):
            raise self.errors[stage].pop(0)

    def step(self, run: Callable[[], None]) -> None:
        """Run a step, or capture it."""
        if self.is_capturing:
            self.at("step")
            self.captured = run
        else:
            self.log.append("step")
            run()

    @contextmanager
    def on(self, stream: str) -> Iterator[None]:
        """Stand in for `torch.cuda.stream`."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before


class PretendedGraph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self, graphs: PretendedGraphs) -> None:
        self._graphs = graphs
        self._run: Callable[[], None] | None = None

    def pool(self) -> object:
        return self

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        self._graphs.log.append("capture")
        assert self._graphs.stream == "captures"
        self._graphs.at("begin")
        self._graphs.is_capturing = True

    def capture_end(self) -> None:
        self._graphs.is_capturing = False
        self._graphs.at("end")
        self._run = self._graphs.captured

    def replay(self) -> None:
        assert self._graphs.stream == "default"
        assert self._run is not None
        self._graphs.log.append("replay")
        self._run()


@pytest.fixture
def graphs(in_steps: Generator, monkeypatch: pytest.MonkeyPatch) -> PretendedGraphs:
    """Lets `in_steps` capture its steps."""
    pretended = PretendedGraphs()
    genuine = DecodeStep._step
    monkeypatch.setattr(DecodeStep, "_step", lambda self: pretended.step(partial(genuine, self)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: PretendedGraph(pretended))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "captures")
    monkeypatch.setattr(torch.cuda, "stream", pretended.on)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pretended.log.append("empty"))
    monkeypatch.setattr(in_steps.model, "graph_capture", GraphCapture(torch.device("cpu"), is_on=True))
    return pretended


def assert_equal_texts(generator: Generator, expected: Generator, settings: dict[str, object]) -> None:
    chosen = options(settings)
    assert outcomes(generator.generate("The owl", chosen)) == outcomes(expected.generate("The owl", chosen))


def test_step_is_captured_after_two_steps(ordinary: Generator, in_steps: Generator, graphs: PretendedGraphs) -> None:
    assert_equal_texts(in_steps, ordinary, {"decoding": "sample", "seed": 2})
    assert graphs.log == ["step"] * 2 + ["capture"] + ["replay"] * 24


def test_step_is_not_captured_for_a_short_text(in_steps: Generator, graphs: PretendedGraphs) -> None:
    """A capture takes longer than the steps it would save. With the next text it pays."""
    chosen = options({"decoding": "greedy", "max_new_tokens": 5})
    in_steps.generate("The owl", chosen)
    assert graphs.log == ["step"] * 5
    in_steps.generate("The owl", chosen)
    assert graphs.log[5:] == ["capture"] + ["replay"] * 5


@pytest.mark.parametrize("stages", [["begin"], ["step"], ["end"], ["step", "end"]], ids=str)
def test_texts_are_complete_if_a_capture_fails(
    ordinary: Generator,
    in_steps: Generator,
    graphs: PretendedGraphs,
    stages: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It fails once: it is not tried for the following texts, and one line says so."""
    reason = "CUDA error: operation not permitted when stream is capturing"
    graphs.errors = {stage: [RuntimeError(f"{reason}\nCompile with...")] for stage in reversed(stages)}
    if len(stages) > 1:
        graphs.errors["end"] = [RuntimeError("CUDA error: capture was invalidated")]
    for settings in ({"decoding": "greedy"}, {"decoding": "sample", "seed": 2}, {"decoding": "sample", "seed": 3}):
        assert_equal_texts(in_steps, ordinary, settings)
    assert graphs.log == ["step"] * 2 + ["capture"] + ["step"] * (24 + 2 * 26)
    assert graphs.stream == "default"
    captured = capsys.readouterr()
    assert captured.err == f"no CUDA graphs: {reason}. Texts are generated step by step, which is slower.\n"
    assert captured.out == ""


def test_capture_without_memory_is_tried_again_with_an_empty_cache(
    ordinary: Generator, in_steps: Generator, graphs: PretendedGraphs
) -> None:
    graphs.errors = {"step": [torch.OutOfMemoryError()]}
    assert_equal_texts(in_steps, ordinary, {"decoding": "greedy"})
    assert graphs.log == ["step"] * 2 + ["capture", "empty", "capture"] + ["replay"] * 24
    full = [torch.OutOfMemoryError("out of memory") for _ in range(2)]
    graphs.errors = {"step": full, "end": [RuntimeError("invalidated")]}
    with pytest.raises((RunError, torch.OutOfMemoryError), match="out of memory"):
        in_steps.generate("The owl", options({"decoding": "sample"}))


@pytest.mark.parametrize(("value", "is_on"), [(None, True), ("1", True), ("0", False)])
def test_environment_variable_turns_graphs_off(value: str | None, is_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    assert GraphCapture(torch.device("cuda")).is_on is is_on
    assert not GraphCapture(torch.device("mps")).is_on
