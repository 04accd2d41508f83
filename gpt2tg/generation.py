"""Prompt in, text out: joins the engine and the decoders. Streaming is the primitive; `generate` collects it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from gpt2tg.decoding import beam, filters, sampling
from gpt2tg.decoding.interface import Filter, NotFiniteError
from gpt2tg.engine.checkpoints import find_checkpoint, read_shape, read_weights
from gpt2tg.engine.model import GPT2
from gpt2tg.engine.tokenizer import TextStream, TextTokenizer, load_tokenizer
from gpt2tg.errors import RunError, UserError
from gpt2tg.options import DEFAULT_MAX_LENGTH, DecodingOptions


@dataclass(frozen=True)
class Sample:
    """One finished text."""

    prompt: str
    completion: str
    ids: tuple[int, ...]
    """New tokens, the one that ended the text included."""
    finish_reason: str
    """`eos`, the model ended the text; `length`, there was no more room."""
    logprob: float
    """Sum of the log-probabilities of the new tokens under the model itself, in nats."""
    ranking_score: float | None = None
    """What beam search ranks by: the filtered log-probability after the length penalty; None without beams."""

    @property
    def text(self) -> str:
        """The prompt and what was written to it."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Chunk:
    """A piece of a text while it is being written; the last one of each sample carries the finished sample."""

    index: int
    text: str
    sample: Sample | None = None


