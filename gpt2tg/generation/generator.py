"""Prompt in, text out: joins the engine and the decoders. Streaming is the primitive; `generate` collects it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from gpt2tg.checkpoint.checkpoint import Checkpoint, resolve_checkpoint
from gpt2tg.checkpoint.tokenizer import TextTokenizer, load_tokenizer, note_on_unused, unused_ids
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.decoding import beam, contrastive, lookup, sampling
from gpt2tg.decoding.interface import ALL_BANNED, NotFiniteError, Token
from gpt2tg.decoding.stopping import Deadline, Endings, StopStrings, with_marks
from gpt2tg.engine.cpu.preload import Preload
from gpt2tg.engine.cuda_graph import ContinuousBatch, Entry
from gpt2tg.engine.model import GPT2, Context
from gpt2tg.engine.sliding import SlidingRows
from gpt2tg.errors import RunError, UserError
from gpt2tg.generation import cuda_steps
from gpt2tg.generation.filter_chain import filter_chain
from gpt2tg.generation.footprint import check_footprint
from gpt2tg.generation.visible_text import VisibleText
from gpt2tg.options import DEFAULT_MAX_LENGTH, DecodingOptions

# Why a text ends that neither the model nor a stop string has ended.
CUT_SHORT = ("length", "time", ALL_BANNED)


@dataclass(frozen=True)
class Sample:
    """One finished text."""

    prompt: str
    completion: str
    prompt_index: int
    index: int
    """The number of the text among those of its prompt: the sample that was drawn, or the rank among beams."""
    prompt_tokens: int
    """Tokens of the prompt that the model read; fewer than it has where `overflow` truncated it."""
    ids: tuple[int, ...]
    """New tokens, those of the end included."""
    finish_reason: str
    """`eos`, the model ended the text; `length`, no more room; `stop`, a stop string; `time`, time was up; `banned`,
    every next token was banned."""
    logprob: float
    """Sum of the log-probabilities of the new tokens under the model itself, in nats."""
    seed: int | None = None
    """The seed of a drawn text."""
    ranking_score: float | None = None
    """What beam search ranks by: the filtered log-probability after the length penalty; None without beams."""
    is_unfinished: bool = False
    """With `end_at_sentence`: the text was cut short before any sentence was complete, and is left as it was."""

    @property
    def text(self) -> str:
        """The prompt and what was written to it."""
        return self.prompt + self.completion

    @property
    def replay(self) -> str | None:
        """What `--replay` takes to write this text again; None for a text that was not drawn."""
        return None if self.seed is None else f"{self.seed}/{self.prompt_index}/{self.index}"


@dataclass(frozen=True)
class Chunk:
    """A piece of a text while it is being written; the last one of each text carries the finished sample."""

    prompt_index: int
    index: int
    text: str
    sample: Sample | None = None


@dataclass(frozen=True)
class Request:
    """A prompt, fitted to the model."""

    prompt: str
    index: int
    """The number of the prompt in its run; part of what its texts are drawn from."""
    ids: tuple[int, ...]
    """The tokens to read."""
    room: int
    """How many new tokens there may be."""
    dropped: int = 0
    """Tokens of the prompt that were dropped on the left."""
    first: int = 0
    """The number of its first text; above 0 only when a later one is written again alone."""


class Generator:
    """A model with its tokenizer, ready to write."""

    def __init__(self, model: GPT2, tokenizer: TextTokenizer, notes: Sequence[str] = ()) -> None:
        """
        Args:
            notes: what the user should know about the model's files.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.notes = list(notes)
        self.unused = self._find_unused()
        """Which ids have no token, (V,); None if there are none."""
        self.captured_steps = cuda_steps.CapturedSteps(model, tokenizer, self._end_ids, self.unused)
        self._spare: Context | None = None  # the cache of the last text, while nobody writes to it

    def _find_unused(self) -> torch.Tensor | None:
        size = self.model.shape.vocab_size
        unused = unused_ids(self.tokenizer, size, self._end_ids)
        if not unused:
            return None
        self.notes.append(note_on_unused(len(unused), size))
        mask = torch.zeros(size, dtype=torch.bool)
        mask[unused] = True
        return mask.to(self.model.device)

    def generate(self, prompt: str, options: DecodingOptions) -> list[Sample]:
        """Write texts to one prompt.

        Returns:
            The samples: by index when drawn, the best first when searched by beams or chosen with `best_of`.

        Raises:
            UserError: the prompt leaves no room, or prompt and new tokens exceed the model's positions.
            RunError: the model's logits are not finite, or memory ran out.
        """
        return self.generate_batch([self.fit(prompt, options)], options)[0]

    def generate_batch(self, requests: Sequence[Request], options: DecodingOptions) -> list[list[Sample]]:
        """Write texts to several prompts side by side. Returns the samples of each, as `generate` does."""
        samples: dict[int, list[Sample]] = {request.index: [] for request in requests}
        for chunk in self.stream_batch(requests, options):
            if chunk.sample:
                samples[chunk.prompt_index].append(chunk.sample)
        return [_given(samples[request.index], options) for request in requests]

    def generate_each(
        self, requests: Sequence[Request], options: DecodingOptions, batch_size: int
    ) -> Iterator[list[Sample]]:
        """Write texts to many prompts, about `batch_size` side by side, and give the samples of each in their order.

        The texts of a prompt stay together, so that there may be more of them. In captured steps a prompt takes the
        place of another as soon as that one is done; otherwise, and where there is a time limit, batch follows batch.
        """
        options = with_seed(options)
        if requests and options.max_time is None and self._in_captured_steps(requests, options):
            yield from self._refilled(requests, options, max(batch_size, options.draws))
            return
        together = max(1, batch_size // options.draws)
        if requests:
            check_footprint(
                self.model, options, min(together, len(requests)), max(request.room for request in requests), batch_size
            )
        for start in range(0, len(requests), together):
            yield from self.generate_batch(requests[start : start + together], options)

    def _refilled(self, requests: Sequence[Request], options: DecodingOptions, rows: int) -> Iterator[list[Sample]]:
        finished: dict[int, list[Sample]] = {request.index: [] for request in requests}
        waiting = iter(requests)
        first = next(waiting, None)
        for chunk in self.stream_batch(requests, options, rows):
            if chunk.sample:
                finished[chunk.prompt_index].append(chunk.sample)
            while first is not None and len(finished[first.index]) == options.draws:
                yield _given(finished.pop(first.index), options)
                first = next(waiting, None)

    def stream(self, prompt: str, options: DecodingOptions) -> Iterator[Chunk]:
        """Write as `generate` does, and give each piece of text as soon as its characters are whole.

        The pieces of a text, put together, are its completion. Beam search gives what all its beams agree on; what
        it has still to decide comes with the finished text. With `best_of`, all texts drawn are streamed.
        """
        return self.stream_batch([self.fit(prompt, options)], options)

    def stream_batch(
        self, requests: Sequence[Request], options: DecodingOptions, rows: int | None = None
    ) -> Iterator[Chunk]:
        """Stream texts to several prompts side by side; each chunk says which prompt and text it belongs to.

        Args:
            rows: how many texts have a row at a time where they are written in captured steps; None is all of them.
        """
        options = with_seed(options)
        write = self._search if options.strategy.beams else self._decode
        try:
            with self._rows(requests, options, rows) as lent:
                yield from write(lent, requests, options)
        except NotFiniteError as error:
            raise RunError(str(error)) from None
        except torch.OutOfMemoryError:
            raise RunError(
                "out of memory: lower --batch_size, --num_sequences or --max_length, or use --device cpu"
            ) from None

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt. The empty prompt is the end-of-text token, after which texts begin."""
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:  # bytes of the command line or of stdin that were no text
            raise UserError("is not UTF-8", "prompt") from None
        return self.tokenizer.encode_prompt(prompt)

    def fit(self, prompt: str, options: DecodingOptions, index: int = 0) -> Request:
        """Find the room that a prompt leaves, and treat one that leaves none as `options.overflow` says.

        Raises:
            UserError: no room; the message has the numbers.
        """
        first = 0
        if replayed := options.replayed():
            _, index, first = replayed
            if options.strategy.beams and first >= options.num_beams:
                raise UserError(f"{options.replay}: there is no text {first} of {options.num_beams} beams", "replay")
        ids = self.encode(prompt)
        positions = self.model.shape.n_positions
        room, option = self._room(len(ids), options), "max_new_tokens" if options.max_new_tokens else "max_length"
        if options.min_new_tokens > room:
            raise UserError(
                f"{options.min_new_tokens} is more than the {room} new tokens there is room for", "min_new_tokens"
            )
        check_footprint(self.model, options, 1, room)
        excess = len(ids) + room - positions
        if excess <= 0 or options.overflow == "slide":
            return Request(prompt, index, tuple(ids), room, first=first)
        if options.overflow == "truncate" and room < positions:
            return Request(prompt, index, tuple(ids[excess:]), room, dropped=excess, first=first)
        raise UserError(
            f"{getattr(options, option)}: a prompt of {len(ids)} tokens and {room} new ones are over the {positions} "
            "positions of the model: ask for fewer, or use --overflow slide"
            + (", or --overflow truncate" if room < positions else ""),
            option,
        )

    def _room(self, prompt_tokens: int, options: DecodingOptions) -> int:
        if options.max_new_tokens is not None:
            return options.max_new_tokens
        positions = self.model.shape.n_positions
        longest = options.max_length if options.max_length is not None else min(DEFAULT_MAX_LENGTH, positions)
        if longest <= prompt_tokens:
            raise UserError(
                f"{longest} leaves no room for text after a prompt of {prompt_tokens} tokens: "
                "raise it, or count new tokens alone with --max_new_tokens",
                "max_length",
            )
        return longest - prompt_tokens

    def _decode(
        self, rows: Context | SlidingRows | ContinuousBatch, requests: Sequence[Request], options: DecodingOptions
    ) -> Iterator[Chunk]:
        """Texts that are written token by token: greedy, drawn, contrastive."""
        owners = [owner for owner in range(len(requests)) for _ in range(options.draws)]
        numbers = [request.first + number for request in requests for number in range(options.draws)]
        visible = [self._visible(requests[owner], options) for owner in owners]
        new_ids: list[list[int]] = [[] for _ in owners]
        logprobs = [0.0] * len(owners)
        for token in self._tokens(rows, requests, owners, numbers, options):
            sample, request = token.sample, requests[owners[token.sample]]
            piece = ""
            if token.id is not None:
                new_ids[sample].append(token.id)
                logprobs[sample] += token.logprob
                piece = visible[sample].push(token.id)
            if not token.finish_reason:
                if piece:
                    yield Chunk(request.index, numbers[sample], piece)
                continue
            piece += visible[sample].finish(token.finish_reason in CUT_SHORT)
            finished = Sample(
                prompt=request.prompt,
                completion=visible[sample].shown,
                prompt_index=request.index,
                index=numbers[sample],
                prompt_tokens=len(request.ids),
                ids=tuple(new_ids[sample]),
                finish_reason=token.finish_reason,
                logprob=logprobs[sample],
                seed=options.seed if options.strategy.samples else None,
                is_unfinished=visible[sample].is_unfinished,
            )
            yield Chunk(request.index, numbers[sample], piece, finished)

    def _tokens(
        self,
        rows: Context | SlidingRows | ContinuousBatch,
        requests: Sequence[Request],
        owners: Sequence[int],
        numbers: Sequence[int],
        options: DecodingOptions,
    ) -> Iterator[Token]:
        prompts = [request.ids for request in requests]
        finish = self._endings(options, [requests[owner] for owner in owners])
        seed, samples = options.seed or 0, options.strategy.samples
        streams = (
            sampling.stream(seed, requests[owner].index, number) for owner, number in zip(owners, numbers, strict=True)
        )
        if isinstance(rows, ContinuousBatch):
            entries = (
                QueuedText(sample, prompts[owner], requests[owner].room, stream.random if samples else None)
                for sample, (owner, stream) in enumerate(zip(owners, streams, strict=True))
            )
            return cuda_steps.decode(rows, entries, finish)
        filters = filter_chain(options, self.tokenizer, self._end_ids, self.unused)
        if options.decoding == "contrastive":
            top_k, alpha = options.effective_top_k or 1, options.penalty_alpha
            return contrastive.contrastive_search(rows, prompts, filters, top_k, alpha, finish)
        choose: sampling.Choose = sampling.Draw(list(streams)) if samples else sampling.most_probable
        if len(owners) == 1 and isinstance(rows, Context) and (rows.is_exact or options.prompt_lookup):
            room = requests[0].room
            return lookup.decode_with_lookup(rows, prompts[0], filters, choose, finish, room, options.guesses)
        return sampling.decode(rows, prompts, owners, filters, choose, finish)

    def _search(
        self, rows: Context | SlidingRows, requests: Sequence[Request], options: DecodingOptions
    ) -> Iterator[Chunk]:
        """Texts that are searched by beams."""
        rooms = [request.room for request in requests]
        settings = beam.BeamSettings(
            num_beams=options.num_beams,
            end_tokens=len(self._end_ids),
            early_stopping=options.early_stopping,
            length_penalty=options.length_penalty,
            groups=options.groups,
            diversity_penalty=options.diversity_penalty,
        )
        proposers = [
            beam.DrawWithoutReplacement(sampling.stream(options.seed or 0, request.index, 0))
            if options.strategy.samples
            else beam.best
            for request in requests
        ]
        searches = beam.beam_search(
            rows,
            [request.ids for request in requests],
            rooms,
            filter_chain(options, self.tokenizer, self._end_ids, self.unused),
            settings,
            proposers,
            self._endings(options, requests),
        )
        visible = [self._visible(request, options) for request in requests]
        for position, search in searches:
            request, best = requests[position], visible[position]
            if not search.is_over:
                piece = "".join(best.push(token) for token in search.agreed[best.count :])
                if piece:
                    yield Chunk(request.index, request.first, piece)
                continue
            for rank, text in list(enumerate(search.finished))[request.first :][: options.sequences]:
                sample = self._beam_sample(request, rank, text, options)
                shown = len(best.shown) if rank == request.first else 0
                yield Chunk(request.index, rank, sample.completion[shown:], sample)

    def _beam_sample(self, request: Request, rank: int, text: beam.Hypothesis, options: DecodingOptions) -> Sample:
        visible = self._visible(request, options)
        for token in text.ids:
            visible.push(token)
        visible.finish(text.finish_reason in CUT_SHORT)
        return Sample(
            prompt=request.prompt,
            completion=visible.shown,
            prompt_index=request.index,
            index=rank,
            prompt_tokens=len(request.ids),
            ids=text.ids,
            finish_reason=text.finish_reason or "length",
            logprob=text.logprob,
            seed=options.seed if options.strategy.samples else None,
            ranking_score=text.ranking_score,
            is_unfinished=visible.is_unfinished,
        )

    def _visible(self, request: Request, options: DecodingOptions) -> VisibleText:
        sentences_after = request.prompt if options.end_at_sentence else None
        return VisibleText(self.tokenizer, options.stop, options.keep_stop, request.ids, sentences_after)

    def _in_captured_steps(self, requests: Sequence[Request], options: DecodingOptions) -> bool:
        return self.captured_steps.suit(options, _longest(requests))

    @contextmanager
    def _rows(
        self, requests: Sequence[Request], options: DecodingOptions, rows: int | None
    ) -> Iterator[Context | SlidingRows | ContinuousBatch]:
        """What the texts are written in; kept for the next ones, which may ask for the same."""
        if self._in_captured_steps(requests, options):
            texts = options.draws * len(requests)
            length = _longest(requests) if texts > 1 else self.model.shape.n_positions
            with self.captured_steps.lend(options, min(rows or texts, texts), length) as batch:
                yield batch
            return
        self.captured_steps.drop()
        context = self._context(requests, options)
        try:
            yield context
        finally:
            if isinstance(context, Context) and self._is_alone(requests, options):
                self._spare = context

    def _context(self, requests: Sequence[Request], options: DecodingOptions) -> Context | SlidingRows:
        positions, longest = self.model.shape.n_positions, _longest(requests)
        keep_hidden = options.decoding == "contrastive"
        if longest > positions:
            return SlidingRows(self.model, keep_hidden)
        if not self._is_alone(requests, options):
            return new_context(self.model, longest, keep_hidden)
        # It may begin as the text before it did, as in a session: that much is in the cache already.
        context, self._spare = self._spare, None
        return new_context(self.model, positions) if context is None else context

    def _is_alone(self, requests: Sequence[Request], options: DecodingOptions) -> bool:
        """Whether one text is written, a token after the other: a cache of full length for many would be large."""
        one = len(requests) == options.draws == 1 and not options.strategy.beams
        return one and options.decoding != "contrastive" and self.model.kernel_model is not None

    def _endings(self, options: DecodingOptions, requests: Sequence[Request]) -> Endings:
        """Says when a text ends. `requests` has the prompt of each."""
        rooms = [request.room for request in requests]
        strings, marks = with_marks(options.stop, self.tokenizer.special)

        def tail(index: int, ids: Sequence[int], count: int) -> str:
            return decode_tail(self.tokenizer, requests[index].ids, ids, count, marks)

        stop = StopStrings(strings, tail)
        if options.max_time is None:
            return Endings(self._end_ids, stop, rooms)
        return Endings(self._end_ids, stop, rooms, Deadline(options.max_time))

    @property
    def _end_ids(self) -> tuple[int, ...]:
        return self.model.shape.end_ids or (self.tokenizer.end_id,)


def _longest(requests: Sequence[Request]) -> int:
    """Tokens of the longest text that there may be."""
    return max(len(request.ids) + request.room for request in requests)


def with_seed(options: DecodingOptions) -> DecodingOptions:
    """The options with the seed that they draw from: the one named, the one to replay, or a new one."""
    if replayed := options.replayed():
        return replace(options, replay=None, seed=replayed[0], num_sequences=1)
    if options.seed is None and options.strategy.samples:
        return replace(options, seed=new_seed())
    return options


def new_seed() -> int:
    """A seed for those who named none."""
    return secrets.randbelow(2**32)


def _given(samples: list[Sample], options: DecodingOptions) -> list[Sample]:
    """The samples of a prompt that are given, in their order."""
    if options.draws == options.sequences or options.strategy.beams:
        return sorted(samples, key=lambda sample: sample.index)
    unique = {sample.ids: sample for sample in sorted(samples, key=lambda sample: -sample.index)}
    best_first = sorted(unique.values(), key=lambda sample: (-_mean_logprob(sample), sample.index))
    return best_first[: options.sequences]


def _mean_logprob(sample: Sample) -> float:
    """Per token; a text without any is the worst."""
    return sample.logprob / len(sample.ids) if sample.ids else -math.inf


def load(name: str, device: str = "auto", option: str = "model_name", precision: str = "auto") -> Generator:
    """Load a model by hub name, directory, or the name of the bundled one.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        option: the flag that the name came from, for messages.
        precision: `fp32`, `fp16`, `int8` or `auto`; the model's own `precision` is what it became.

    Raises:
        UserError: the model does not exist or is broken, the device does not exist, or it cannot have the precision.
    """
    return load_checkpoint(resolve_checkpoint(name, option), device, precision)


def load_checkpoint(
    checkpoint: Checkpoint, device: str = "auto", precision: str = "auto", preload: Preload | None = None
) -> Generator:
    """Load a model that was resolved before.

    Args:
        preload: what packs its weights in the background, if anything does.

    Raises:
        UserError: the model is broken, the device does not exist, or it cannot have the precision.
    """
    where, shape = choose_device(device), checkpoint.shape
    tokenizer = load_tokenizer(checkpoint.directory, shape.vocab_size, shape.end_ids)
    preloaded = preload.take(checkpoint) if preload else None
    weights = stream_weights(checkpoint, preloaded.names if preloaded else ())
    return Generator(GPT2(weights, shape, where, precision, preloaded), tokenizer, weights.notes)


def choose_device(device: str) -> torch.device:
    """The device for a `--device` value; `auto` is a CUDA GPU, else Apple's, else the CPU.

    Raises:
        UserError: the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    kind, _, index = device.partition(":")
    if not there[kind]:
        raise UserError(f"{device} asked for, but torch finds no such device here: use auto or cpu", "device")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"{device} asked for, but there are only {torch.cuda.device_count()} CUDA devices", "device")
    return torch.device(device)
