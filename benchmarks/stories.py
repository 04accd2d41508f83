"""Measure how well a small story model writes: bits per byte, repeated sentences, and greedy texts that end in a loop.

    python benchmarks/stories.py --file held-out.txt
    python benchmarks/stories.py --file held-out.txt --model gpt2-tiny my_model --fine_tune

The file holds stories that no model was trained on, one paragraph per line and a blank line between stories. Every
model continues the same prompts with the same seeds. `--fine_tune` also fine-tunes each model on sample_data.txt, with
the flags of `make demo`, and reports the held-out perplexity before and after. A table and three texts of each model
go to stderr, JSON to the last line of stdout.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import machine
import torch
from formats import ROOT

sys.path.insert(0, str(ROOT))

from gpt2tg.comparison.metrics import ends_in_loop, split_words
from gpt2tg.generation.generator import Generator, load
from gpt2tg.options import DecodingOptions, EvaluationOptions

PROMPTS = (
    "Once upon a time",
    "The dragon",
    "There was once a poor miller who",
    "The old woman opened the door and",
    "The king had three daughters, and",
    "In a village by the sea",
    '"Who is there?" asked the',
    "The fox looked at the crow",
    "One winter night",
    "The little girl was not afraid of",
    "Far away in the mountains",
    "The youngest son said to his father,",
    "When the moon rose,",
    "The giant was so hungry that",
    "Nobody knew why the tower",
    "The frog jumped out of the well",
    "Early in the morning the soldier",
    "The queen looked into the mirror and",
    "A boy and his dog",
    "The ship had hardly left the harbour when",
)
DRAWN_TEXTS = 50
SHOWN_TEXTS = 3

# Shorter ones ("Yes," he said.) recur in any dialogue.
SHORTEST_SENTENCE = 4
SENTENCE_ENDS = re.compile(r"(?<=[.!?])[\"')]*\s+|\n+")

FABLES = ROOT / "sample_data.txt"

# Those of `make demo`.
FINE_TUNING = ("--epochs", "3", "--learning_rate", "3e-4")


def repeats_sentence(text: str) -> bool:
    """Whether a sentence of at least four words occurs twice in the text, whatever its case and punctuation."""
    sentences = [
        tuple(word for word in split_words(sentence) if word[0].isalnum()) for sentence in SENTENCE_ENDS.split(text)
    ]
    long_ones = [sentence for sentence in sentences if len(sentence) >= SHORTEST_SENTENCE]
    return len(set(long_ones)) < len(long_ones)


def greedy_texts(generator: Generator) -> list[str]:
    """Return a greedy completion of each prompt, of the default length."""
    options = DecodingOptions(decoding="greedy", num_sequences=1)
    return [generator.generate(prompt, options)[0].completion for prompt in PROMPTS]


def drawn_texts(generator: Generator, count: int = DRAWN_TEXTS) -> list[tuple[str, str]]:
    """Return prompts with top_p completions at the defaults. Text i has seed i, and the prompts take turns."""
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(count)]
    return [
        (prompt, generator.generate(prompt, DecodingOptions(num_sequences=1, seed=seed))[0].completion)
        for seed, prompt in enumerate(prompts)
    ]


def bits_per_byte(model: str, file: Path) -> float:
    """Return the evaluation of `--task evaluate`, whose windows slide by half of the context length."""
    from gpt2tg.checkpoint.checkpoint import resolve_checkpoint
    from gpt2tg.training.evaluate import evaluate

    options = EvaluationOptions(eval_file=(str(file),), examples="paragraph")
    return evaluate(resolve_checkpoint(model), options, torch.device("cpu")).bits_per_byte


def bits_per_byte_of(loss: float, generator: Generator, lines: Sequence[str]) -> float:
    """Return a loss in nats per token as bits per byte, if a byte takes as many tokens as in the lines.

    Models with different tokenizers can be compared by it.
    """
    tokens = sum(len(generator.encode(line)) + 1 for line in lines)  # one ends the text
    return loss / math.log(2) * tokens / sum(len(f"{line}\n".encode()) for line in lines)


def fine_tuned(model: str) -> dict[str, float]:
    """Return the held-out perplexity and bits per byte of the fables before and after the training of `make demo`, and
    its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = (sys.executable, "finetune_gpt2.py", "--model_name", model, "--train_file", str(FABLES))
        subprocess.run((*command, "--output_dir", f"{folder}/model", *FINE_TUNING), cwd=ROOT, check=True)
        seconds = time.perf_counter() - began
        with open(f"{folder}/model/training_log.csv", encoding="utf-8", newline="") as log:
            losses = [float(row["validation_loss"]) for row in csv.DictReader(log) if row["validation_loss"]]
    generator, fables = load(model, "cpu"), FABLES.read_text(encoding="utf-8").splitlines()
    return {
        "fables_perplexity_before": math.exp(losses[0]),
        "fables_perplexity_after": math.exp(min(losses)),
        "fables_bits_per_byte_before": bits_per_byte_of(losses[0], generator, fables),
        "fables_bits_per_byte_after": bits_per_byte_of(min(losses), generator, fables),
        "fine_tuning_seconds": seconds,
    }


def measure(model: str, file: Path | None) -> dict:
    """Return all figures of a model, and the texts to show."""
    generator = load(model, "cpu", precision="fp32")
    greedy, drawn = greedy_texts(generator), drawn_texts(generator)
    return {
        "model": model,
        "bits_per_byte": None if file is None else bits_per_byte(model, file),
        "greedy_loops": sum(ends_in_loop(split_words(text)) for text in greedy) / len(greedy),
        "drawn_repeating_a_sentence": sum(repeats_sentence(text) for _, text in drawn) / len(drawn),
        "texts": [prompt + text for prompt, text in drawn[:SHOWN_TEXTS]],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["gpt2-tiny"], help="models to measure (default: gpt2-tiny)")
    parser.add_argument("--file", type=Path, help="stories to measure bits per byte on")
    parser.add_argument("--fine_tune", action="store_true", help="also fine-tune each on sample_data.txt")
    chosen = parser.parse_args(argv)
    results = []
    for model in chosen.model:
        found = measure(model, chosen.file) | (fine_tuned(model) if chosen.fine_tune else {})
        results.append(found)
        for name, value in found.items():
            if name != "texts":
                print(f"{name:30} {value:.4g}" if isinstance(value, float) else f"{name:30} {value}", file=sys.stderr)
        for text in found["texts"]:
            print(f"\n{text}\n", file=sys.stderr)
    print(json.dumps({"machine": machine.description(), "prompts": PROMPTS, "models": results}))


if __name__ == "__main__":
    main()