class Generator:
    """A model with its tokenizer, ready to write."""

    def __init__(self, model: GPT2, tokenizer: TextTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def generate(self, prompt: str, options: DecodingOptions) -> list[Sample]:
        """Write `options.num_sequences` texts.

        Returns:
            The samples: by index when drawn, the best first when searched by beams.

        Raises:
            UserError: the prompt leaves no room, or prompt and new tokens exceed the model's positions.
            RunError: the model's logits are not finite.
        """
        samples = {chunk.index: chunk.sample for chunk in self.stream(prompt, options) if chunk.sample}
        return [samples[index] for index in sorted(samples)]

    def stream(self, prompt: str, options: DecodingOptions) -> Iterator[Chunk]:
        """Write as `generate` does, and give each piece of text as soon as its characters are whole.

        The pieces of a sample, put together, are its completion. Beam search gives each text in one piece, since
        until its end any of it may still change.
        """
        options = replace(options, seed=options.seed if options.seed is not None else new_seed())
        ids = self.encode(prompt)
        room = self._room(ids, options)
        write = self._search if options.strategy.beams else self._decode
        try:
            yield from write(prompt, ids, room, options)
        except NotFiniteError as error:
            raise RunError(str(error)) from None

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt. The empty prompt is the end-of-text token, after which texts begin."""
        return self.tokenizer.encode(prompt) or [self.tokenizer.end_id]

    def _room(self, ids: Sequence[int], options: DecodingOptions) -> int:
        """How many new tokens there may be.

        Raises:
            UserError: none, or more than the model has positions for.
        """
        positions = self.model.shape.n_positions
        if options.max_new_tokens is not None:
            if len(ids) + options.max_new_tokens > positions:
                raise UserError(
                    f"{options.max_new_tokens} after a prompt of {len(ids)} tokens is over the {positions} positions "
                    f"of the model: use at most {max(positions - len(ids), 0)}, or a shorter prompt",
                    "max_new_tokens",
                )
            return options.max_new_tokens
        longest = options.max_length if options.max_length is not None else min(DEFAULT_MAX_LENGTH, positions)
        if longest > positions:
            raise UserError(
                f"{longest} is over the {positions} positions of the model: use at most {positions}", "max_length"
            )
        if longest <= len(ids):
            raise UserError(
                f"{longest} leaves no room for text after a prompt of {len(ids)} tokens: "
                "raise it, or count new tokens alone with --max_new_tokens",
                "max_length",
            )
        return longest - len(ids)

    def _decode(self, prompt: str, ids: list[int], room: int, options: DecodingOptions) -> Iterator[Chunk]:
        count = options.num_sequences
        texts = [TextStream(self.tokenizer) for _ in range(count)]
        completions, new_ids, logprobs = [""] * count, [[] for _ in range(count)], [0.0] * count

        def finish(sample: int, token: int) -> str | None:
            if token in self._end_ids:
                return "eos"
            return "length" if len(new_ids[sample]) + 1 == room else None

        choose = _choice(options)
        rows = self.model.context(len(ids) + room)
        for token in sampling.decode(rows, [ids], [0] * count, _filters(options), choose, finish):
            index = token.sample
            new_ids[index].append(token.id)
            logprobs[index] += token.logprob
            piece = "" if token.finish_reason == "eos" else texts[index].push(token.id)
            if not token.finish_reason:
                completions[index] += piece
                if piece:
                    yield Chunk(index, piece)
                continue
            piece += texts[index].finish()
            completions[index] += piece
            sample = Sample(prompt, completions[index], tuple(new_ids[index]), token.finish_reason, logprobs[index])
            yield Chunk(index, piece, sample)

    def _search(self, prompt: str, ids: list[int], room: int, options: DecodingOptions) -> Iterator[Chunk]:
        settings = beam.BeamSettings(options.num_beams, self._end_ids, options.early_stopping)
        propose = _proposal(options)
        rows = self.model.context(len(ids) + room)
        (found,) = beam.beam_search(rows, [ids], [room], _filters(options), settings, [propose])
        for index, text in enumerate(found[: options.num_sequences]):
            written = text.ids[:-1] if text.finish_reason == "eos" else text.ids
            completion = self.tokenizer.decode(list(written))
            sample = Sample(
                prompt, completion, text.ids, text.finish_reason or "length", text.logprob, text.ranking_score
            )
            yield Chunk(index, completion, sample)

    @property
    def _end_ids(self) -> frozenset[int]:
        return frozenset(self.model.shape.end_ids) or frozenset({self.tokenizer.end_id})


def load(name: str, device: str = "auto", option: str = "model_name") -> Generator:
    """Load a model by hub name, directory, or the name of the bundled one.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        option: the flag that the name came from, for messages.

    Raises:
        UserError: no such model, a broken one, or a device that is not there.
    """
    where = choose_device(device)
    directory = find_checkpoint(name, option)
    shape = read_shape(directory)
    tokenizer = load_tokenizer(directory, shape.vocab_size, shape.end_ids[0] if shape.end_ids else None)
    return Generator(GPT2(read_weights(directory, shape), shape, where), tokenizer)


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


def new_seed() -> int:
    """A seed for those who named none."""
    return secrets.randbelow(2**32)


def _filters(options: DecodingOptions) -> list[Filter]:
    """The filters that the options ask for, in their one order."""
    chosen: list[Filter] = []
    if options.no_repeat_ngram:
        chosen.append(partial(filters.no_repeat_ngram, size=options.no_repeat_ngram))
    if options.strategy.samples and options.temperature != 1:
        chosen.append(lambda logits, _: filters.temperature(logits, options.temperature))
    if (k := options.effective_top_k) is not None:
        chosen.append(lambda logits, _: filters.top_k(logits, k))
    if (p := options.effective_top_p) is not None and p < 1:
        chosen.append(lambda logits, _: filters.top_p(logits, p))
    return chosen


def _choice(options: DecodingOptions) -> sampling.Choose:
    if not options.strategy.samples:
        return sampling.most_probable
    return sampling.Draw([sampling.stream(options.seed or 0, 0, sample) for sample in range(options.num_sequences)])


def _proposal(options: DecodingOptions) -> beam.Propose:
    if not options.strategy.samples:
        return beam.best
    return beam.DrawWithoutReplacement(sampling.stream(options.seed or 0, 0, 0))
