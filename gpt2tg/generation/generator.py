"""From prompt to text: joins the engine and the decoders. Everything collects from `stream_batch`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from gpt2tg.checkpoint.checkpoint import Checkpoint, resolve_checkpoint
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer, note_on_unused, unused_ids
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.decoding.interface import NotFiniteError
from gpt2tg.engine.continuous_batch import ContinuousBatch
from gpt2tg.engine.cpu.preload import Preload
from gpt2tg.engine.devices import choose_device, leaves_for_cpu
from gpt2tg.engine.model import GPT2
from gpt2tg.errors import RunError, UserError, one_line
from gpt2tg.generation.beams import generate_with_beams
from gpt2tg.generation.caches import Caches
from gpt2tg.generation.chat import Chat
from gpt2tg.generation.cuda_steps import ContinuousBatches
from gpt2tg.generation.draft_model import DraftModel, check_draft, load_draft
from gpt2tg.generation.filter_chain import filter_chain
from gpt2tg.generation.footprint import check_footprint
from gpt2tg.generation.requests import Request, RequestBatch, fit_prompt
from gpt2tg.generation.samples import Chunk, Sample, chosen_samples
from gpt2tg.generation.seeds import new_seed, with_seed
from gpt2tg.generation.token_by_token import generate_token_by_token
from gpt2tg.options import DecodingOptions, DeviceOptions, Precision, PrecisionOptions

__all__ = ["Chunk", "Generator", "Request", "Sample", "choose_device", "load", "new_seed", "with_seed"]


class Generator:
    """A model with its tokenizer, ready to generate text."""

    def __init__(
        self,
        model: GPT2,
        tokenizer: TextTokenizer,
        notes: Sequence[str] = (),
        checkpoint: Checkpoint | None = None,
        draft: DraftModel | None = None,
    ) -> None:
        """Take a model and its tokenizer.

        Args:
            notes: what the user should know about the model's files.
            checkpoint: where the model was loaded from; None if it is not on disk.
            draft: the model that drafts for it, if there is one; it has the same vocabulary.
        """
        self.checkpoint = checkpoint
        self.draft = draft
        self.model = model
        self.tokenizer = tokenizer
        self.notes = list(notes)
        self.end_ids = model.shape.end_ids or (tokenizer.end_id,)
        """The tokens that end a text."""
        self.chat = Chat(checkpoint, tokenizer, self.end_ids)
        self.unused = self._find_unused()
        """(V,) mask of the ids that have no token; None if every id has one."""
        self.continuous_batches = ContinuousBatches(model)
        self.caches = Caches(model, self.continuous_batches)

    def _find_unused(self) -> torch.Tensor | None:
        size = self.model.shape.vocab_size
        unused = unused_ids(self.tokenizer, size, self.end_ids)
        if not unused:
            return None
        self.notes.append(note_on_unused(len(unused), size))
        mask = torch.zeros(size, dtype=torch.bool)
        mask[unused] = True
        return mask.to(self.model.device)

    def generate(self, prompt: str, options: DecodingOptions) -> list[Sample]:
        """Generate the completions of one prompt.

        Returns:
            The samples. Drawn ones are in the order of their index; those of beam search and `best_of` best first.

        Raises:
            UserError: the prompt leaves no room, or prompt and new tokens exceed the context length.
            RunError: the model's logits are not finite.
            torch.OutOfMemoryError: the memory of a CUDA GPU ran out. Other devices raise a RuntimeError.
        """
        return self.generate_batch([self.fit(prompt, options)], options)[0]

    def generate_batch(self, requests: Sequence[Request], options: DecodingOptions) -> list[list[Sample]]:
        """Generate the completions of several prompts as one batch. Returns the samples of each prompt."""
        return self._collect(self.prepare(requests, options))

    def generate_each(
        self, requests: Sequence[Request], options: DecodingOptions, batch_size: int
    ) -> Iterator[list[Sample]]:
        """Generate the completions of many prompts, about `batch_size` texts at a time. Yields the samples of each.

        The texts of a prompt stay together, so a batch may be larger. In a continuous batch, a text that ends gives
        its row to the next one; otherwise, and with a time limit, one batch follows another.
        """
        if not requests:
            return
        batch = self.prepare(requests, options)
        is_drafted = self.draft is not None and max(batch_size, batch.options.draws) == 1
        if options.max_time is None and not is_drafted and self.continuous_batches.suit(batch):
            yield from self._refilled(batch, max(batch_size, batch.options.draws))
            return
        together = max(1, batch_size // batch.options.draws)
        longest = max(request.max_new_tokens for request in requests)
        check_footprint(self.model, batch.options, min(together, len(requests)), longest, batch_size)
        for start in range(0, len(requests), together):
            yield from self._collect(replace(batch, requests=requests[start : start + together]))

    def stream(self, prompt: str, options: DecodingOptions) -> Iterator[Chunk]:
        """Generate as `generate` does, and yield each piece of text as soon as its characters are complete.

        The pieces of a text, joined, are its completion. Beam search yields what all its beams agree on, and the rest
        with the finished text. With `best_of`, all texts drawn are streamed.
        """
        return self.stream_batch([self.fit(prompt, options)], options)

    def stream_batch(
        self, requests: Sequence[Request], options: DecodingOptions, rows: int | None = None
    ) -> Iterator[Chunk]:
        """Stream the completions of several prompts, generated as one batch. Each chunk names its prompt and text.

        Args:
            rows: the number of texts in a continuous batch, if there is one; None is all of them.
        """
        return self._stream(self.prepare(requests, options), rows, in_pieces=True)

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt. An empty prompt is the end-of-text token, after which texts begin."""
        if not isinstance(prompt, str):
            raise UserError(f"{one_line(repr(prompt), 40)} is not valid: give a string", "prompt")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:  # bytes of the command line or of stdin that are not UTF-8
            raise UserError("is not UTF-8", "prompt") from None
        return self.tokenizer.encode_prompt(prompt)

    def fit(self, prompt: str, options: DecodingOptions, index: int = 0) -> Request:
        """Fit a prompt into the context window; if it does not fit, do what `options.overflow` says.

        Args:
            index: the number of the prompt in its run, which is part of the seed of its texts.

        Raises:
            UserError: an argument has the wrong type; no room for new tokens, with the numbers; or the texts would not
                fit into memory.
        """
        if not isinstance(options, DecodingOptions):
            raise UserError(f"{one_line(repr(options), 40)} is not valid: give DecodingOptions", "options")
        request = fit_prompt(prompt, self.encode(prompt), options, self.model.shape.n_positions, index)
        check_footprint(self.model, options, 1, request.max_new_tokens)
        return request

    def prepare(
        self, requests: Sequence[Request], options: DecodingOptions, logit_bias: Mapping[int, float] | None = None
    ) -> RequestBatch:
        """Return a batch of requests, with a seed if anything is drawn.

        Args:
            logit_bias: what to add to the logits of single tokens, by id.
        """
        options = with_seed(options)
        filters = filter_chain(options, self.tokenizer, self.end_ids, self.unused, logit_bias)
        return RequestBatch(requests, options, filters, self.tokenizer, self.end_ids)

    def steps(self, batch: RequestBatch, rows: int | None = None, in_pieces: bool = False) -> Iterator[Chunk | None]:
        """Generate a batch, and yield after each step of a text what it completes, or None.

        Args:
            rows: the number of texts in a continuous batch, if there is one; None is all of them.
            in_pieces: whether texts are wanted while they grow, which takes time.
        """
        try:
            with self.caches.lend(batch, rows, self.draft is not None) as cache:
                if batch.options.strategy.beams:
                    assert not isinstance(cache, ContinuousBatch)
                    yield from generate_with_beams(batch, cache, in_pieces)
                else:
                    yield from generate_token_by_token(batch, cache, in_pieces, self.draft)
        except NotFiniteError as error:
            raise RunError(str(error)) from None

    def _stream(self, batch: RequestBatch, rows: int | None = None, in_pieces: bool = False) -> Iterator[Chunk]:
        for chunk in self.steps(batch, rows, in_pieces):
            if chunk is not None:
                yield chunk

    def _collect(self, batch: RequestBatch) -> list[list[Sample]]:
        samples: dict[int, list[Sample]] = {request.index: [] for request in batch.requests}
        for chunk in self._stream(batch):
            if chunk.sample:
                samples[chunk.prompt_index].append(chunk.sample)
        return [chosen_samples(samples[request.index], batch.options) for request in batch.requests]

    def _refilled(self, batch: RequestBatch, rows: int) -> Iterator[list[Sample]]:
        """Yield the samples of each prompt in the order of the prompts, whatever the order in which texts end."""
        finished: dict[int, list[Sample]] = {request.index: [] for request in batch.requests}
        waiting = iter(batch.requests)
        first = next(waiting, None)
        for chunk in self._stream(batch, rows):
            if chunk.sample:
                finished[chunk.prompt_index].append(chunk.sample)
            while first is not None and len(finished[first.index]) == batch.options.draws:
                yield chosen_samples(finished.pop(first.index), batch.options)
                first = next(waiting, None)


