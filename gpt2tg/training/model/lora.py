"""Choose which weights are trained: all of them, the upper layers, or a low-rank adapter (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from transformers import GPT2LMHeadModel

from gpt2tg.options import BUNDLED_MODEL, TrainingOptions
from gpt2tg.training.checks import check_layers


def choose_weights(model: GPT2LMHeadModel, options: TrainingOptions, base: str) -> GPT2LMHeadModel | PeftModel:
    """Freeze the weights that are not trained, and add the adapter if there is one.

    With `lora` the whole model is frozen, and kept in 16 bits if it computes in 16 bits: nothing updates it. The
    adapter stays in fp32. With `freeze_layers` the lowest layers and the embeddings are frozen, and with them the
    output layer if it is tied to the embeddings.

    Args:
        base: the name or path under which the adapter will find its base model.

    Raises:
        UserError: `freeze_layers` is more than the model has.
    """
    check_layers(options, model.config.n_layer)
    if options.freeze_layers:
        _freeze(model, options.freeze_layers)
    return _with_adapter(model, options, base) if options.lora else model


def _freeze(model: GPT2LMHeadModel, layers: int) -> None:
    for part in (model.transformer.wte, model.transformer.wpe, *model.transformer.h[:layers]):
        part.requires_grad_(False)


def _with_adapter(model: GPT2LMHeadModel, options: TrainingOptions, base: str) -> PeftModel:
    if options.bf16 or options.fp16:
        half = torch.bfloat16 if options.bf16 else torch.float16
        model.to(half)  # type: ignore[arg-type]  # transformers' wrapper of `to` has the wrong signature
    model.name_or_path = base
    settings = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type]  # peft divides it by the rank: fractions work
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_targets),
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=options.revision,
    )
    with warnings.catch_warnings():  # peft uses a deprecated name of transformers
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, settings)
    adapted.loss_type = model.loss_type  # type: ignore[assignment]  # nn.Module allows any attribute
    # By default every save asks the hub whether the vocabulary was resized.
    save = partial(adapted.save_pretrained, save_embedding_layers=False)
    adapted.save_pretrained = save  # type: ignore[method-assign]  # of this instance alone
    return adapted


def plain_weights(model: GPT2LMHeadModel | PeftModel) -> dict[str, Tensor]:
    """Return the weights under plain names like `h.0.attn.c_attn.weight`, with the adapter merged in if there is one.

    With an adapter, the weights are copies in fp32.
    """
    if not isinstance(model, PeftModel):
        return {name.removeprefix("transformer."): weight.detach() for name, weight in model.state_dict().items()}
    weights: dict[str, Tensor] = {}
    for name, weight in model.get_base_model().state_dict().items():
        if "lora_" not in name:
            weights[name.removeprefix("transformer.").replace(".base_layer.", ".")] = weight.detach().float()
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLinear):
            key = f"{name.removeprefix('transformer.')}.weight"
            weights[key] = weights[key] + layer.get_delta_weight("default").detach().float()
    return weights


def base_reference(model_name: str, directory: Path) -> str:
    """Return how an adapter refers to its base model: the name on the hub, or the absolute path on this machine."""
    given = Path(model_name).expanduser()
    return str(directory.resolve()) if model_name != BUNDLED_MODEL and given.exists() else model_name
