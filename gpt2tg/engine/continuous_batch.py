"""Continuous batching: when a sequence ends, the next one in the queue takes its row.

Tokens are generated in chunks of steps (decode_step.py). The tokens of a chunk are fetched while the next chunk runs,
and those beyond the end of a sequence are dropped. Shapes as in model.py; S steps of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2tg.engine.cuda_graph import GraphCapture, current_device
from gpt2tg.engine.decode_step import ChooseOnDevice, DecodeStep, StepBuffers
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.prefill import prefill_groups
from gpt2tg.engine.step_cache import bucket_for
from gpt2tg.engine.upload import pinned, upload

# Steps of a chunk.
STEPS = 24

# A sample and its new ids, the newest last -> why the sequence ends there, or None.
Finish = Callable[[int, Sequence[int]], str | None]


@dataclass(frozen=True)
class QueuedText:
    """A sequence that waits for a row."""

    sample: int
    """Its number, which each of its `NewToken`s repeats."""
    prompt: Sequence[int]
    max_new_tokens: int
    uniform: Callable[[], float] | None = None
    """Returns the next number in [0, 1) of its own random stream, one for each token; None if nothing is drawn."""


class NewToken(NamedTuple):
    """One token of one sequence."""

    sample: int
    id: int
    logprob: float
    """Log-probability under the model itself, before any filter; NaN where the model's logits are not finite."""
    finish_reason: str | None


@dataclass
class ActiveText:
    """A sequence that has a row."""

    queued: QueuedText
    new_ids: list[int] = field(default_factory=list)
    launched: int = 0
    """Steps that were launched for it, fetched or not."""
    is_finished: bool = False

    @property
    def steps_left(self) -> int:
        """Steps that may still be launched."""
        return self.queued.max_new_tokens - self.launched

    @property
    def longest(self) -> int:
        """Tokens in the cache after the last possible step: the last token chosen is not read."""
        return len(self.queued.prompt) + self.queued.max_new_tokens - 1


class FetchedSteps:
    """The tokens of some steps, on their way to the host."""

    def __init__(self, buffers: StepBuffers, steps: int, texts: Sequence[ActiveText | None]) -> None:
        self._texts = texts
        self._ids = _fetched(buffers.ids[:steps])
        self._logprobs = _fetched(buffers.logprobs[:steps])
        self._arrived: torch.cuda.Event | None = None
        if buffers.device.type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not annotate it
            self._arrived.record()

    def tokens(self) -> Iterator[tuple[int, ActiveText, int, float]]:
        """Wait for the steps, and yield row, sequence, id and log-probability of every token, step by step."""
        if self._arrived is not None:
            self._arrived.synchronize()
        for ids, logprobs in zip(self._ids.tolist(), self._logprobs.tolist(), strict=True):
            for row, (text, token, logprob) in enumerate(zip(self._texts, ids, logprobs, strict=True)):
                if text is not None:
                    yield row, text, token, logprob


