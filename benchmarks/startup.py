"""Measure the time to the first and the last token of a whole process: ours and a short transformers script.

    python benchmarks/startup.py                      # gpt2's shape with random weights
    python benchmarks/startup.py --model gpt2-tiny

Each run starts a new process. The rivals take turns; the table goes to stderr, JSON to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import formats
import machine
from programs import precisions_of_ours
from workers import report, spread

PROMPT = "Once upon a time"

RIVAL = """\
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
tokenizer, model = AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer(sys.argv[2], return_tensors="pt")
streamer = TextStreamer(tokenizer, skip_prompt=True)
model.generate(**inputs, max_new_tokens=int(sys.argv[3]), min_new_tokens=int(sys.argv[3]), do_sample=False,
               pad_token_id=model.config.eos_token_id, streamer=streamer)
"""


def commands(model: str, tokens: int) -> dict[str, list[str]]:
    """Return the command line of each rival; all decode greedily and cannot end the text early."""
    script = str(formats.ROOT / "generate_from_finetuned.py")
    ours = [sys.executable, script, "--model_path", model, "--prompt", PROMPT]
    ours += ["--decoding", "greedy", "--suppress_eos", "--max_new_tokens", str(tokens)]
    chosen = {f"gpt2tg-{precision}": ["--precision", precision] for precision in precisions_of_ours()}
    rivals = {name: [*ours, *flags] for name, flags in (chosen or {"gpt2tg-fp32": []}).items()}
    return {**rivals, "transformers": [sys.executable, "-c", RIVAL, model, PROMPT, str(tokens)]}


def measure(command: list[str]) -> tuple[float, float]:
    """Return wall seconds of a whole process, and its peak memory in MB."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    script = (
        "import resource, subprocess, sys, time; start = time.perf_counter(); "
        "subprocess.run(sys.argv[1:], check=True, capture_output=True); "
        "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *command], check=True, capture_output=True, text=True, env=environment
    )
    seconds, kilobytes = run.stdout.split()
    return float(seconds), int(kilobytes) / 1024


def main() -> None:
    """Measure, print a table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = (*formats.SHAPES, "gpt2-tiny")
    parser.add_argument("--model", choices=shapes, default="gpt2", help="random weights of this shape, or the bundled")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default: 5)")
    options = parser.parse_args()
    model = str(formats.checkpoint(options.model))
    results = []
    for tokens in (1, 50):
        rivals = commands(model, tokens)
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
        for run in range(options.runs + 1):  # the first only warms the file cache
            for name, command in rivals.items():
                figures = measure(command)
                if run:
                    measured[name].append(figures)
        table = {}
        for name, runs in measured.items():
            seconds, memory = (spread(list(values)) for values in zip(*runs, strict=True))
            table[name] = {"seconds": seconds, "peak_mb": memory}
            report(
                f"{name:>12}, {tokens:2} tokens: {seconds['median']:6.2f} s "
                f"({seconds['min']:.2f} to {seconds['max']:.2f}), {memory['median']:6.0f} MB"
            )
        results.append({"model": options.model, "new_tokens": tokens, "rivals": table})
    print(json.dumps({"machine": machine.description(), "runs": options.runs, "results": results}))


if __name__ == "__main__":
    main()
