"""Continuous batches and captured decode steps. On a CPU the same steps run one by one; tests that need a CUDA GPU are
skipped without one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import FABLES, read_gpt2

from gpt2tg.checkpoint.config import read_shape
from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
from gpt2tg.decoding import sampling
from gpt2tg.decoding.stopping import Endings, StopStrings
from gpt2tg.engine import prefill, step_cache
from gpt2tg.engine.contexts import new_context
from gpt2tg.engine.continuous_batch import ContinuousBatch, QueuedText
from gpt2tg.engine.cuda_graph import GraphCapture
from gpt2tg.engine.decode_step import ChooseOnDevice, DecodeStep, StepBuffers
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.step_cache import bucket_for
from gpt2tg.generation.cuda_steps import choice
from gpt2tg.generation.filter_chain import distribution_filters
from gpt2tg.options import DecodingOptions, decoding_options

GREEDY = decoding_options({"decoding": "greedy"})
DRAWN = decoding_options({"decoding": "sample", "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.01})
TYPICAL = decoding_options({"decoding": "sample", "typical_p": 0.7})
END_IDS = tuple(range(12))  # one token in 25 of the tiny model's vocabulary: texts end anywhere in a chunk

Texts = dict[int, tuple[list[int], list[float], str | None]]
"""Ids, log-probabilities and finish reason, by sample."""


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of 8, 16, 32 and 64, the positions of the tiny model."""
    monkeypatch.setattr(step_cache, "SMALLEST_BUCKET", 8)


def prompts_and_lengths(count: int, vocabulary: int = 300, longest: int = 30) -> list[tuple[list[int], int]]:
    """Return prompts of 1 to `longest` tokens, each with 1 to 34 new tokens."""
    chance = random.Random(count)
    return [
        ([chance.randrange(vocabulary) for _ in range(chance.randint(1, longest))], chance.randint(1, 34))
        for _ in range(count)
    ]


def choose_with(options: DecodingOptions) -> ChooseOnDevice:
    return choice(distribution_filters(options, len(END_IDS)), options.strategy.samples)


def in_a_batch(
    batch: ContinuousBatch,
    work: Sequence[tuple[list[int], int]],
    options: DecodingOptions,
    end_ids: Sequence[int] = END_IDS,
) -> Texts:
    entries = (
        QueuedText(sample, prompt, room, sampling.stream(7, sample, 0).random if options.strategy.samples else None)
        for sample, (prompt, room) in enumerate(work)
    )
    finish = Endings(end_ids, StopStrings((), lambda *_: ""), [room for _, room in work])
    return collected(batch.write(entries, finish))


def one_by_one(
    model: GPT2, work: Sequence[tuple[list[int], int]], options: DecodingOptions, end_ids: Sequence[int] = END_IDS
) -> Texts:
    """Generate every text alone, without a continuous batch."""
    shaping = distribution_filters(options, len(end_ids))
    texts: Texts = {}
    for sample, (prompt, room) in enumerate(work):
        choose = sampling.Draw([sampling.stream(7, sample, 0)]) if options.strategy.samples else sampling.most_probable
        written = sampling.decode(
            new_context(model, len(prompt) + room),
            [prompt],
            [0],
            [lambda x, _, change=change: change(x) for change in shaping],
            choose,
            Endings(end_ids, StopStrings((), lambda *_: ""), [room]),
        )
        texts[sample] = collected(written)[0]
    return texts


def collected(written: Iterator) -> Texts:
    texts: Texts = {}
    for token in written:
        ids, logprobs, reason = texts.get(token.sample, ([], [], None))
        assert reason is None, "a token after the end"
        texts[token.sample] = [*ids, token.id], [*logprobs, token.logprob], token.finish_reason
    return texts


def assert_equal(texts: Texts, expected: Texts, tolerance: float = 1e-4) -> None:
    assert texts.keys() == expected.keys()
    for sample, (ids, logprobs, reason) in expected.items():
        assert (texts[sample][0], texts[sample][2]) == (ids, reason), sample
        assert texts[sample][1] == pytest.approx(logprobs, abs=tolerance)


@pytest.mark.parametrize("options", [GREEDY, DRAWN, TYPICAL], ids=["greedy", "drawn", "typical"])
@pytest.mark.parametrize(("rows", "steps"), [(1, 24), (3, 1), (3, 5), (7, 24), (40, 24)])
@pytest.mark.usefixtures("small_buckets")
def test_texts_equal_those_generated_one_by_one(gpt2: GPT2, options: DecodingOptions, rows: int, steps: int) -> None:
    """Prompts of one and more tokens; texts end by length and by an end token; rows are reused many times."""
    work = prompts_and_lengths(40)
    batch = ContinuousBatch(gpt2, rows, 64, choose_with(options), END_IDS, steps)
    texts = in_a_batch(batch, work, options)
    assert_equal(texts, one_by_one(gpt2, work, options))
    assert {reason for _, _, reason in texts.values()} == {"eos", "length"}


