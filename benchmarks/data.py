"""Measure how fast a text is prepared for training, from file to blocks of ids: by us, and by `datasets` in two ways.

    python benchmarks/data.py                       # 50 MB made of sample_data.txt
    python benchmarks/data.py --file stories.txt --block_size 256

Each line is an example, and both use the bundled tokenizer. gpt2tg scans the file, tokenizes it and cuts it into
blocks. run_clm, the example of transformers, loads the lines with their line breaks and maps over them twice, to
tokenize and to group, in batches of 1000, each of which loses its last ids. So all make nearly the same tokens: ours
have an end-of-text token after each example, the others a line break.

The third row, map, is what `datasets` can do: one map, which keeps only the ids, in two bytes each, and makes the
blocks at once, in batches of 4000 lines under a fingerprint of its own, so that no function is hashed.

Each run is a process with an empty cache, and then a second process with the cache of the first. The rivals take
turns. Times leave out imports and the loading of the tokenizer. Peak memory is that of the process, libraries and
memory-mapped files included. The table goes to stderr, JSON to the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import formats
import machine
from workers import report, spread

SAMPLE = formats.ROOT / "sample_data.txt"
MEGABYTE = 10**6
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "datasets", "pyarrow")


def write_text(path: Path, size: int) -> None:
    """Write the sample repeatedly, at least `size` bytes, with a number on each line so that no two are equal."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    written = number = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while written < size:
            line = f"{number}. {lines[number % len(lines)]}\n"
            file.write(line)
            written += len(line.encode())
            number += 1


def ours(file: str, block_size: int) -> Callable[[], dict]:
    """Return a function that prepares the file with gpt2tg."""
    from gpt2tg.checkpoint.config import read_shape
    from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY
    from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer
    from gpt2tg.options import TrainingOptions
    from gpt2tg.training.data import token_builder  # noqa: F401  # the import of datasets is not timed
    from gpt2tg.training.data.sources import plan_sources
    from gpt2tg.training.data.training_data import load_data

    shape = read_shape(BUNDLED_DIRECTORY)
    tokenizer = load_tokenizer(BUNDLED_DIRECTORY, shape.vocab_size, shape.end_ids)
    options = TrainingOptions(train_file=(file,), validation_split=0, block_size=block_size)

    def prepare() -> dict:
        start = time.perf_counter()
        sources = plan_sources(options)
        surveyed = time.perf_counter()
        data = load_data(sources, tokenizer, options)
        steps = {"survey": surveyed - start, "tokenize_and_cut": time.perf_counter() - surveyed}
        return {"steps": steps, "tokens": data.train_tokens, "blocks": len(data.train)}

    return prepare


def run_clm(file: str, block_size: int) -> Callable[[], dict]:
    """Return a function that prepares the file with `datasets`, with one map for tokenizing and one for grouping."""
    import datasets
    from transformers import AutoTokenizer

    from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(
        BUNDLED_DIRECTORY, model_max_length=sys.maxsize
    )  # no warning of long lines

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        return tokenizer(batch["text"])

    def group(batch: dict[str, list]) -> dict[str, list]:
        blocks = {}
        for name, rows in batch.items():
            joined = list(chain.from_iterable(rows))
            starts = range(0, len(joined) - block_size + 1, block_size)
            blocks[name] = [joined[start : start + block_size] for start in starts]
        return {**blocks, "labels": blocks["input_ids"]}

    def prepare() -> dict:
        start = time.perf_counter()
        lines = datasets.load_dataset("text", data_files=file, split="train", keep_linebreaks=True)
        loaded = time.perf_counter()
        tokenized = lines.map(tokenize, batched=True, remove_columns=["text"])
        mapped = time.perf_counter()
        blocks = tokenized.map(group, batched=True)
        steps = {"load": loaded - start, "tokenize": mapped - loaded, "group": time.perf_counter() - mapped}
        return {"steps": steps, "tokens": len(blocks) * block_size, "blocks": len(blocks)}

    return prepare


def lean_map(file: str, block_size: int) -> Callable[[], dict]:
    """Return a function that prepares the file with `datasets`, with one map that makes blocks of 16-bit ids."""
    import datasets
    import numpy as np
    from tokenizers import Tokenizer

    from gpt2tg.checkpoint.find import BUNDLED_DIRECTORY

    datasets.disable_progress_bars()
    tokenizer = Tokenizer.from_file(str(BUNDLED_DIRECTORY / "tokenizer.json"))
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})

    def blocks_of(batch: dict[str, list]) -> dict[str, list]:
        encodings = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        joined = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.uint16)
        count = len(joined) // block_size
        return {"input_ids": list(joined[: count * block_size].reshape(count, block_size))}

    def prepare() -> dict:
        start = time.perf_counter()
        lines = datasets.load_dataset("text", data_files=file, split="train", keep_linebreaks=True)
        loaded = time.perf_counter()
        settings = {"batched": True, "batch_size": 4000, "remove_columns": ["text"], "features": features}
        blocks = lines.map(blocks_of, new_fingerprint="0" * 16, **settings)
        steps = {"load": loaded - start, "map": time.perf_counter() - loaded}
        return {"steps": steps, "tokens": len(blocks) * block_size, "blocks": len(blocks)}

    return prepare


