"""Build the transformers model to train, from a checkpoint or from scratch, and adapt it for training."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.utils.generic import ModelOutput

from gpt2tg.checkpoint.checkpoint import Checkpoint
from gpt2tg.checkpoint.config import shape_of
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tensor_names import HEAD
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_loading import load_tokenizer, note_on_unused, unused_ids
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.engine.model import GPT2
from gpt2tg.errors import UserError, one_line
from gpt2tg.options import TrainingOptions
from gpt2tg.training.console import log
from gpt2tg.training.model.copied_files import eos_token_id
from gpt2tg.training.model.cpu_speedups import ATTENTION, GELU, Dropout
from gpt2tg.training.model.lora import plain_weights
from gpt2tg.training.model.loss import next_token_loss
from gpt2tg.training.model.unlikelihood import Unlikelihood

# The attribute of a model in training that holds the weight of its loss on repeated n-grams.
ALPHA = "unlikelihood_alpha"


def existing_model(
    checkpoint: Checkpoint, dropout: float | None = None, unlikelihood_alpha: float = 0.0
) -> tuple[GPT2LMHeadModel, TextTokenizer]:
    """Load a model in fp32 and its tokenizer, with the same checks as for generation. Notes on them go to stderr.

    Args:
        dropout: replaces the dropout rates of the config, unless it is None.
        unlikelihood_alpha: as in `for_training`.

    Raises:
        UserError: a file is missing or damaged, or transformers refuses the config.
    """
    shape = checkpoint.shape
    stored = stream_weights(checkpoint)
    weights = {name: tensor.float() for name, tensor in stored}
    head = weights.pop(HEAD, None)
    config = _read_config(_config_directory(checkpoint), shape, is_tied=head is None)
    if dropout is not None:
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = dropout
    tokenizer = load_tokenizer(checkpoint.tokenizer_directory, shape.vocab_size, shape.end_ids)
    if tokenizer.end_id not in shape.end_ids:
        config.eos_token_id = eos_token_id(shape, tokenizer)
    model = GPT2LMHeadModel(config)
    model.transformer.load_state_dict(weights)
    if head is not None:
        model.lm_head.load_state_dict({"weight": head})
    unused = unused_ids(tokenizer, shape.vocab_size, shape.end_ids)
    for note in (
        *checkpoint.notes,
        *stored.notes,
        *([note_on_unused(len(unused), shape.vocab_size)] if unused else ()),
        *tokenizer.notes,
    ):
        log.info(note)
    return for_training(model, unlikelihood_alpha), tokenizer


def _read_config(where: Path, shape: ModelShape, is_tied: bool) -> GPT2Config:
    """Read the config by transformers, and set the shape that the weights turned out to have.

    Raises:
        UserError: transformers refuses a field.
    """
    try:
        config = GPT2Config.from_pretrained(where, local_files_only=True)
    except Exception as error:  # its type checks raise many classes
        raise UserError(f"{where / 'config.json'} is refused by transformers: {_last_line(error)}") from None
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{where / 'config.json'}: {name} is {getattr(config, name)}, expected 0 to 1")
    config.vocab_size, config.n_positions, config.tie_word_embeddings = shape.vocab_size, shape.n_positions, is_tied
    config.add_cross_attention = False  # there is no encoder to attend to
    return config


def _last_line(error: Exception) -> str:
    return one_line(str(error).strip().rpartition("\n")[2] or error)


def _config_directory(checkpoint: Checkpoint) -> Path:
    """Return the directory with the config.json of a model: that of the base model if an adapter has none."""
    while checkpoint.base is not None and not (checkpoint.directory / "config.json").is_file():
        checkpoint = checkpoint.base
    return checkpoint.directory


def new_model(tokenizer: TextTokenizer, options: TrainingOptions) -> GPT2LMHeadModel:
    """Return a GPT-2 with random weights and the vocabulary of a tokenizer."""
    config = GPT2Config(
        vocab_size=tokenizer.raw.get_vocab_size(),
        n_positions=options.n_positions,
        n_embd=options.n_embd,
        n_layer=options.n_layer,
        n_head=options.n_head,
        bos_token_id=tokenizer.end_id,
        eos_token_id=tokenizer.end_id,
    )
    if options.dropout is not None:
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = options.dropout
    return for_training(GPT2LMHeadModel(config), options.unlikelihood_alpha)


def engine_model(model: GPT2LMHeadModel, end_id: int) -> GPT2:
    """Return the model in training as a model of our engine, without dropout. Weights in fp32 are not copied."""
    return GPT2(plain_weights(model), shape_of_model(model, end_id), model.device)


def shape_of_model(model: GPT2LMHeadModel, end_id: int) -> ModelShape:
    """Return the shape of a transformers model."""
    return shape_of({**model.config.to_dict(), "model_type": "gpt2"}, Path("the model in training"), (end_id,))


def for_training(model: GPT2LMHeadModel, unlikelihood_alpha: float = 0.0) -> GPT2LMHeadModel:
    """Replace the loss, attention, dropout and GELU of a transformers model by ours, in place, and return it.

    The config stays as it is, and so do the checkpoints.

    Args:
        unlikelihood_alpha: the weight of the loss on repeated n-grams, while the model is in training mode.
    """
    object.__setattr__(model, ALPHA, unlikelihood_alpha)
    # Without this name the Trainer counts one label too many per block as carrying loss.
    model.loss_type = "ForCausalLM"
    model.forward = MethodType(_forward, model)
    model.set_attn_implementation(ATTENTION)
    config, network = model.config, model.transformer
    network.drop = Dropout(config.embd_pdrop)
    for block in network.h:
        assert isinstance(block, GPT2Block)
        block.attn.resid_dropout, block.mlp.dropout = Dropout(config.resid_pdrop), Dropout(config.resid_pdrop)
        # transformers computes the tanh GELU in eight operations, a quarter of a training step on a CPU.
        if config.activation_function == "gelu_new":
            block.mlp.act = GELU()
    model.train(model.training)  # the new modules get the mode of the model
    return model


def _forward(
    model: GPT2LMHeadModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **others: Any,
) -> ModelOutput:
    """Replace GPT2LMHeadModel.forward: with labels, return only the loss, without ever holding all logits.

    With labels, `position_ids` restart at each example, and the examples of a block are kept apart. The mask is made
    here and not by the collator, because on a GPU that is much faster than making it on the CPU and sending it.
    """
    if labels is not None and position_ids is not None and attention_mask is None:
        attention_mask = mask_within_examples(position_ids)
    inputs = dict(attention_mask=attention_mask, position_ids=position_ids, **others)
    if labels is None:
        output: ModelOutput = GPT2LMHeadModel.forward(model, input_ids, **inputs)
        return output
    hidden = model.transformer(input_ids, **inputs).last_hidden_state
    alpha: float = getattr(model, ALPHA)
    unlikelihood = Unlikelihood.of(alpha, input_ids, position_ids) if model.training and alpha else None
    return CausalLMOutput(next_token_loss(hidden, model.lm_head.weight, labels, num_items_in_batch, unlikelihood))


def mask_within_examples(position_ids: Tensor) -> Tensor:
    """Return a causal attention mask that keeps the examples in a block apart.

    Args:
        position_ids: (B, T), 0 where an example starts.

    Returns:
        (B, 1, T, T) bool: whether the query token (row) attends to the key token (column).
    """
    example = (position_ids == 0).cumsum(dim=1)
    return (example[:, :, None] == example[:, None, :]).tril()[:, None]
