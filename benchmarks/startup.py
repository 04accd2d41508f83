"""Time to the first token and to the last of one-shot generation: ours beside a short transformers script.

    python benchmarks/startup.py                      # gpt2's shape with random weights
    python benchmarks/startup.py --model gpt2-tiny

Each run is a whole process, started anew. The rivals take turns; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run from a checkout, nothing installed

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
    """The rivals as command lines; both write greedily and may not end the text early."""
    ours = [sys.executable, str(ROOT / "generate_from_finetuned.py"), "--model_path", model, "--prompt", PROMPT]
    ours += ["--decoding", "greedy", "--suppress_eos", "--max_new_tokens", str(tokens)]
    return {"gpt2tg": ours, "transformers": [sys.executable, "-c", RIVAL, model, PROMPT, str(tokens)]}


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds of a whole process, and its peak memory in MB."""
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


def random_gpt2(directory: Path) -> Path:
    """A checkpoint of gpt2's shape: random weights, the bundled tokenizer's place taken by one of gpt2's size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2tg.engine.checkpoints import BUNDLED_DIRECTORY
    from gpt2tg.engine.tokenizer import load_tokenizer
    from gpt2tg.training.model import transformers_tokenizer

    GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).save_pretrained(directory)
    transformers_tokenizer(load_tokenizer(BUNDLED_DIRECTORY, 50257, 0), 1024).save_pretrained(directory)
    return directory


def summary(values: list[float]) -> dict[str, float]:
    """Median and ends."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Measure, print a table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or directory (default: gpt2's shape with random weights)")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or str(random_gpt2(Path(scratch)))
        if model == "gpt2-tiny":
            from gpt2tg.engine.checkpoints import BUNDLED_DIRECTORY

            model = str(BUNDLED_DIRECTORY)
        results = {}
        for tokens in (1, 50):
            rivals = commands(model, tokens)
            seconds: dict[str, list[float]] = {name: [] for name in rivals}
            memory: dict[str, list[float]] = {name: [] for name in rivals}
            for run in range(options.runs + 1):  # the first only warms the file cache
                for name, command in rivals.items():
                    wall, peak = measure(command)
                    if run:
                        seconds[name].append(wall)
                        memory[name].append(peak)
            for name in rivals:
                figures = {"seconds": summary(seconds[name]), "peak_mb": summary(memory[name])}
                results[f"{name}, {tokens} tokens"] = figures
                wall, peak = figures["seconds"], figures["peak_mb"]
                print(
                    f"{name:>12}, {tokens:2} tokens: {wall['median']:6.2f} s ({wall['min']:.2f} to {wall['max']:.2f}), "
                    f"{peak['median']:6.0f} MB"
                )
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"model": options.model or "gpt2, random", "results": results, "versions": versions, **machine}))


if __name__ == "__main__":
    main()