def load(
    name: str | os.PathLike[str],
    device: str = "auto",
    option: str = "model_name",
    precision: Precision = "auto",
    adapters: Sequence[str] = (),
    draft_model: str | os.PathLike[str] | None = None,
) -> Generator:
    """Load a model by hub name, directory, or the name of the bundled one.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; see `choose_device`.
        option: the flag that the name came from, for messages.
        precision: `fp32`, `fp16`, `int8` or `auto`; `GPT2.precision` has the one that was chosen.
        adapters: directories of LoRA adapters to apply to the model, one after another.
        draft_model: a smaller model with the same tokenizer, for speculative decoding.

    Raises:
        UserError: a model does not exist or is broken, the device does not exist, it cannot have the precision, or the
            draft model has another tokenizer.
    """
    device, precision = DeviceOptions(device).device, PrecisionOptions(precision).precision
    checkpoint = resolve_checkpoint(_name(name, option), option, adapters=adapters)
    draft = None if draft_model is None else resolve_checkpoint(_name(draft_model, "draft_model"), "draft_model")
    return load_checkpoint(checkpoint, device, precision, draft=draft)


def _name(name: str | os.PathLike[str], option: str) -> str:
    if not isinstance(name, (str, os.PathLike)):
        raise UserError(f"{one_line(repr(name), 40)} is not valid: give the name or the directory of a model", option)
    return os.fspath(name)


