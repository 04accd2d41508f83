"""The rivals that read weights: gpt2tg, transformers, CTranslate2 and llama.cpp, each with one loaded checkpoint."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import formats
from agreement import Ids
from jobs import BEAMS, TOP_P, Job, NotOffered

COMPILED_PROMPT = 64
"""The longest prompt for which the compiled forward pass of transformers is measured on a CPU."""


class Ours:
    """gpt2tg, through its Python API. It also decodes to text, as its generator always does."""

    def __init__(self, shape: str, cache: Path, precision: str, device: str = "cpu") -> None:
        from gpt2tg.generation.generator import load

        chosen = {"precision": precision} if precision in precisions_of_ours() else {}
        self.generator = load(str(formats.checkpoint(shape, cache)), device, **chosen)
        # As for the other rivals, no token ends a text. Most ids of the random models have no text: none is excluded.
        self.generator.end_ids, self.generator.unused = (), None

    def write(self, job: Job) -> Ids:
        """See `Rival`."""
        from gpt2tg.generation.generator import Request
        from gpt2tg.options import DecodingOptions

        settings = dict(
            decoding=job.kind,
            num_sequences=1,
            max_new_tokens=job.new_tokens,
            no_repeat_ngram=job.no_repeat_ngram,
        )
        if job.kind == "beam":
            settings |= dict(num_beams=BEAMS)
        if job.kind == "top_p":
            settings |= dict(top_p=TOP_P, temperature=1.0, seed=0)
        known = {field.name for field in dataclasses.fields(DecodingOptions)}
        if job.kind == "greedy" and job.lookup is not None and "prompt_lookup" in known:
            settings |= dict(prompt_lookup=job.lookup)
        requests = [Request("", index, tuple(ids), job.new_tokens) for index, ids in enumerate(job.prompts)]
        samples = self.generator.generate_batch(requests, DecodingOptions(**settings))
        return [list(texts[0].ids) for texts in samples]

    def steps(self, job: Job) -> list[float]:
        """See `Rival`."""
        from gpt2tg.engine.contexts import new_context

        context = new_context(self.generator.model, len(job.prompts[0]) + job.new_tokens)
        logits = context.start(job.prompts)
        seconds = []
        for _ in range(job.new_tokens):
            start = time.perf_counter()
            logits = context.step(logits.argmax(dim=1))
            seconds.append(time.perf_counter() - start)
        return seconds


class Transformers:
    """`generate` of transformers, with its defaults or with a static KV cache and a compiled forward pass."""

    def __init__(self, shape: str, cache: Path, compiled: bool, device: str = "cpu") -> None:
        import torch
        from transformers import GPT2LMHeadModel

        self.torch, self.device = torch, device
        dtype = torch.float32 if device == "cpu" else torch.float16
        model = GPT2LMHeadModel.from_pretrained(formats.checkpoint(shape, cache), dtype=dtype)
        self.model = model.eval().to(device)
        self.model.generation_config.eos_token_id = None
        self.settings = {}
        if compiled:
            self.settings = dict(cache_implementation="static")
        if compiled and device == "cpu":  # on a GPU, `generate` compiles it
            self.model.forward = torch.compile(self.model.forward)

    def write(self, job: Job) -> Ids:
        """See `Rival`."""
        self._refuse_long_compilation(job)
        how = {
            "greedy": dict(do_sample=False),
            "beam": dict(do_sample=False, num_beams=BEAMS),
            "top_p": dict(do_sample=True, top_p=TOP_P, top_k=0, temperature=1.0),
        }[job.kind]
        prompts = self.torch.tensor(job.prompts, device=self.device)
        written = self.model.generate(
            prompts,
            attention_mask=self.torch.ones_like(prompts),
            max_new_tokens=job.new_tokens,
            pad_token_id=0,
            no_repeat_ngram_size=job.no_repeat_ngram,
            **how,
            **self.settings,
        )
        return written[:, prompts.shape[1] :].tolist()

    def _refuse_long_compilation(self, job: Job) -> None:
        """Raise NotOffered unless it is one short greedy text: a CPU compiles each other shape for minutes."""
        is_simple = job.kind == "greedy" and len(job.prompts) == 1 and len(job.prompts[0]) <= COMPILED_PROMPT
        if self.settings and self.device == "cpu" and not is_simple:
            raise NotOffered("compiles for minutes")

    def steps(self, job: Job) -> list[float]:
        """See `Rival`."""
        if self.settings:
            raise NotOffered("compiled as a whole")
        with self.torch.inference_mode():
            said = self.model(self.torch.tensor(job.prompts, device=self.device), use_cache=True, logits_to_keep=1)
            seconds = []
            for _ in range(job.new_tokens):
                start = time.perf_counter()
                newest = said.logits[:, -1:].argmax(dim=2)
                said = self.model(newest, past_key_values=said.past_key_values, use_cache=True)
                seconds.append(time.perf_counter() - start)
        return seconds


class CTranslate2:
    """CTranslate2. An environment variable chooses its matrix library before it is loaded."""

    def __init__(self, shape: str, cache: Path, compute_type: str) -> None:
        import ctranslate2

        directory = formats.ctranslate2(formats.checkpoint(shape, cache))
        self.generator = ctranslate2.Generator(
            str(directory), compute_type=compute_type, inter_threads=1, intra_threads=int(os.environ["OMP_NUM_THREADS"])
        )
        self.tokens = json.loads((directory / "vocabulary.json").read_text(encoding="utf-8"))

    def write(self, job: Job) -> Ids:
        """See `Rival`."""
        how = {
            "greedy": dict(sampling_topk=1),
            "beam": dict(beam_size=BEAMS),
            "top_p": dict(sampling_topk=0, sampling_topp=TOP_P),
        }[job.kind]
        written = self.generator.generate_batch(
            [[self.tokens[token] for token in row] for row in job.prompts],
            include_prompt_in_result=False,
            max_length=job.new_tokens,
            min_length=job.new_tokens,
            no_repeat_ngram_size=job.no_repeat_ngram,
            **how,
        )
        return [result.sequences_ids[0] for result in written]

    def steps(self, job: Job) -> list[float]:
        """See `Rival`."""
        raise NotOffered("its steps cannot be timed")


class Llama:
    """llama.cpp through its C interface, with numpy's argmax, which is faster than its own greedy sampler."""

    def __init__(self, shape: str, cache: Path, kind: str) -> None:
        import llama_cpp

        self.api, self.kind = llama_cpp, kind
        self.silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        path = formats.llama(formats.checkpoint(shape, cache), kind)
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.context, self.room = None, (0, 0)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def write(self, job: Job) -> Ids:
        """See `Rival`."""
        if job.kind == "beam":
            raise NotOffered("no beam search")
        return self._run(job)[0]

    def steps(self, job: Job) -> list[float]:
        """See `Rival`."""
        return self._run(job)[1]

    def _run(self, job: Job) -> tuple[Ids, list[float]]:
        api, rows, length = self.api, len(job.prompts), len(job.prompts[0])
        context = self._context(rows, length + job.new_tokens)
        choose = self._sampler(context) if job.kind == "top_p" else self._most_probable(context)
        written: Ids = [[] for _ in job.prompts]
        seconds = []
        newest = job.prompts
        for number in range(job.new_tokens + (job.kind == "steps")):
            start = time.perf_counter()
            place = 0 if not number else length + number - 1
            batch = api.llama_batch_init(rows * len(newest[0]), 0, 1)
            batch.n_tokens = rows * len(newest[0])
            for row, tokens in enumerate(newest):
                for offset, token in enumerate(tokens):
                    at = row * len(tokens) + offset
                    batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, place + offset, 1
                    batch.seq_id[at][0], batch.logits[at] = row, offset == len(tokens) - 1
            if api.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            chosen = [choose((row + 1) * len(newest[0]) - 1) for row in range(rows)]
            api.llama_batch_free(batch)
            newest = [[token] for token in chosen]
            for text, token in zip(written, chosen, strict=True):
                text.append(token)
            seconds.append(time.perf_counter() - start)
        return written, seconds[1:] if job.kind == "steps" else seconds

    def _context(self, rows: int, longest: int) -> object:
        """Return an empty context for the rows. It is allocated again only if its size changes, in warm-up runs."""
        api, settings = self.api, self.api.llama_context_default_params()
        room = -(-longest // 256) * 256  # each sequence has whole blocks of 256
        if self.context and self.room == (rows, longest):
            api.llama_memory_clear(api.llama_get_memory(self.context), True)
            return self.context
        if self.context:
            api.llama_free(self.context)
        settings.n_ctx, settings.n_seq_max = rows * room, rows
        settings.n_batch, settings.n_ubatch = max(512, rows * longest), 512
        settings.n_threads = settings.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
        settings.no_perf = True
        if self.kind == "F32":  # fp32 throughout; the others keep llama.cpp's fp16 cache
            settings.type_k = settings.type_v = api.GGML_TYPE_F32
        context = api.llama_init_from_model(self.model, settings)
        if not context:
            raise RuntimeError("llama.cpp makes no context")
        self.context, self.room = context, (rows, longest)
        return context

    def _most_probable(self, context: object) -> Callable[[int], int]:
        import numpy as np

        return lambda at: int(
            np.ctypeslib.as_array(self.api.llama_get_logits_ith(context, at), (self.vocabulary,)).argmax()
        )

    def _sampler(self, context: object) -> Callable[[int], int]:
        api = self.api
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_p(TOP_P, 1))
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(0))
        return lambda at: api.llama_sampler_sample(chain, context, at)


def precisions_of_ours() -> tuple[str, ...]:
    """Return the precisions of `load`; none in versions without the choice, which compute in fp32."""
    from gpt2tg.generation.generator import load

    return ("fp32", "fp16", "int8") if "precision" in inspect.signature(load).parameters else ()
