"""Every option of every command, once: its name, default, help text and range.

The command line, the Python API and the session all read these dataclasses. The wing imports nothing but the standard
library, so that `--help` answers at once.
"""

from __future__ import annotations

from gpt2tg.options.comparing import (
    DEFAULT_REFERENCE_PROMPTS,
    MOST_TUNING_PROMPTS,
    NOT_FOR_TUNING,
    SEARCHED_SETTINGS,
    TUNING_BATCH_SIZE,
    TUNING_NEW_TOKENS,
    CompareOptions,
    TuneOptions,
)
from gpt2tg.options.completions import CompletionOptions
from gpt2tg.options.data import Examples
from gpt2tg.options.decoding import (
    DEFAULT_MAX_LENGTH,
    DEFAULT_NUM_SEQUENCES,
    DEFAULT_PROMPT_LOOKUP,
    DecodingOptions,
    EarlyStopping,
    Overflow,
    decoding_options,
)
from gpt2tg.options.evaluation import EvaluationOptions
from gpt2tg.options.exporting import ExportFormat, ExportOptions, ExportPrecision
from gpt2tg.options.fields import LARGEST_SEED, Options, default_of, number_from, only, option_value, plain_type
from gpt2tg.options.model import (
    BUNDLED_MODEL,
    HUB_MODELS,
    AdapterOptions,
    BestOrLast,
    CheckpointOptions,
    DeviceKind,
    DeviceOptions,
    DraftOptions,
    ModelNameOptions,
    ModelPathOptions,
    Precision,
    PrecisionOptions,
    RevisionOptions,
)
from gpt2tg.options.optimization import Compile, LoraTarget
from gpt2tg.options.optimizers import (
    BY_VALIDATION,
    PACKAGES,
    SCHEDULE_FREE_PREFIX,
    UNSUITABLE,
    WITHOUT_BETA2,
    WITHOUT_LENGTH,
    WITHOUT_WARMUP,
    Optimizer,
    Scheduler,
)
from gpt2tg.options.prompts import (
    DEFAULT_PROMPT,
    SESSION_NEW_TOKENS,
    SESSION_SEQUENCES,
    InspectionOptions,
    OutputFormat,
    PromptOptions,
    SessionOptions,
)
from gpt2tg.options.serving import ServingOptions
from gpt2tg.options.strategies import STRATEGIES, Strategy, StrategyName
from gpt2tg.options.tasks import ALL_IN_ONE_DEFAULTS, Task, TaskOptions
from gpt2tg.options.training import FROM_SCRATCH_FLAGS, TrainingOptions
from gpt2tg.options.training_run import NEWEST
from gpt2tg.options.unused import unused_options, why_unused

__all__ = [
    "ALL_IN_ONE_DEFAULTS",
    "BUNDLED_MODEL",
    "BY_VALIDATION",
    "DEFAULT_MAX_LENGTH",
    "DEFAULT_NUM_SEQUENCES",
    "DEFAULT_PROMPT",
    "DEFAULT_PROMPT_LOOKUP",
    "DEFAULT_REFERENCE_PROMPTS",
    "FROM_SCRATCH_FLAGS",
    "HUB_MODELS",
    "LARGEST_SEED",
    "MOST_TUNING_PROMPTS",
    "NEWEST",
    "NOT_FOR_TUNING",
    "PACKAGES",
    "SCHEDULE_FREE_PREFIX",
    "SEARCHED_SETTINGS",
    "SESSION_NEW_TOKENS",
    "SESSION_SEQUENCES",
    "STRATEGIES",
    "TUNING_BATCH_SIZE",
    "TUNING_NEW_TOKENS",
    "UNSUITABLE",
    "WITHOUT_BETA2",
    "WITHOUT_LENGTH",
    "WITHOUT_WARMUP",
    "AdapterOptions",
    "BestOrLast",
    "CheckpointOptions",
    "CompareOptions",
    "Compile",
    "CompletionOptions",
    "DecodingOptions",
    "DeviceKind",
    "DeviceOptions",
    "DraftOptions",
    "EarlyStopping",
    "EvaluationOptions",
    "Examples",
    "ExportFormat",
    "ExportOptions",
    "ExportPrecision",
    "InspectionOptions",
    "LoraTarget",
    "ModelNameOptions",
    "ModelPathOptions",
    "Optimizer",
    "Options",
    "OutputFormat",
    "Overflow",
    "Precision",
    "PrecisionOptions",
    "PromptOptions",
    "RevisionOptions",
    "Scheduler",
    "ServingOptions",
    "SessionOptions",
    "Strategy",
    "StrategyName",
    "Task",
    "TaskOptions",
    "TrainingOptions",
    "TuneOptions",
    "decoding_options",
    "default_of",
    "number_from",
    "only",
    "option_value",
    "plain_type",
    "unused_options",
    "why_unused",
]
