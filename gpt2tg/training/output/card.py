"""README.md of an output directory: a model card as the hub of Hugging Face shows it, true of this very run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.find import is_directory
from gpt2tg.options import BUNDLED_MODEL, TrainingOptions, default_of
from gpt2tg.training.evaluate import perplexity

# What the hub calls models that are known by shorter names.
HUB_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
HUB_NAMES |= {"distilgpt2": "distilbert/distilgpt2"}
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def model_card(run: dict[str, Any], step: int | None) -> str:
    """The card in Markdown.

    Args:
        run: what run.json holds.
        step: the step of the model that the directory itself holds; None before the first is saved.
    """
    figures, options, base = run["figures"], run["options"], run["model_name"]
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if name := _hub_name(base):
        front += [f"base_model: {json.dumps(name)}"]
    front += ["tags:", "- gpt2", "- gpt2tg"]
    origin = f"`{Path(base).name}`, fine-tuned" if base else "A GPT-2 trained from scratch"
    lines = [
        *front,
        "---",
        "",
        "# A GPT-2 of its own",
        "",
        f"{origin} on a text with gpt2tg {run['versions']['gpt2tg']}.",
    ]
    state = f"The weights here are those of step {step:,}" if step else "No weights were saved yet"
    lines += [f"{state}; the run stands at step {figures['step']:,} of {figures['of_steps']:,}.", ""]
    lines += ["## Use", "", "```sh", "python generate_from_finetuned.py --model_path DIRECTORY", "```", ""]
    lines += ["or, with transformers:", "", "```python", "from transformers import pipeline", ""]
    lines += [
        'generate = pipeline("text-generation", model="DIRECTORY")',
        'print(generate("Once upon a time"))',
        "```",
        "",
    ]
    lines += ["## Data", "", *_data(run["data"], options), "", "## Results", "", *_results(figures), ""]
    lines += ["![Loss by step](loss.png)", "", "## Settings", "", *_settings(options), "", "## Made with", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {version} |" for name, version in run["versions"].items())]
    lines += [f"| device | {run['device']} |", ""]
    return "\n".join(lines)


def _hub_name(base: str | None) -> str | None:
    """The name on the hub of the model that was fine-tuned; None for a directory of whoever trained it."""
    if base is None or base == BUNDLED_MODEL or is_directory(base) or not HUB_NAME.fullmatch(base):
        return None
    return HUB_NAMES.get(base, base)


def _data(data: dict[str, Any], options: dict[str, Any]) -> list[str]:
    held_out = data["validation_blocks"]
    return [
        f"{data['train_examples']:,} examples in {data['train_blocks']:,} blocks of {options['block_size']} tokens"
        + (f", and {held_out:,} blocks held out for validation." if held_out else "; nothing was held out."),
    ]


def _results(figures: dict[str, Any]) -> list[str]:
    lines = ["| | loss (nats per token) | perplexity |", "|---|---|---|"]
    rows = {
        "training, last": figures["training_loss"],
        "validation, before": figures["validation_loss_before"],
        "validation, last": figures["validation_loss"],
        f"validation, best (step {figures['best_step']})": figures["best_validation_loss"],
    }
    for name, loss in rows.items():
        if loss is not None and math.isfinite(loss):
            lines.append(f"| {name} | {loss:.4f} | {perplexity(loss):.2f} |")
    return lines


# What matters to whoever wants to do it again; other settings are named where they are not the default.
ALWAYS_SHOWN = ("block_size", "batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "seed")

# Paths and prompts are nobody's business but theirs who trained the model; the rest shapes no weights.
NOT_SHOWN = {"train_file", "validation_file", "output_dir", "resume", "resume_anyway", "overwrite", "prompt"}
NOT_SHOWN |= {"generate_samples", "num_samples", "sample_steps", "logging_steps", "report_to", "save_steps"}
NOT_SHOWN |= {"try_", "push_to_hub", "trainer"}


def _settings(options: dict[str, Any]) -> list[str]:
    shown = {name: value for name, value in options.items() if name not in NOT_SHOWN and _matters(name, value)}
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in shown.items())]


def _matters(name: str, value: Any) -> bool:
    return name in ALWAYS_SHOWN or value != default_of(TrainingOptions, name)
