"""The files of an output directory: their names, who wrote them, and what run.json records.

Commands look into the directory before torch is imported, so this module imports nothing that loads slowly.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.file_names import (
    ADAPTER_CONFIG,
    ADAPTER_DIRECTORY,
    ADAPTER_WEIGHTS,
    CONFIG_FILES,
    TOKENIZER_FILES,
)
from gpt2tg.checkpoint.runs import LOG_FILE
from gpt2tg.io.json_files import read_object
from gpt2tg.training.output.durable import checksum, paths_inside, write_text_file

# Written first, and deleted last: a directory that holds it was made by a run of ours.
RUN_FILE = "run.json"

PLOT_FILE, SAMPLES_FILE, CARD_FILE = "loss.png", "samples.md", "README.md"

# The entry of run.json with the sha256 of the last model card, and of the one before it: a kill may come between.
CARD_DIGESTS = "card_sha256"

# What a resumed run needs besides the model. With accelerate's FSDP the optimizer file has another name.
STATE_FILES = OPTIMIZER_FILE, SCHEDULER_FILE, STATE_FILE = "optimizer.pt", "scheduler.pt", "trainer_state.json"
FSDP_WEIGHTS, FSDP_OPTIMIZER = "pytorch_model_fsdp.bin", "optimizer.bin"

# The files of a model, in the order in which they are replaced: the weights last.
WEIGHTS = "model.safetensors"
MODEL_FILES = (*CONFIG_FILES, *TOKENIZER_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS)

# transformers' name of the output layer; all other weights are named `transformer.*`.
OUTPUT_LAYER = "lm_head.weight"

ADAPTER_DIRECTORY_FILES = tuple(f"{ADAPTER_DIRECTORY}/{name}" for name in MODEL_FILES)

# The folder of the runs of --try, one folder each, and the table and the plot of their results.
TRIES_DIRECTORY, TRIES_TABLE, TRIES_PLOT = "tries", "tries.csv", "tries.png"

# RECORD_FILES are written by every run. RUN_FILES are all that a run may write beside the checkpoint-N folders.
RECORD_FILES = (RUN_FILE, LOG_FILE, PLOT_FILE, CARD_FILE)
RUN_FILES = (*RECORD_FILES, SAMPLES_FILE, *MODEL_FILES)


def is_ours(directory: Path) -> bool:
    """Whether a run of ours made this directory."""
    versions = read_run(directory).get("versions")
    return isinstance(versions, dict) and "gpt2tg" in versions


def is_search(directory: Path) -> bool:
    """Whether this is the output directory of a search with --try."""
    return isinstance(read_run(directory).get("tries"), list)


def read_run(directory: Path) -> dict[str, Any]:
    """Return the content of run.json; an empty dict if it cannot be read."""
    try:
        return read_object(directory / RUN_FILE)
    except (OSError, ValueError):
        return {}


def write_run(directory: Path, run: dict[str, Any]) -> None:
    """Write run.json. Files that it listed as written stay listed, and the digests of the model card stay known."""
    earlier = read_run(directory)
    digests = {CARD_DIGESTS: earlier[CARD_DIGESTS]} if CARD_DIGESTS in earlier else {}
    files = sorted({*run.get("files", ()), *RECORD_FILES, *written_files(directory)})
    content = {**digests, **run, "files": files}
    write_text_file(directory / RUN_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n")


def is_card_edited(directory: Path) -> bool:
    """Whether the model card differs from those that our runs wrote. Early versions recorded no digests: then False."""
    card, digests = directory / CARD_FILE, read_run(directory).get(CARD_DIGESTS)
    return isinstance(digests, list) and card.is_file() and checksum(card) not in digests


def written_files(directory: Path) -> set[str]:
    """Return the files that our runs wrote into a directory, besides its checkpoints, as run.json lists them.

    Early versions kept no list: then these are all files present that a run may write.
    """
    run = read_run(directory)
    if not run:
        return set()
    if isinstance(names := run.get("files"), list):
        return {*paths_inside(names), RUN_FILE}
    possible = (*RUN_FILES, *ADAPTER_DIRECTORY_FILES, TRIES_TABLE, TRIES_PLOT)
    return {name for name in possible if (directory / name).is_file()}


def runs_below(directory: Path) -> list[Path]:
    """Return the folders of the runs of --try."""
    tries = directory / TRIES_DIRECTORY
    return [folder for folder in sorted(tries.iterdir()) if is_ours(folder)] if tries.is_dir() else []


def make_readable(directory: Path) -> None:
    """Give the model's files the permissions of ordinary new files: safetensors makes weights readable to their owner
    alone."""
    umask = os.umask(0)
    os.umask(umask)
    for name in RUN_FILES:
        if (directory / name).is_file():
            (directory / name).chmod(0o666 & ~umask)
