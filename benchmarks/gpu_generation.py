"""The parts of gpu_check.py about generation: speed beside transformers, first token, captures, strategies, sizes.

Models have random weights, and no token ends a text, so that all generate the same number of tokens. Ours is measured
through `Generator`, from prompt ids to text, as a user calls it.

A roof is the speed if memory bandwidth alone limited it: each step reads every weight, and the KV cache of all rows at
half of its final length. The bandwidth is measured by a copy.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import formats
import machine
import torch
from agreement import Ids
from gpu_results import Check
from jobs import Job, Rival
from programs import Ours, Transformers

if TYPE_CHECKING:
    from gpt2tg.generation.generator import Generator, Sample

BYTES = 2  # of a weight, a key, a value


@dataclass(frozen=True)
class Work:
    """What is generated: how many texts, how, from prompts of how many tokens, and how many new ones."""

    kind: str
    rows: int
    prompt: int
    new: int

    def __str__(self) -> str:
        texts = "1 text" if self.rows == 1 else f"{self.rows} texts"
        return f"{self.kind}, {texts}, prompt {self.prompt}, {self.new} new"

    def job(self, turn: int, new: int | None = None) -> Job:
        """Return the job of a turn. Prompts differ from turn to turn."""
        from decode import prompts

        return Job(self.kind, prompts(self.rows, self.prompt, turn), new or self.new, lookup=0)


def works(check: Check) -> list[Work]:
    """Return what ours and transformers generate."""
    many, short, long, longest = check.sized(256, 3), check.sized(16, 4), check.sized(512, 20), check.sized(896, 40)
    new = check.sized(128, 6)
    return [
        Work("greedy", 1, short, new),
        Work("greedy", many, short, new),
        Work("greedy", 1, long, new),
        Work("greedy", 1, longest, new),
        Work("top_p", 1, short, new),
        Work("beam", 1, short, new),
        Work("top_p", many, short, new),
        Work("greedy", many, long, new),
    ]


def few_works(check: Check) -> list[Work]:
    """Return what is also measured with a switch set another way."""
    return [
        work for work in works(check) if work.prompt == check.sized(16, 4) and (work.rows == 1 or work.kind == "greedy")
    ]


# ---- ours, and transformers ----


def generation(check: Check) -> None:
    """Measure gpt2 in 16 bits: the first text with its captures, then everything."""
    with counted_captures() as captures:
        rival = first_texts(check, captures)
    prefixes(check, rival)
    for work in works(check):
        speed(check, rival, work, turns=check.sized(3, 1))
    many_prompts(check, rival)
    whole_command(check)


def generation_briefly(check: Check) -> None:
    """Measure less of it: for a comparison with a switch set another way."""
    rival = Ours("gpt2", check.cache, check.precision, check.device)
    for work in few_works(check):
        speed(check, rival, work, turns=1)


def generation_with_cudnn(check: Check) -> None:
    """Measure with cuDNN's attention allowed, whatever loading a model sets."""
    rival = Ours("gpt2", check.cache, check.precision, check.device)
    torch.backends.cuda.enable_cudnn_sdp(True)
    for work in few_works(check):
        speed(check, rival, work, turns=1)


def transformers(check: Check) -> None:
    """Measure `generate` of transformers with its defaults."""
    rival = Transformers("gpt2", check.cache, compiled=False, device=check.device)
    prefixes(check, rival)
    for work in works(check):
        speed(check, rival, work, turns=1)


def transformers_static(check: Check) -> None:
    """Measure `generate` of transformers with a static cache, which it compiles."""
    rival = Transformers("gpt2", check.cache, compiled=True, device=check.device)
    for work in works(check)[:2]:
        speed(check, rival, work, turns=1)


def larger_models(check: Check) -> None:
    """Measure ours at the other sizes."""
    for shape in ("gpt2-xl", "gpt2-medium", "gpt2-large"):
        with check.rows.attempt(shape):
            rival = Ours(shape, check.cache, check.precision, check.device)
            for rows in (1, check.sized(64, 2)):
                speed(check, rival, Work("greedy", rows, check.sized(16, 4), check.sized(128, 6)), 1, shape)
            del rival
            if check.device == "cuda":
                torch.cuda.empty_cache()


