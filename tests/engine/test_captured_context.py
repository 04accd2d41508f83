"""A context with CUDA graphs. Here a graph is a function that runs the step."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import random_ids, read_gpt2

from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.engine import matrix_choice, step_cache
from gpt2tg.engine.captured_context import CapturedContext
from gpt2tg.engine.context import Context
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.cpu import kernels
from gpt2tg.engine.cuda_graph import GraphCapture
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.torch_context import TorchContext


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and bucket of each replay of a graph."""
    log: list[tuple[int, int]] = []

    def graph_of(self: GraphCapture, step: Callable[[], None]) -> object:
        forward = step.__self__  # type: ignore[attr-defined]
        kind = (forward.inputs.shape[1], forward._bucket)
        return SimpleNamespace(replay=lambda: (log.append(kind), step()))

    monkeypatch.setattr(GraphCapture, "graph_of", graph_of)
    monkeypatch.setattr(step_cache, "SMALLEST_BUCKET", 8)
    return log


@pytest.fixture
def model(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> GPT2:
    """A model that torch computes, as on a GPU, with steps that are captured."""
    monkeypatch.setattr(kernels, "load", lambda: None)
    monkeypatch.setattr(matrix_choice, "_cached_fastest", lambda *_: "plain")
    model = read_gpt2(model_dir)
    model.graph_capture = GraphCapture(model.device, is_on=True)
    return model


@pytest.mark.parametrize("seed", range(4))
def test_captured_steps_equal_those_of_torch(model: GPT2, replays: list[tuple[int, int]], seed: int) -> None:
    """Rows are dropped, doubled and read anew, as beam search and long texts do; a draft extends a single row."""
    chance = random.Random(seed)
    contexts: list[Context] = [CapturedContext(model, 40, keep_hidden=True), TorchContext(model, 40, keep_hidden=True)]
    for _ in range(3):
        prompts = [random_ids(chance.randint(1, 20), chance.randrange(99)) for _ in range(chance.randint(1, 4))]
        assert_equal([context.start(prompts) for context in contexts])
        while (longest := max(contexts[0].lengths)) < 40:
            rows = len(contexts[0].lengths)
            kind = chance.choices(["step", "select", "read", "extend"], [12, 1, 1, 1])[0]
            if kind == "step":
                tokens = torch.tensor(random_ids(rows, longest))
                assert_equal([context.step(tokens) for context in contexts])
                for found, expected in zip(contexts[0].hidden(), contexts[1].hidden(), strict=True):
                    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
            elif kind == "select":
                chosen = [chance.randrange(rows) for _ in range(chance.randint(1, 5))]
                for context in contexts:
                    context.select(chosen)
            elif kind == "extend":
                if longest < 36:
                    guesses = {row: random_ids(4, longest) for row in range(0, rows, 2)}
                    for every in (False, True):
                        assert_equal([context.extend(guesses, every) for context in contexts])
                        for context in contexts:
                            context.take_back([4 - 2 * every if row in guesses else 0 for row in range(rows)])
            else:
                texts = {chance.randrange(rows): random_ids(chance.randint(1, longest), longest)}
                assert_equal([context.read(texts) for context in contexts])
            assert contexts[0].lengths == contexts[1].lengths
    assert len(set(replays)) > 1


def test_results_stay_when_the_next_step_runs(model: GPT2, replays: list[tuple[int, int]]) -> None:
    """A graph overwrites its output."""
    context = CapturedContext(model, 40, keep_hidden=True)
    context.start([[1, 2]])
    results = []
    for token in range(10):
        logits = context.step(torch.tensor([token]))
        results.append((logits, logits.clone(), context.hidden()[0], context.hidden()[0].clone()))
    assert replays
    assert all(torch.equal(a, b) and torch.equal(c, d) for a, b, c, d in results)


def test_numbers_of_rows_share_graphs(model: GPT2, replays: list[tuple[int, int]]) -> None:
    """Contrastive search goes back and forth between two numbers of rows."""
    context = CapturedContext(model, 64)
    context.start([list(range(10))] * 2)
    for rows in ([0, 0, 1, 1, 1], [0, 2, 3, 4], [1, 2]):
        context.select(rows)
        for token in range(3):
            context.step(torch.tensor([token] * len(rows)))
    assert replays == [(5, 16), (4, 16), (2, 32)]


def test_texts_that_end_one_after_the_other_need_few_graphs(model: GPT2, replays: list[tuple[int, int]]) -> None:
    context = CapturedContext(model, 64)
    context.start([[1]] * 20)
    for rows in range(19, 0, -1):
        for _ in range(3):
            context.step(torch.tensor([2] * (rows + 1)))
        context.select(range(rows))
    assert {rows for rows, _ in replays} == {20, 16, 8, 4, 2}
    assert len(replays) > 20


def test_guesses_are_read_in_graphs(model: GPT2, replays: list[tuple[int, int]]) -> None:
    """Several tokens at a time, of one row or of all; the padding of the last guesses would not fit."""
    contexts: list[Context] = [CapturedContext(model, 60), TorchContext(model, 60)]
    chance = random.Random(1)
    for prompts in ([[1, 2]], [[5], [3, 4]]):
        assert_equal([context.start(prompts) for context in contexts])
        replays.clear()
        while (longest := max(contexts[0].lengths)) < 60:
            counts = [chance.randint(3, 4) if longest < 56 else 1 for _ in prompts]
            guesses = {row: random_ids(count, longest) for row, count in enumerate(counts)}
            every = chance.random() < 0.5
            assert_equal([context.extend(guesses, every) for context in contexts])
            wrong = [chance.randrange(count) if longest < 50 else 0 for count in counts]
            for context in contexts:
                context.take_back(wrong)
            assert contexts[0].lengths == contexts[1].lengths
        assert {rows for rows, _ in replays} == {len(prompts)}
        assert len({bucket for _, bucket in replays}) > 1


def test_graphs_stay_for_the_next_text(model: GPT2, replays: list[tuple[int, int]]) -> None:
    context = CapturedContext(model, 60)
    context.start([[1]])
    for _ in range(5):
        context.step(torch.tensor([2]))
    replays.clear()
    fresh = CapturedContext(model, 60)
    assert_equal([fresh.start([[4, 5]]), context.start([[4, 5]])])
    assert_equal([fresh.step(torch.tensor([2])), context.step(torch.tensor([2]))])
    assert len(replays) == 1


def test_full_row_is_refused(model: GPT2) -> None:
    context = CapturedContext(model, 12)
    context.start([list(range(10)), [1]])
    for _ in range(2):
        context.step(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="a row has 12 tokens"):
        context.step(torch.tensor([1, 2]))


def test_last_steps_are_not_captured(model: GPT2, replays: list[tuple[int, int]]) -> None:
    """A capture takes as long as four steps."""
    context = CapturedContext(model, 14)
    context.start([list(range(10))])
    for token in range(4):
        context.step(torch.tensor([token]))
    assert replays == []


def test_model_with_graphs_gets_a_captured_context(model: GPT2, replays: list[tuple[int, int]]) -> None:
    assert isinstance(new_context(model, 8), CapturedContext)
    model.graph_capture.is_on = False
    assert not isinstance(new_context(model, 8), CapturedContext)


def assert_equal(logits: list[torch.Tensor]) -> None:
    torch.testing.assert_close(*logits, atol=1e-4, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here")
class TestContextOnAGPU:
    """Graphs that are really captured."""

    @pytest.mark.parametrize("has_kernel", [True, False], ids=["kernel", "torch"])
    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_captured_steps_equal_those_of_torch(
        self, precision: str, has_kernel: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first graphs go when more rows are needed; their memory pool must stay."""
        if has_kernel:
            pytest.importorskip("triton")
        else:
            monkeypatch.setattr(step_cache, "new_attention_kernel", lambda cache: None)
        model = read_gpt2(BUNDLED_DIRECTORY, "cuda", precision)
        contexts = CapturedContext(model, 200), TorchContext(model, 200)
        prompts = [[7, 8, 9], [20] * 30]
        for context in contexts:
            context.start(prompts)
        for step in range(160):
            rows = [0, 1, 1] if step == 20 else [2, 0] if step == 60 else None
            found, expected = (self.next_logits(context, rows, step) for context in contexts)
            tolerance = 0.2 if precision == "fp16" else 1e-2
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
            if step % 4 == 3:
                found, expected = (self.logits_of_guesses(context) for context in contexts)
                torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
        assert model.graph_capture.is_on
        assert any(forward._graph is not None for forward in contexts[0]._steps.values())
        assert (contexts[0]._step_cache._kernel is not None) is has_kernel

    @staticmethod
    def logits_of_guesses(context: Context) -> torch.Tensor:
        found = context.extend({0: [3, 4, 5]})
        context.take_back([3, *[0] * (len(context.lengths) - 1)])
        return found

    @staticmethod
    def next_logits(context: Context, rows: list[int] | None, token: int) -> torch.Tensor:
        if rows is not None:
            context.select(rows)
        return context.step(torch.tensor([token + row for row in range(len(context.lengths))]))
