"""What is trained of a model: all of it, its upper layers, or a low-rank adapter by peft."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import GPT2LMHeadModel

from gpt2tg.options import BUNDLED_MODEL, TrainingOptions
from gpt2tg.training.checks import check_layers


def choose_weights(model: GPT2LMHeadModel, options: TrainingOptions, base: str) -> GPT2LMHeadModel | PeftModel:
    """Settle which weights learn.

    With `lora` the model itself is frozen, in 16 bits where it is computed in those: it needs no better copy. The
    adapter stays in fp32. With `freeze_layers` the lowest layers and the embeddings are frozen, and so is the output
    layer where it is the same matrix as the embeddings.

    Args:
        base: how the model is to be found by those who load the adapter.

    Raises:
        UserError: more layers frozen than there are.
    """
    check_layers(options, model.config.n_layer)
    if options.freeze_layers:
        _freeze(model, options.freeze_layers)
    if not options.lora:
        return model
    if options.bf16 or options.fp16:
        model.to(torch.bfloat16 if options.bf16 else torch.float16)
    model.name_or_path = base
    settings = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_targets),
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that is on its way out
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, settings)
    adapted.loss_type = model.loss_type
    # Else each saving asks the network whether the vocabulary has grown.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def plain_weights(model: GPT2LMHeadModel | PeftModel) -> dict[str, Tensor]:
    """The weights by their plain names, `h.0.attn.c_attn.weight`, an adapter added."""
    if not isinstance(model, PeftModel):
        return {name.removeprefix("transformer."): weight.detach() for name, weight in model.state_dict().items()}
    found = {}
    for name, weight in model.get_base_model().state_dict().items():
        if "lora_" not in name:
            found[name.removeprefix("transformer.").replace(".base_layer.", ".")] = weight.detach().float()
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            key = f"{name.removeprefix('transformer.')}.weight"
            found[key] = found[key] + layer.get_delta_weight("default").detach().float()
    return found


def base_reference(model_name: str, directory: Path) -> str:
    """How an adapter names its model: as on the hub, or where it lies on this machine."""
    given = Path(model_name).expanduser()
    return str(directory.resolve()) if model_name != BUNDLED_MODEL and given.exists() else model_name


def _freeze(model: GPT2LMHeadModel, layers: int) -> None:
    for part in (model.transformer.wte, model.transformer.wpe, *model.transformer.h[:layers]):
        part.requires_grad_(False)
