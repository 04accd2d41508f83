"""What `gpt2_text_generation.py` does, and its defaults where they differ from those of the other scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gpt2tg.options.fields import Options, option

Task = Literal["train", "generate", "evaluate"]


@dataclass(frozen=True)
class TaskOptions(Options):
    """The task of a run of `gpt2_text_generation.py`."""

    task: Task | None = option(None, "what to do", group="task", choices=Task, is_common=True, is_required=True)


ALL_IN_ONE_DEFAULTS: dict[str, Any] = {
    "output_dir": "./trained_model",
    "decoding": "greedy",
    "max_length": 100,
    "num_sequences": 1,
}
