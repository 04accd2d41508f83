"""The optimizers and learning rate schedules that a run can name: those of transformers, and Muon.

transformers takes seconds to import, so the names are listed here. A test compares them with its enums.
"""

from __future__ import annotations

from typing import Literal

Optimizer = Literal[
    "adamw_torch_fused", "adamw_torch", "muon", "adafactor", "sgd", "adagrad", "rmsprop",
    "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
    "adamw_torch_8bit", "adamw_torch_4bit",
    "schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd",
    "stable_adamw", "adamw_anyprecision",
]  # fmt: skip

Scheduler = Literal[
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau", "greedy",
]  # fmt: skip

# Optimizers that are not part of torch or transformers: the module that must be importable, and what pip calls it.
BITSANDBYTES, TORCHAO, SCHEDULE_FREE = ("bitsandbytes",) * 2, ("torchao",) * 2, ("schedulefree",) * 2
PACKAGES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        (
            "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
            "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
            "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
            "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
        ),
        BITSANDBYTES,
    ),
    **dict.fromkeys(("adamw_torch_8bit", "adamw_torch_4bit"), TORCHAO),
    **dict.fromkeys(("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"), SCHEDULE_FREE),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
}  # fmt: skip

# Optimizers of transformers that are refused, and why.
_CONV1D = "works on torch's Linear layers, and the layers of a GPT-2 are none: choose muon or adafactor"
_BACKWARD = (
    "updates weights during the backward pass, without gradient norms, accumulation or a state that checkpoints "
    "store: choose adafactor"
)
UNSUITABLE: dict[str, str] = {
    "adamw_torch_xla": "is for TPUs, on which gpt2tg does not train: choose adamw_torch",
    "adamw_torch_npu_fused": "is for NPUs, on which gpt2tg does not train: choose adamw_torch",
    "adamw_apex_fused": "was removed from transformers: choose adamw_torch_fused",
    **dict.fromkeys(
        (
            "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise",
            "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "apollo_adamw", "apollo_adamw_layerwise",
        ),
        _CONV1D,
    ),
    "lomo": _BACKWARD,
    "adalomo": _BACKWARD,
    "grokadamw": "keeps its state where checkpoints do not store it, so that no run could resume: choose adamw_torch",
}  # fmt: skip

# Optimizers that average weights instead of lowering the learning rate.
SCHEDULE_FREE_PREFIX = "schedule_free_"

# Optimizers for which `adam_beta2` does nothing.
WITHOUT_BETA2 = (
    "adafactor", "sgd", "adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
    "schedule_free_sgd",
)  # fmt: skip

# Schedules that follow the validation loss. They do not know the length of the run.
BY_VALIDATION = ("reduce_lr_on_plateau", "greedy")

# Schedules for which `warmup_steps` does nothing.
WITHOUT_WARMUP = ("constant", *BY_VALIDATION)

# Schedules whose rate at a step does not depend on the length of the run, unless the warm-up is a share of it.
WITHOUT_LENGTH = ("constant", "constant_with_warmup", "inverse_sqrt", *BY_VALIDATION)