def load_checkpoint(
    checkpoint: Checkpoint,
    device: str = "auto",
    precision: Precision = "auto",
    preload: Preload | None = None,
    draft: Checkpoint | None = None,
) -> Generator:
    """Load a model that was resolved before. If a GPU that `auto` chose has no room for it, the CPU takes over.

    Args:
        preload: the thread that packs its weights in the background, if there is one.
        draft: the model that drafts for it, if there is one.

    Raises:
        UserError: a model is broken, the device does not exist, it cannot have the precision, or the draft has other
            tokens.
    """
    if draft is not None:
        check_draft(draft, checkpoint)
    generator = _load_on_device(checkpoint, device, precision, preload)
    if draft is not None:
        generator.draft = load_draft(draft, generator.model)
    return generator


def _load_on_device(checkpoint: Checkpoint, device: str, precision: Precision, preload: Preload | None) -> Generator:
    where = choose_device(device)
    try:
        return _load_on(where, checkpoint, precision, preload)
    except RuntimeError as error:
        if not leaves_for_cpu(device, where, error):
            raise
    return _load_on(torch.device("cpu"), checkpoint, precision, None)


def _load_on(where: torch.device, checkpoint: Checkpoint, precision: Precision, preload: Preload | None) -> Generator:
    shape = checkpoint.shape
    tokenizer = load_tokenizer(checkpoint.tokenizer_directory, shape.vocab_size, shape.end_ids)
    preloaded = preload.take(checkpoint) if preload else None
    weights = stream_weights(checkpoint, preloaded.names if preloaded else ())
    model = GPT2(weights, shape, where, precision, preloaded)
    return Generator(model, tokenizer, [*checkpoint.notes, *weights.notes], checkpoint)