class ContinuousBatch:
    """Generates any number of sequences in a fixed number of rows."""

    def __init__(
        self,
        model: GPT2,
        rows: int,
        capacity: int,
        choose: ChooseOnDevice,
        end_ids: Collection[int],
        steps: int = STEPS,
        capture: GraphCapture | None = None,
    ) -> None:
        """
        Args:
            rows: sequences that are generated at the same time.
            capacity: tokens of the longest sequence; rounded up to a bucket.
            choose: filters the logits and chooses a token.
            end_ids: tokens that end a sequence.
            steps: the steps of a chunk.
            capture: captures steps as CUDA graphs; None is the model's own.
        """
        self._model, self._choose, self._end_ids, self._steps = model, choose, end_ids, steps
        self._capture = capture or model.graph_capture
        with torch.inference_mode():
            self._buffers = StepBuffers(model, rows, bucket_for(capacity, model.shape.n_positions), steps)
        self._texts: list[ActiveText | None] = [None] * rows
        self._decode_steps: dict[int, DecodeStep] = {}  # by bucket

    def write(self, queue: Iterable[QueuedText], finish: Finish) -> Iterator[NewToken]:
        """Generate all sequences, and yield their tokens. The next chunk is launched before a chunk is yielded.

        Args:
            queue: sequences with at least one token of prompt; taken from the iterable when a row is free.
            finish: decides whether a sequence ends. It must end one at an end token, and at `max_new_tokens`.
        """
        waiting = iter(queue)
        self._texts = [None] * len(self._texts)  # forget a run that was abandoned
        running: FetchedSteps | None = None
        while True:
            self._fill_rows(waiting)
            following = self._launch()
            if running is not None:
                yield from self._settle(running, finish)
            elif following is None:
                return
            running = following

    @torch.inference_mode()
    def _fill_rows(self, waiting: Iterator[QueuedText]) -> None:
        """Prefill the next sequences in the queue into the free rows."""
        free = [row for row, text in enumerate(self._texts) if text is None]
        # The rows come first: zip drops an item of its first argument when the second one is exhausted.
        taken = {row: ActiveText(queued) for row, queued in zip(free, waiting, strict=False)}
        if not taken:
            return
        with current_device(self._model.device):
            self._prefill({row: tuple(text.queued.prompt[:-1]) for row, text in taken.items()})
            texts, device = list(taken.values()), self._model.device
            self._buffers.assign(
                upload(list(taken), device),
                upload([text.queued.prompt[-1] for text in texts], device),
                upload([len(text.queued.prompt) - 1 for text in texts], device),
                upload([text.longest for text in texts], device),
            )
        for row, text in taken.items():
            self._texts[row] = text

    def _prefill(self, prompts: dict[int, tuple[int, ...]]) -> None:
        """Write the keys and values of prompts, by row, to the cache. Equal prompts are read once."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, ids in prompts.items():
            if ids:
                rows.setdefault(ids, []).append(row)
        for group in prefill_groups({ids: ids for ids in rows}):
            self._prefill_group(group, [rows[ids] for ids in group])

    def _prefill_group(self, prompts: Sequence[tuple[int, ...]], rows_of_each: Sequence[Sequence[int]]) -> None:
        """Read prompts in one forward pass."""
        cache, longest, device = self._buffers.cache.tensor, max(map(len, prompts)), self._model.device
        ids = upload([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device)
        rows = upload([row for rows in rows_of_each for row in rows], device)
        sources = upload([source for source, rows in enumerate(rows_of_each) for _ in rows], device)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # Padding is on the right, where the causal mask hides it from every token of the prompt.
            cache[layer, 0][rows, :, :longest] = key[sources]
            cache[layer, 1][rows, :, :longest] = value[sources]
            return self._model.causal_attention(layer, query, key, value)

        self._model.hidden(ids, torch.arange(longest, device=device).expand(len(prompts), -1), attend)

    @torch.inference_mode()
    def _launch(self) -> FetchedSteps | None:
        """Launch the next steps of all active sequences; None if there are none.

        A sequence that reaches `max_new_tokens` with these steps frees its row at once.
        """
        active = [text for text in self._texts if text is not None]
        if not active:
            return None
        steps = min(self._steps, max(text.steps_left for text in active))
        longest = max(text.longest - max(0, text.steps_left - steps) for text in active)
        with current_device(self._model.device):
            decode_step = self._decode_step(self._buffers.cache.bucket(longest))
            self._buffers.begin_chunk(self._uniform(steps))
            for ahead in range(steps, 0, -1):
                decode_step.run(ahead)
            chunk = FetchedSteps(self._buffers, steps, list(self._texts))
        for row, text in enumerate(self._texts):
            if text is not None:
                text.launched += steps
                if text.steps_left <= 0:
                    self._texts[row] = None
        return chunk

    def _decode_step(self, bucket: int) -> DecodeStep:
        """Return the step of a bucket."""
        decode_step = self._decode_steps.get(bucket)
        if decode_step is None:
            arguments = self._model, self._buffers, bucket, self._choose, self._end_ids
            decode_step = DecodeStep(*arguments, self._capture)
            self._decode_steps[bucket] = decode_step
        return decode_step

    def _uniform(self, steps: int) -> Tensor | None:
        """Return the random numbers of the next steps, (S, B); None if nothing is drawn."""
        streams = [None if text is None else text.queued.uniform for text in self._texts]
        if not any(streams):
            return None
        numbers = [[stream() if stream else 0.0 for stream in streams] for _ in range(steps)]
        return upload(numbers, self._model.device, torch.float64)

    def _settle(self, chunk: FetchedSteps, finish: Finish) -> Iterator[NewToken]:
        """Yield the tokens of a chunk, without those beyond the end of a sequence, and free the rows that ended."""
        for row, text, token, logprob in chunk.tokens():
            if text.is_finished:
                continue
            text.new_ids.append(token)
            reason = finish(text.queued.sample, text.new_ids)
            if reason is not None:
                text.is_finished = True
                if self._texts[row] is text:
                    self._texts[row] = None
            yield NewToken(text.queued.sample, token, logprob, reason)


def _fetched(tensor: Tensor) -> Tensor:
    """Return a copy on the host; from a CUDA GPU it arrives later."""
    copy = pinned(torch.empty(tensor.shape, dtype=tensor.dtype), tensor.device)
    return copy.copy_(tensor, non_blocking=True)