RIVALS = {"gpt2tg": ours, "run_clm": run_clm, "map": lean_map}


def work(name: str, file: str, block_size: int) -> dict:
    """Prepare the file in this process, and measure it."""
    prepare = RIVALS[name](file, block_size)
    libraries = _peak_memory()
    told = prepare()
    return {
        **told,
        "seconds": sum(told["steps"].values()),
        "peak_mb": _peak_memory() / MEGABYTE,
        "libraries_mb": libraries / MEGABYTE,
    }


def _peak_memory() -> int:
    """Return the peak memory of this process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(name: str, file: Path, block_size: int) -> dict:
    """Run once with an empty cache, and once more, under `again`, with that cache."""
    with tempfile.TemporaryDirectory(prefix="gpt2tg-benchmark-") as cache:
        environment = {**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        for variable in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
            environment.pop(variable, None)
        command = [sys.executable, __file__, "--only", name, "--file", str(file), "--block_size", str(block_size)]
        first, again = (
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)
            for _ in range(2)
        )
    return {**first, "again": again}


def race(file: Path, block_size: int, runs: int) -> dict[str, list[dict]]:
    """Return the runs of each rival, made in turns. The first of each only warms the system's file cache."""
    measured: dict[str, list[dict]] = {name: [] for name in RIVALS}
    for run in range(runs + 1):
        for name, kept in measured.items():
            figures = measure(name, file, block_size)
            if run:
                kept.append(figures)
    return measured


def summary(runs: list[dict], megabytes: float) -> dict:
    """Return the median, minimum and maximum of a rival's runs."""
    return {
        "tokens": runs[0]["tokens"],
        "blocks": runs[0]["blocks"],
        "mb_per_second": spread([megabytes / run["seconds"] for run in runs]),
        "seconds": spread([run["seconds"] for run in runs]),
        "steps": {step: spread([run["steps"][step] for run in runs]) for step in runs[0]["steps"]},
        "peak_mb": spread([run["peak_mb"] for run in runs]),
        "libraries_mb": spread([run["libraries_mb"] for run in runs]),
        "again_seconds": spread([run["again"]["seconds"] for run in runs]),
        "again_peak_mb": spread([run["again"]["peak_mb"] for run in runs]),
    }


def line(name: str, figures: dict) -> str:
    """Return a rival's figures as text."""
    speed, seconds, memory = (figures[key] for key in ("mb_per_second", "seconds", "peak_mb"))
    steps = ", ".join(f"{step} {taken['median']:.2f}" for step, taken in figures["steps"].items())
    return (
        f"{name:>8}: {speed['median']:6.2f} MB/s ({speed['min']:.2f} to {speed['max']:.2f}), "
        f"{seconds['median']:.2f} s ({steps}), {memory['median']:.0f} MB "
        f"({memory['min']:.0f} to {memory['max']:.0f}; libraries {figures['libraries_mb']['median']:.0f}), "
        f"again {figures['again_seconds']['median']:.2f} s; {figures['tokens']:,} tokens, {figures['blocks']:,} blocks"
    )


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--file", type=Path, help="your own text, one example per line")
    text.add_argument("--megabytes", type=float, default=50, help="size of the generated text (default: 50)")
    parser.add_argument("--block_size", type=int, default=128, help="ids of a block (default: 128)")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default: 5)")
    parser.add_argument("--only", choices=RIVALS, help=argparse.SUPPRESS)  # what one process is started with
    return parser.parse_args()


def main() -> None:
    """Measure, print a table and the JSON."""
    options = parsed()
    if options.only:
        print(json.dumps(work(options.only, str(options.file), options.block_size)))
        return
    with tempfile.TemporaryDirectory(prefix="gpt2tg-benchmark-") as directory:
        file = options.file or Path(directory) / "text.txt"
        if not options.file:
            write_text(file, int(options.megabytes * MEGABYTE))
        megabytes = file.stat().st_size / MEGABYTE
        measured = race(file, options.block_size, options.runs)
    results = {name: summary(runs, megabytes) for name, runs in measured.items()}
    for name, figures in results.items():
        report(line(name, figures))
    told = {"machine": machine.description(PACKAGES), "runs": options.runs, "block_size": options.block_size}
    print(json.dumps({**told, "megabytes": megabytes, "own_text": bool(options.file), "rivals": results}))


if __name__ == "__main__":
    main()
