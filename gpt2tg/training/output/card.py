"""Write the model card: the README.md of an output directory, in the format of the Hugging Face hub."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from gpt2tg.checkpoint.find import is_directory
from gpt2tg.inspection.perplexity import perplexity
from gpt2tg.options import BUNDLED_MODEL, TrainingOptions, default_of

# The hub's names of models that have shorter ones.
HUB_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
HUB_NAMES |= {"distilgpt2": "distilbert/distilgpt2"}
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

# Settings that the card always names. Of all others it names those that differ from the default.
ALWAYS_SHOWN = ("block_size", "batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "seed")

# Settings that the card never names: paths and prompts are private, and the others do not affect the weights.
NEVER_SHOWN = {
    "train_file",
    "validation_file",
    "test_file",
    "output_dir",
    "resume",
    "resume_anyway",
    "overwrite",
    "prompt",
}
NEVER_SHOWN |= {
    "generate_samples",
    "num_samples",
    "sample_steps",
    "chat_template",  # a path
    "logging_steps",
    "report_to",
    "save_steps",
    "save_minutes",
}
NEVER_SHOWN |= {"try_", "push_to_hub", "trainer"}
NEVER_SHOWN |= {"dataset_name", "dataset_split", "dataset_revision", "dataset_streaming"}

CARD = """\
---
{metadata}
---

# A GPT-2 of its own

{origin} on a text with gpt2tg {version}.
{state}

## Use

```sh
python generate_from_finetuned.py --model_path DIRECTORY{flags}
```

or, with transformers:

```python
{load}
print(generate({prompt}))
```

## Data

{data}

## Results

{results}

![Loss by step](loss.png)

## Settings

{settings}

## Made with

{software}
"""


# How transformers loads the model. Its pipeline looks for whole models, and peft enlarges the embedding for new tokens.
LOAD = """\
from transformers import pipeline

generate = pipeline("text-generation", model="DIRECTORY")"""
LOAD_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import pipeline

model = AutoPeftModelForCausalLM.from_pretrained("DIRECTORY")
generate = pipeline("text-generation", model=model, tokenizer="DIRECTORY")"""


def model_card(run: dict[str, Any], step: int | None) -> str:
    """Return the card in Markdown.

    Args:
        run: the content of run.json.
        step: the step of the model that the directory itself holds; None before the first save.
    """
    figures, base = run["figures"], run["model_name"]
    is_chat = run["data"].get("conversations", False)
    is_adapter = all(run["options"].get(name) for name in ("lora", "no_merge"))
    state = f"The weights here are those of step {step:,}" if step else "No weights were saved yet"
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=_hub_name(base),
        datasets=_hub_dataset(run["data"]),
        tags=["gpt2", "gpt2tg"],
    )
    return CARD.format(
        metadata=metadata.to_yaml(),
        origin=f"`{Path(base).name}`{_at_commit(run)}, fine-tuned" if base else "A GPT-2 trained from scratch",
        version=run["versions"]["gpt2tg"],
        state=f"{state}; the run stands at step {figures['step']:,} of {figures['of_steps']:,}.",
        flags=' --chat --prompt "Who are you?"' if is_chat else "",
        load=LOAD_ADAPTER if is_adapter else LOAD,
        prompt='[{"role": "user", "content": "Who are you?"}]' if is_chat else '"Once upon a time"',
        data=_data(run["data"], run["options"]["block_size"]),
        results=_results(figures, run.get("test")),
        settings=_settings(run["options"]),
        software=_table({**run["versions"], "device": run["device"]}),
    )


def _at_commit(run: dict[str, Any]) -> str:
    commit = run.get("model_commit")
    return f" at commit {commit[:12]}" if commit else ""


def _hub_name(base: str | None) -> str | None:
    """Return the hub's name of the model that was fine-tuned; None if it was not from the hub."""
    if base is None or base == BUNDLED_MODEL or is_directory(base) or not HUB_NAME.fullmatch(base):
        return None
    return HUB_NAMES.get(base, base)


def _hub_dataset(data: dict[str, Any]) -> list[str] | None:
    """Return the dataset that was trained on, if it is on the hub; a local folder is private."""
    dataset = data.get("dataset")
    return [dataset["name"]] if dataset and dataset["commit"] else None


def _data(data: dict[str, Any], block_size: int) -> str:
    held_out = data["validation_blocks"]
    blocks = f"{held_out:,} block{'' if held_out == 1 else 's'}"
    return (
        f"{data['train_examples']:,} examples in {data['train_blocks']:,} blocks of {block_size} tokens"
        + (f", and {blocks} held out for validation." if held_out else "; nothing was held out.")
    )  # fmt: skip


def _results(figures: dict[str, Any], test: dict[str, Any] | None = None) -> str:
    rows = {
        "training, last": figures["training_loss"],
        "validation, before": figures["validation_loss_before"],
        "validation, last": figures["validation_loss"],
        f"validation, best (step {figures['best_step']})": figures["best_validation_loss"],
    }
    if test is not None:
        rows[f"test, measured once (step {test['step']})"] = test["loss"]
    lines = [
        f"| {name} | {loss:.4f} | {perplexity(loss):.2f} |"
        for name, loss in rows.items()
        if loss is not None and math.isfinite(loss)
    ]
    return "\n".join(["| | loss (nats per token) | perplexity |", "|---|---|---|", *lines])


def _settings(options: dict[str, Any]) -> str:
    return _table({name: value for name, value in options.items() if name not in NEVER_SHOWN and _matters(name, value)})


def _matters(name: str, value: Any) -> bool:
    return name in ALWAYS_SHOWN or value != default_of(TrainingOptions, name)


def _table(entries: dict[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in entries.items())])
