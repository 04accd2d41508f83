"""Map the names of tensors in a file to GPT-2's own names, such as `h.0.ln_1.weight`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

# The token embedding and the language-model head. Where the two share one tensor, a file may have it under either name.
EMBEDDING, HEAD = "wte.weight", "lm_head.weight"

# Modules that wrap another one put their name into the names below it: torch.compile, data parallelism, FSDP,
# activation checkpointing, DeepSpeed. None of these words is part of a tensor's own name.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}

# Prefixes of the names that GPT2Model and GPT2LMHeadModel of transformers save.
OWN_PREFIXES = ("", "transformer.")

# Modules that peft puts around a layer that it changes.
PEFT_WRAPPERS = re.compile(r"\.(base_layer|token_adapter|modules_to_save(\.default)?|original_module)(?=\.)")

# The causal masks that old versions of transformers saved with the weights.
MASKS = re.compile(r"(^|\.)(attn|crossattention)\.(masked_)?bias$")


def plain_name(stored: str, known: Collection[str]) -> str | None:
    """Return GPT-2's own name of a stored tensor, or None if GPT-2 has no such tensor.

    Prefixes and the names of wrapping modules are removed.

    Args:
        stored: the name in the file, such as `_orig_mod.transformer.h.0.ln_1.weight`.
        known: the names that GPT-2 has, such as `h.0.ln_1.weight`.
    """
    parts = [part for part in stored.split(".") if part not in WRAPPERS]
    candidates = (".".join(parts[start:]) for start in range(len(parts)))
    return next((name for name in candidates if name in known), None)


def stored_names(stored: Iterable[str], known: Collection[str]) -> dict[str, list[str]]:
    """Return the stored names of each tensor, by its plain name.

    Names with a prefix of transformers take precedence: if a tensor has one, its other names are dropped. Several
    names remain if a file holds a tensor several times.
    """
    found: dict[str, list[str]] = {}
    for name in stored:
        if (plain := plain_name(name, known)) is not None:
            found.setdefault(plain, []).append(name)
    for plain, names in found.items():
        found[plain] = [name for name in names if name.removesuffix(plain) in OWN_PREFIXES] or names
    return found


def plain_adapter_name(stored: str, known: Collection[str]) -> str | None:
    """Return GPT-2's own name of a tensor in a file of peft, or None if GPT-2 has no such tensor.

    Args:
        stored: the name in the file, such as `base_model.model.transformer.wte.modules_to_save.weight`.
        known: the names that GPT-2 has.
    """
    return plain_name(PEFT_WRAPPERS.sub("", stored), known)