def speed(check: Check, rival: Rival, work: Work, turns: int, shape: str = "gpt2") -> None:
    """Write tokens per second of whole calls, the best of some turns after one for warm-up."""
    what = str(work) if shape == "gpt2" else f"{shape}, {work}"
    with check.rows.attempt(what):
        rival.write(work.job(-1))
        answers = [timed(check, rival, work.job(turn)) for turn in range(turns)]
        best, texts = min(seconds for seconds, _ in answers), answers[0][1]
        tokens = sum(map(len, texts))
        note = ""
        if work.kind == "greedy" and isinstance(rival, Ours):
            note = f"{tokens / best / roof(check, shape, work):.0%} of the memory roof"
        more = {"ids": texts[:8]} if work.kind != "top_p" else {}
        check.rows.add(what, tokens / best, "tokens/s", note, **more)


def timed(check: Check, rival: Rival, job: Job) -> tuple[float, Ids]:
    """Return the seconds of a job and the ids that were generated."""
    found: list[Ids] = []
    seconds = machine.seconds_of(lambda: found.append(rival.write(job)), check.device)
    return seconds, found[0]


def roof(check: Check, shape: str, work: Work) -> float:
    """Return the tokens per second that memory bandwidth allows here."""
    return roof_of(shape, work.rows, work.prompt + work.new // 2, bandwidth(check.device, check.sized(2**30, 2**24)))


bandwidth = functools.cache(machine.copied_bytes_per_second)


def roof_of(shape: str, rows: int, length: int, bandwidth: float) -> float:
    """Return the tokens per second of `rows` texts of this length if only memory bandwidth limited them."""
    sizes = (formats.SHAPES | formats.LARGE_SHAPES)[shape]
    width, layers = sizes["n_embd"], sizes["n_layer"]
    weights = width * (formats.VOCABULARY + 12 * layers * width)
    cache = 2 * layers * width * length * rows
    return rows * bandwidth / (BYTES * (weights + cache))


def prefixes(check: Check, rival: Rival) -> None:
    """Write the time to the first token of prompts of several lengths, and the tokens read per second."""
    for rows, length in ((1, 16), (1, 512), (1, 1000), (16, 512)):
        work = Work("greedy", min(rows, check.sized(16, 2)), check.sized(length, length // 25 + 2), 1)
        what = f"first token, {work.rows} x {work.prompt} tokens of prompt"
        with check.rows.attempt(what):
            rival.write(work.job(-1))
            seconds = min(timed(check, rival, work.job(turn))[0] for turn in range(3))
            check.rows.add(what, 1e3 * seconds, "ms", f"reads {work.rows * work.prompt / seconds:,.0f} tokens/s")


# ---- what only ours is asked ----


@contextlib.contextmanager
def counted_captures() -> Iterator[list[float]]:
    """Yield a list to which each capture of a CUDA graph adds its seconds."""
    seconds: list[float] = []
    graph = torch.cuda.CUDAGraph
    begin, end = graph.capture_begin, graph.capture_end

    def timed_begin(self: Any, *given: object, **named: object) -> None:
        seconds.append(-time.perf_counter())
        begin(self, *given, **named)

    def timed_end(self: Any) -> None:
        end(self)
        seconds[-1] += time.perf_counter()

    graph.capture_begin, graph.capture_end = timed_begin, timed_end  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        graph.capture_begin, graph.capture_end = begin, end  # type: ignore[method-assign]


def first_texts(check: Check, captures: list[float]) -> Ours:
    """Load gpt2, and write what the first texts of a process cost: loading, the first token, captures."""
    formats.checkpoint("gpt2", check.cache)  # so that loading does not include writing it
    loaded: list[Ours] = []
    seconds = machine.seconds_of(
        lambda: loaded.append(Ours("gpt2", check.cache, check.precision, check.device)), check.device
    )
    check.rows.add("loading gpt2 in a new process", seconds, "s", "imports of torch not counted")
    rival, work = loaded[0], Work("greedy", 1, check.sized(16, 4), check.sized(128, 6))
    for name, new in (
        ("the first token of a process", 1),
        ("the first whole text", work.new),
        ("the second", work.new),
    ):
        before = len(captures)
        with check.rows.attempt(name):
            seconds = machine.seconds_of(lambda new=new: rival.write(work.job(0, new)), check.device)
            made = captures[before:]
            note = f"{new} new tokens; {len(made)} captures in {1e3 * sum(made):.0f} ms"
            check.rows.add(name, 1e3 * seconds, "ms", note, captures=len(made))
    return rival


def many_prompts(check: Check, rival: Ours) -> None:
    """Write the speed of many prompts of unequal length whose texts take over the rows of others."""
    from gpt2tg.generation.generator import Request
    from gpt2tg.options import DecodingOptions

    count, rows = check.sized(768, 5), check.sized(256, 2)
    what = f"{count} prompts of 4 to 200 tokens, {rows} rows"
    with check.rows.attempt(what):
        options = DecodingOptions(decoding="greedy", num_sequences=1, prompt_lookup=0)
        requests = []
        for index in range(count):
            ids = Work("greedy", 1, 4 + 196 * (index % 17) // 16, 1).job(index).prompts[0]
            requests.append(Request("", index, tuple(ids), check.sized(32 + index % 97, 4)))
        for _ in range(2):  # the first turn captures
            written: list[int] = []
            seconds = machine.seconds_of(
                lambda written=written: written.extend(
                    len(sample.ids)
                    for samples in rival.generator.generate_each(requests, options, rows)
                    for sample in samples
                ),
                check.device,
            )
        check.rows.add(what, sum(written) / seconds, "tokens/s")


def whole_command(check: Check) -> None:
    """Write the seconds of a whole command that generates one token, from start to exit."""
    with check.rows.attempt("a whole command, 1 new token"):
        command = [
            sys.executable,
            "generate_from_finetuned.py",
            "--model_path",
            str(formats.checkpoint("gpt2", check.cache)),
        ]
        command += ["--prompt", "The dragon", "--decoding", "greedy", "--num_sequences", "1", "--max_new_tokens", "1"]
        start = time.perf_counter()
        subprocess.run(command, cwd=formats.ROOT, check=True, stdout=subprocess.DEVNULL)
        check.rows.add("a whole command, 1 new token", time.perf_counter() - start, "s", "from start to exit")


STRATEGIES: dict[str, dict] = {
    "greedy": dict(decoding="greedy", prompt_lookup=0),
    "sample": dict(decoding="sample"),
    "top_k": dict(decoding="top_k"),
    "top_p": dict(decoding="top_p"),
    "min_p": dict(decoding="sample", min_p=0.05),
    "typical_p": dict(decoding="sample", typical_p=0.9),
    "beam": dict(decoding="beam"),
    "diverse_beam": dict(decoding="diverse_beam"),
    "beam_sample": dict(decoding="beam_sample"),
    "contrastive": dict(decoding="contrastive"),
    "repetition_penalty": dict(decoding="greedy", repetition_penalty=1.2),
    "no_repeat_ngram": dict(decoding="greedy", no_repeat_ngram=3),
    "ban_words": dict(decoding="greedy", ban_words=("the",), prompt_lookup=0),
    "best_of 4": dict(decoding="top_p", best_of=4),
    "prompt_lookup": dict(decoding="greedy", prompt_lookup=7),
    "slide": dict(decoding="top_p", overflow="slide"),
}


def strategies(check: Check) -> None:
    """Write the speed of every strategy and filter the first time, with captures, and the second time."""
    generator = Ours("gpt2", check.cache, check.precision, check.device).generator
    with counted_captures() as captures:
        for name, settings in STRATEGIES.items():
            with check.rows.attempt(name):
                before = len(captures)
                first, second = (tokens_per_second(check, generator, settings) for _ in range(2))
                note = f"the first time {first:,.0f} tokens/s, {len(captures) - before} captures"
                check.rows.add(name, second, "tokens/s", note, first=first)


def tokens_per_second(check: Check, generator: Generator, settings: dict) -> float:
    """Return the speed of one text with these settings."""
    from gpt2tg.generation.generator import Request
    from gpt2tg.options import DecodingOptions

    prompt, new = check.sized(16, 4), check.sized(96, 5)
    if "overflow" in settings:  # a text that leaves the context window
        prompt = formats.POSITIONS - new // 2
    request = Request("", 0, tuple(Work("greedy", 1, prompt, 1).job(0).prompts[0]), new)
    options = DecodingOptions(num_sequences=1, seed=1, **settings)
    found: list[Sample] = []
    seconds = machine.seconds_of(lambda: found.extend(generator.generate_batch([request], options)[0]), check.device)
    return sum(len(sample.ids) for sample in found) / seconds


PARTS: dict[str, Callable[[Check], None]] = {
    "generation": generation,
    "generation_briefly": generation_briefly,
    "generation_with_cudnn": generation_with_cudnn,
    "transformers": transformers,
    "transformers_static": transformers_static,
    "strategies": strategies,
    "larger_models": larger_models,
}
