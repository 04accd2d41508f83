"""Measure tokens per second on a CUDA GPU in fp16, beside transformers' own loop and the limits of the machine.

    python benchmarks/gpu.py                                # gpt2 and gpt2-xl, 1 and 256 rows
    python benchmarks/gpu.py --shape gpt2 --rows 1 --repeats 3

Models have random weights, and end-of-text is off, so that all generate the same number of tokens. Ours is measured
twice: `captured` is the call from prompt ids to new ids, `step by step` the same steps without CUDA graphs. All take
turns in one run, after a warm-up turn.

A roof is the speed if memory bandwidth alone limited it: each step reads every weight, and the KV cache of all rows at
half of its final length. The bandwidth is measured by a copy. At 4.3 TB/s, as an H200 copies, that is 17,000 tokens/s
for one row of gpt2, 1,380 of gpt2-xl, and 217,000 for 256 rows of gpt2 at 510 tokens (`--rows 256 --new_tokens 988`).
Tables go to stderr, JSON to the last line of stdout. Without a CUDA GPU it prints one line and ends.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import formats
import machine
import torch
from decode import figures, prompts, show
from workers import report

from gpt2tg.checkpoint.checkpoint import read_checkpoint
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.engine.continuous_batch import ContinuousBatch, QueuedText
from gpt2tg.engine.model import GPT2
from gpt2tg.generation.cuda_steps import choice

formats.SHAPES["gpt2-xl"] = dict(n_embd=1600, n_layer=48, n_head=25)
BYTES = 2  # of a weight, a key, a value

# Generates new ids: takes the prompts and the number of new tokens.
Write = Callable[[list[list[int]], int], list[list[int]]]


def main() -> None:
    """Measure, print tables and the JSON."""
    options = parse()
    if not torch.cuda.is_available():
        report("nothing is measured: torch finds no CUDA GPU here")
        return
    options.cache.mkdir(parents=True, exist_ok=True)
    bandwidth = copied_bytes_per_second()
    report(f"{torch.cuda.get_device_name()}: a copy moves {bandwidth / 1e12:.2f} TB/s")
    results = [measure(shape, rows, bandwidth, options) for shape in options.shape for rows in options.rows]
    told = {
        "machine": machine.description(),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "bandwidth_gb_per_second": bandwidth / 1e9,
        "repeats": options.repeats,
        "results": results,
    }
    print(json.dumps(told))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=formats.SHAPES, default=["gpt2", "gpt2-xl"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--prompt", type=int, default=16, metavar="N", help="tokens of the prompts (default: 16)")
    parser.add_argument("--new_tokens", type=int, default=240, help="(default: 240)")
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each (default: 5)")
    parser.add_argument("--cache", type=Path, default=formats.CACHE, help=f"models are kept here ({formats.CACHE})")
    return parser.parse_args()


def copied_bytes_per_second(size: int = 2**30, repeats: int = 20) -> float:
    """Return the bytes per second read and written while 1 GiB is copied, the best of several turns."""
    source = torch.ones(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / min(seconds_of(lambda: target.copy_(source)) for _ in range(repeats))


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds of a call, from an idle device to an idle device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(shape: str, rows: int, bandwidth: float, options: argparse.Namespace) -> dict:
    """Measure one table."""
    new = options.new_tokens
    report(f"\n{shape}, greedy, {rows} rows, prompts of {options.prompt} tokens, {new} new ones, fp16")
    rivals = rivals_of(shape, rows, options)
    answers: dict[str, list[dict]] = {name: [] for name in rivals}
    for repeat in range(-1, options.repeats):
        work = prompts(rows, options.prompt, repeat)
        for name, write in rivals.items():
            texts: list[list[int]] = []
            seconds = seconds_of(lambda write=write, work=work, texts=texts: texts.extend(write(work, new)))
            if repeat >= 0:
                answers[name].append({"seconds": seconds, "result": texts})
    reference = answers["transformers"]
    expected = [text for answer in reference for text in answer["result"]]
    counted = rows * new
    table = {"shape": shape, "work": "greedy", "rows": rows, "prompt": options.prompt, "new_tokens": new}
    table["rivals"] = {name: figures(found, counted, expected, reference, None) for name, found in answers.items()}
    table["roof"] = roof = roof_of(shape, rows, options.prompt + new // 2, bandwidth)
    show(table["rivals"])
    reached = table["rivals"]["captured"]["tokens_per_second"]["median"]
    report(f"{'roof':>26} {roof:8.1f} tokens/s, of which captured steps reach {reached / roof:.0%}")
    return table


def roof_of(shape: str, rows: int, length: int, bandwidth: float) -> float:
    """Return the tokens per second of `rows` texts of this length if only memory bandwidth limited them."""
    width, layers = formats.SHAPES[shape]["n_embd"], formats.SHAPES[shape]["n_layer"]
    weights = width * (formats.VOCABULARY + 12 * layers * width)
    cache = 2 * layers * width * length * rows
    return rows * bandwidth / (BYTES * (weights + cache))


def rivals_of(shape: str, rows: int, options: argparse.Namespace) -> dict[str, Write]:
    """Return the generators that take turns."""
    directory = formats.checkpoint(shape, options.cache)
    checkpoint = read_checkpoint(directory)
    model = GPT2(stream_weights(checkpoint), checkpoint.shape, torch.device("cuda"), "fp16")
    capacity = options.prompt + options.new_tokens
    return {
        "captured": ours(ContinuousBatch(model, rows, capacity, choice([], samples=False), ())),
        "step by step": ours(ContinuousBatch(model, rows, capacity, choice([], samples=False), (), captured=False)),
        "transformers": transformers(directory),
    }


def ours(batch: ContinuousBatch) -> Write:
    """Return our generator."""

    def write(work: list[list[int]], new: int) -> list[list[int]]:
        texts: list[list[int]] = [[] for _ in work]
        entries = (QueuedText(sample, prompt, new) for sample, prompt in enumerate(work))
        for token in batch.write(entries, lambda _, ids: "length" if len(ids) == new else None):
            texts[token.sample].append(token.id)
        return texts

    return write


def transformers(directory: Path) -> Write:
    """Return `generate` of transformers with its defaults."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float16).eval().to("cuda")
    model.generation_config.eos_token_id = None

    def write(work: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(work, device="cuda")
        mask = torch.ones_like(ids)
        written = model.generate(ids, attention_mask=mask, max_new_tokens=new, pad_token_id=0, do_sample=False)
        return written[:, ids.shape[1] :].tolist()

    return write


if __name__ == "__main__":
    main()
