"""Measure how long a whole process takes to its first token and to its end: gpt2tg, and a short transformers script.

    python benchmarks/startup.py                      # gpt2's shape with random weights, about two minutes
    python benchmarks/startup.py --model gpt2-tiny

Each run is a new process; the first token is there when its first byte arrives. The floor is a process that imports
torch and prints a line. The rivals take turns; the table goes to stderr, and the results to a file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import formats
import machine
import results
from programs import precisions_of_ours
from workers import report, spread

PROMPT = "Once upon a time"
FLOOR = "import torch alone"

RIVAL = """\
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer(sys.argv[2], return_tensors="pt")
class Streamer:
    prompt = True
    def put(self, ids):
        if not self.prompt:
            print(tokenizer.decode(ids), end="", flush=True)
        self.prompt = False
    def end(self):
        print(flush=True)
model.generate(**inputs, max_new_tokens=int(sys.argv[3]), min_new_tokens=int(sys.argv[3]), do_sample=False,
               pad_token_id=model.config.eos_token_id, streamer=Streamer())
"""


def commands(model: str, tokens: int) -> dict[str, list[str]]:
    """Return the command line of each rival; all decode greedily and cannot end the text early."""
    script = str(formats.ROOT / "generate_from_finetuned.py")
    ours = [sys.executable, script, "--model_path", model, "--prompt", PROMPT, "--num_sequences", "1"]
    ours += ["--decoding", "greedy", "--suppress_eos", "--max_new_tokens", str(tokens)]
    chosen = {f"gpt2tg-{precision}": ["--precision", precision] for precision in precisions_of_ours()}
    return {
        **{name: [*ours, *flags] for name, flags in (chosen or {"gpt2tg-fp32": []}).items()},
        "transformers": [sys.executable, "-c", RIVAL, model, PROMPT, str(tokens)],
        FLOOR: [sys.executable, "-c", "import torch; print(torch.__version__)"],
    }


def measure(command: list[str]) -> tuple[float, float, float]:
    """Return the seconds of a new process to its first byte and to its end, and its peak memory in MB.

    Raises:
        SystemExit: the process failed; the message is the end of what it said.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, bufsize=0, env=environment) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        first = time.perf_counter() - start
        while process.stdout.read(2**16):
            pass
        said = process.stderr.read().decode(errors="replace").strip()
        _, status, used = os.wait4(process.pid, 0)
        whole = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {said[-300:]}")
    return first, whole, used.ru_maxrss / 1024


def main() -> None:
    """Measure, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = (*formats.SHAPES, "gpt2-tiny")
    parser.add_argument("--model", choices=shapes, default="gpt2", help="random weights of this shape, or the bundled")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default: 5)")
    parser.add_argument("--new_tokens", type=int, default=50, help="(default: 50)")
    output = results.FOLDER / "startup.json"
    parser.add_argument("--output", type=Path, default=output, help="the file of results (default: %(default)s)")
    options = parser.parse_args()
    rivals = commands(str(formats.checkpoint(options.model)), options.new_tokens)
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in rivals}
    for run in range(options.runs + 1):  # the first only warms the file cache
        for name, command in rivals.items():
            figures = measure(command)
            if run:
                measured[name].append(figures)
    found = {}
    for name, runs in measured.items():
        first, whole, memory = (spread(list(values)) for values in zip(*runs, strict=True))
        found[name] = {"first": first, "whole": whole, "peak_mb": memory}
        report(
            f"{name:>18}: first token {first['median']:5.2f} s ({first['min']:.2f} to {first['max']:.2f}), "
            f"{options.new_tokens} tokens {whole['median']:5.2f} s, {memory['median']:6.0f} MB"
        )
    run = {"model": options.model, "repeats": options.runs, "new_tokens": options.new_tokens}
    results.save({"run": run, "machine": machine.description(), "results": found}, options.output)
    report(f"written to {options.output}")


if __name__ == "__main__":
    main()