def test_buckets_double_up_to_the_positions() -> None:
    assert [bucket_for(length, 1000) for length in (1, 128, 129, 512, 513, 1000)] == [128, 128, 256, 512, 1000, 1000]
    assert bucket_for(5, 64) == 64


@pytest.mark.usefixtures("small_buckets")
def test_growing_text_uses_larger_buckets(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step uses the smallest bucket that holds the chunk."""
    seen: list[int] = []
    genuine = DecodeStep.run
    monkeypatch.setattr(DecodeStep, "run", lambda self, ahead: (seen.append(self._bucket), genuine(self, ahead))[1])
    work = [([5, 6, 7], 60)]
    batch = ContinuousBatch(gpt2, 1, 63, choose_with(GREEDY), (), steps=4)
    assert_equal(in_a_batch(batch, work, GREEDY, ()), one_by_one(gpt2, work, GREEDY, ()))
    # The cache holds 2 tokens of the prompt at first, and 4 more after each chunk.
    assert seen[::4] == [8] + [16] * 2 + [32] * 4 + [64] * 8


def test_rows_are_reused_while_a_long_text_runs(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text of 40 tokens and four of 10, in two rows: 40 steps suffice."""
    steps: list[DecodeStep] = []
    genuine = DecodeStep.run
    monkeypatch.setattr(DecodeStep, "run", lambda self, ahead: (steps.append(self), genuine(self, ahead))[1])
    work = [([1, 2], 40), *[([3, 4, 5], 10)] * 4]
    in_a_batch(ContinuousBatch(gpt2, 2, 64, choose_with(GREEDY), (), steps=5), work, GREEDY, ())
    assert len(steps) == 40


def test_text_ended_by_the_caller_frees_its_row(gpt2: GPT2) -> None:
    """Stop strings and time limits do that. The steps do not know it, and tokens beyond the end are dropped."""
    work = prompts_and_lengths(12)
    whole = one_by_one(gpt2, work, GREEDY, ())
    entries = [QueuedText(sample, prompt, room) for sample, (prompt, room) in enumerate(work)]

    def finish(sample: int, ids: Sequence[int]) -> str | None:
        return "stop" if len(ids) == 3 + sample else "length" if len(ids) == work[sample][1] else None

    texts = collected(ContinuousBatch(gpt2, 2, 64, choose_with(GREEDY), (), steps=7).write(entries, finish))
    assert {sample: ids for sample, (ids, _, _) in texts.items()} == {
        sample: ids[: 3 + sample] for sample, (ids, _, _) in whole.items()
    }
    assert "stop" in {reason for _, _, reason in texts.values()}


def test_next_chunk_runs_while_tokens_are_yielded(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[DecodeStep] = []
    genuine = DecodeStep.run
    monkeypatch.setattr(DecodeStep, "run", lambda self, ahead: (steps.append(self), genuine(self, ahead))[1])
    batch = ContinuousBatch(gpt2, 1, 64, choose_with(GREEDY), (), steps=5)
    written = batch.write([QueuedText(0, [1, 2], 40)], lambda _, ids: "length" if len(ids) == 40 else None)
    counts = [len(steps) for _ in written]
    assert counts == [*(n for n in range(10, 41, 5) for _ in range(5)), *[40] * 5]


def test_queue_is_read_when_a_row_is_free(gpt2: GPT2) -> None:
    """So a run over very many prompts does not hold them all in memory."""
    taken: list[int] = []

    def queue() -> Iterator[QueuedText]:
        for sample in range(6):
            taken.append(sample)
            yield QueuedText(sample, [sample + 1], 10)

    batch = ContinuousBatch(gpt2, 2, 64, choose_with(GREEDY), (), steps=5)
    written = batch.write(queue(), lambda _, ids: "length" if len(ids) == 10 else None)
    next(written)
    assert taken == [0, 1]
    assert {token.sample for token in written} == set(range(6))


def test_samples_of_one_prompt_share_a_prefill(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[torch.Size] = []
    genuine = GPT2.hidden
    monkeypatch.setattr(GPT2, "hidden", lambda self, ids, *rest: (read.append(ids.shape), genuine(self, ids, *rest))[1])
    work = [([9, 8, 7, 6], 5)] * 3 + [([9, 8], 5)]
    batch = ContinuousBatch(gpt2, 4, 64, choose_with(DRAWN), (), steps=5)
    texts = in_a_batch(batch, work, DRAWN, ())
    assert [tuple(shape) for shape in read] == [(2, 3)] + [(4, 1)] * 5  # a step reads the last token of the prompt
    monkeypatch.undo()
    assert_equal(texts, one_by_one(gpt2, work, DRAWN, ()))


def test_many_prompts_are_prefilled_in_groups(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", 40)
    read: list[int] = []
    genuine = GPT2.hidden
    monkeypatch.setattr(
        GPT2, "hidden", lambda self, ids, *rest: (read.append(ids.numel()), genuine(self, ids, *rest))[1]
    )
    work = prompts_and_lengths(20)
    texts = in_a_batch(ContinuousBatch(gpt2, 20, 64, choose_with(GREEDY), END_IDS), work, GREEDY)
    assert max(read) <= 40
    monkeypatch.undo()
    assert_equal(texts, one_by_one(gpt2, work, GREEDY))


def test_short_prompts_are_not_padded_to_a_long_one(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "FREE_TOKENS", 0)
    read: list[tuple[int, ...]] = []
    genuine = GPT2.hidden
    monkeypatch.setattr(
        GPT2, "hidden", lambda self, ids, *rest: (read.append(tuple(ids.shape)), genuine(self, ids, *rest))[1]
    )
    work = [([5, 6, 7], 4), (list(range(31)), 4), ([9, 9, 9], 4), ([8, 7], 4), (list(range(40, 71)), 4)]
    texts = in_a_batch(ContinuousBatch(gpt2, 5, 64, choose_with(GREEDY), ()), work, GREEDY, ())
    assert read[:2] == [(3, 2), (2, 30)]  # a step reads the last token of each prompt
    monkeypatch.undo()
    assert_equal(texts, one_by_one(gpt2, work, GREEDY, ()))


def test_batch_works_after_an_abandoned_run(gpt2: GPT2) -> None:
    work = prompts_and_lengths(9)
    batch = ContinuousBatch(gpt2, 3, 64, choose_with(GREEDY), END_IDS, steps=4)
    abandoned = batch.write([QueuedText(n, [n + 1] * 20, 30) for n in range(5)], lambda *_: None)
    list(islice(abandoned, 5))
    abandoned.close()
    assert_equal(in_a_batch(batch, work, GREEDY), one_by_one(gpt2, work, GREEDY))


@pytest.mark.usefixtures("small_buckets")
def test_each_bucket_is_captured_once_it_pays(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first steps of a bucket, libraries initialise themselves, and a short text ends."""
    log: list[str] = []
    genuine = DecodeStep._step
    monkeypatch.setattr(DecodeStep, "capture", lambda self: log.append(f"capture {self._bucket}"))
    monkeypatch.setattr(DecodeStep, "_step", lambda self: (log.append(f"run {self._bucket}"), genuine(self))[1])
    batch = ContinuousBatch(gpt2, 1, 64, choose_with(GREEDY), (), 4, GraphCapture(gpt2.device, is_on=True))
    in_a_batch(batch, [([1, 2, 3, 4, 5], 13)], GREEDY, ())
    # Nothing is really captured here, so each further step of a bucket tries it.
    assert log == ["run 8"] * 4 + ["run 16"] * 4 + ["capture 16", "run 16"] * 4 + ["run 32"]


@pytest.mark.parametrize(("end_ids", "lengths"), [((), [16, 3]), (range(300), [1, 1])], ids=["full", "ended"])
def test_inactive_row_does_not_grow(gpt2: GPT2, end_ids: Sequence[int], lengths: list[int]) -> None:
    """It is computed in every step, like the others."""
    buffers = StepBuffers(gpt2, 2, 16, 4)
    decode_step = DecodeStep(gpt2, buffers, 16, choose_with(GREEDY), end_ids, gpt2.graph_capture)
    buffers.assign(*map(torch.tensor, ([0, 1], [5, 6], [0, 0], [16, 3])))
    for _ in range(20):
        buffers.begin_chunk(None)
        with torch.inference_mode():
            decode_step.run(1)
    assert buffers.lengths.tolist() == lengths


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("options", [GREEDY, DRAWN, TYPICAL], ids=["greedy", "drawn", "typical"])
def test_step_contains_no_host_sync(model_dir: Path, options: DecodingOptions, precision: str) -> None:
    """Meta tensors have no values, so that reading one is an error, as it is while a graph is captured."""
    model = read_gpt2(model_dir, "meta", precision)
    batch = ContinuousBatch(model, 3, 64, choose_with(options), END_IDS, steps=4)
    texts = {0: (5, 6, 7), 1: (), 2: (5, 6)}
    with torch.inference_mode():
        batch._prefill(texts)
        batch._decode_step(64).run(1)
    assert batch._buffers.cache.tensor.dtype == (torch.float16 if precision == "fp16" else torch.float32)


def test_host_sync_in_a_choice_is_detected(model_dir: Path) -> None:
    """The test above would fail."""
    batch = ContinuousBatch(
        read_gpt2(model_dir, "meta"), 1, 64, lambda x, _: x.argmax(dim=1) if x.max().item() > 0 else x[:, 0], END_IDS
    )
    with torch.inference_mode(), pytest.raises(RuntimeError, match="meta"):
        batch._decode_step(64).run(1)


def bundled_prompts(count: int) -> list[list[int]]:
    """Return beginnings of the fables, of unequal lengths, as ids of the bundled model."""
    shape = read_shape(BUNDLED_DIRECTORY)
    tokenizer = load_tokenizer(BUNDLED_DIRECTORY, shape.vocab_size, None)
    texts = [tokenizer.encode(fable) for fable in FABLES]
    prompts = [text[start:end] for text in texts for start in range(8) for end in range(start + 1, len(text))]
    return [list(ids) for ids in dict.fromkeys(map(tuple, prompts))][:count]


def test_enough_prompts_exist_for_a_gpu() -> None:
    assert len(bundled_prompts(128)) == 128


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU here")


@needs_gpu
@pytest.mark.parametrize("has_kernel", [True, False], ids=["kernel", "torch"])
class TestOnAGPU:
    """Captured steps with trained weights, with our attention kernel and without."""

    @pytest.fixture(autouse=True)
    def attention(self, has_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if has_kernel:
            pytest.importorskip("triton")
        else:
            monkeypatch.setattr(step_cache, "new_attention_kernel", lambda cache: None)

    END = (read_shape(BUNDLED_DIRECTORY).end_ids or (0,))[:1]

    def work(self, count: int = 128) -> list[tuple[list[int], int]]:
        return [(prompt, 20 + number % 150) for number, prompt in enumerate(bundled_prompts(count))]

    def batch(self, precision: str, options: DecodingOptions, rows: int = 16, captured: bool = True) -> ContinuousBatch:
        model = read_gpt2(BUNDLED_DIRECTORY, "cuda", precision)
        return ContinuousBatch(
            model, rows, 256, choose_with(options), self.END, capture=GraphCapture(model.device, captured)
        )

    def test_greedy_ids_in_fp32_equal_those_of_the_cpu(self, has_kernel: bool) -> None:
        """Rows are reused, and without the kernel texts grow from one bucket into the next."""
        batch = self.batch("fp32", GREEDY)
        texts = in_a_batch(batch, self.work(), GREEDY, self.END)
        assert all(step._graph is not None for step in batch._decode_steps.values())
        assert (batch._buffers.cache._kernel is not None) is has_kernel
        expected = one_by_one(read_gpt2(BUNDLED_DIRECTORY), self.work(), GREEDY, self.END)
        assert_equal(texts, expected, tolerance=1e-2)

    @pytest.mark.parametrize("options", [GREEDY, DRAWN, TYPICAL], ids=["greedy", "drawn", "typical"])
    def test_captured_steps_equal_steps_without_graphs(self, options: DecodingOptions) -> None:
        captured = in_a_batch(self.batch("fp32", options), self.work(), options, self.END)
        step_by_step = in_a_batch(self.batch("fp32", options, captured=False), self.work(), options, self.END)
        assert_equal(captured, step_by_step)

    @pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
    def test_fp16_generates_nearly_the_same(self, options: DecodingOptions) -> None:
        """For nearly every text, the first token and about its log-probability are the same."""
        half = in_a_batch(self.batch("fp16", options), self.work(), options, self.END)
        whole = in_a_batch(self.batch("fp32", options), self.work(), options, self.END)
        same = [sample for sample in whole if half[sample][0][0] == whole[sample][0][0]]
        assert len(same) >= 0.9 * len(whole)
        assert all(half[sample][1][0] == pytest.approx(whole[sample][1][0], abs=0.1) for sample in same)
        assert all(reason for _, _, reason in half.values())

    # torch says so once, and this mode finds most syncs.
    @pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
    def test_chunks_run_without_a_host_sync(self) -> None:
        """Only the tokens of a chunk are waited for: torch raises an error at every other sync."""
        batch = self.batch("fp16", DRAWN)
        for _ in range(2):  # captures what is needed
            in_a_batch(batch, self.work(), DRAWN, self.END)
        torch.cuda.set_sync_debug_mode("error")
        try:
            in_a_batch(batch, self.work(), DRAWN, self.END)
        finally:
            torch.cuda.set_sync_debug_mode("default")
