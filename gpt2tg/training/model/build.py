"""The model to train, as transformers has it: an existing one read from its files, or a new one."""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from gpt2tg.checkpoint.find import ModelShape, base_directory, read_shape, shape_of
from gpt2tg.checkpoint.tokenizer import TextTokenizer, load_tokenizer, note_on_unused, unused_ids
from gpt2tg.checkpoint.tokenizer_files import END_OF_TEXT, byte_level
from gpt2tg.checkpoint.weight_files import HEAD
from gpt2tg.checkpoint.weights import stream_weights
from gpt2tg.engine.model import GPT2
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_json
from gpt2tg.options import TrainingOptions
from gpt2tg.training.callbacks import say
from gpt2tg.training.data.sources import TextSource
from gpt2tg.training.model.copied_files import eos_token_id
from gpt2tg.training.model.cpu_speedups import ATTENTION, GELU, Dropout
from gpt2tg.training.model.lora import plain_weights
from gpt2tg.training.model.loss import next_token_loss


def existing_model(directory: Path, dropout: float | None = None) -> tuple[GPT2LMHeadModel, TextTokenizer]:
    """Read a model through the same checks that generation uses; weights in fp32, dropout its own unless given.

    What the user should know about its files is printed on stderr.
    """
    shape = read_shape(directory)
    stored = stream_weights(directory, shape)
    weights = {name: tensor.float() for name, tensor in stored}
    head = weights.pop(HEAD, None)
    config = _read_config(directory, shape, is_tied=head is None)
    if dropout is not None:
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = dropout
    tokenizer = load_tokenizer(directory, shape.vocab_size, shape.end_ids)
    if tokenizer.end_id not in shape.end_ids:
        config.eos_token_id = eos_token_id(shape, tokenizer)
    model = GPT2LMHeadModel(config)
    model.transformer.load_state_dict(weights)
    if head is not None:
        model.lm_head.load_state_dict({"weight": head})
    unused = unused_ids(tokenizer, shape.vocab_size, shape.end_ids)
    for note in (*stored.notes, *([note_on_unused(len(unused), shape.vocab_size)] if unused else ()), *tokenizer.notes):
        say(note)
    return for_training(model), tokenizer


def _read_config(directory: Path, shape: ModelShape, is_tied: bool) -> GPT2Config:
    """The config as transformers reads it, with the shape that the weights turned out to have.

    Raises:
        UserError: transformers refuses a field of it.
    """
    where = _config_directory(directory)
    try:
        config = GPT2Config.from_pretrained(where, local_files_only=True)
    except Exception as error:  # its check of types has an error of its own for each kind
        raise UserError(f"{where / 'config.json'} is refused by transformers: {_last_line(error)}") from None
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{where / 'config.json'}: {name} is {getattr(config, name)}, expected 0 to 1")
    config.vocab_size, config.n_positions, config.tie_word_embeddings = shape.vocab_size, shape.n_positions, is_tied
    config.add_cross_attention = False  # there is no encoder to attend to
    return config


def _last_line(error: Exception) -> str:
    return one_line(str(error).strip().rpartition("\n")[2] or error)


def _config_directory(directory: Path) -> Path:
    """Where the config of a model stands: an adapter may leave it to its model."""
    while not (directory / "config.json").is_file():
        directory = base_directory(directory)
    return directory


def new_model(tokenizer: TextTokenizer, options: TrainingOptions) -> GPT2LMHeadModel:
    """A GPT-2 with random weights for a tokenizer."""
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
    return for_training(GPT2LMHeadModel(config))


def saved_tokenizer(checkpoint: Path) -> TextTokenizer:
    """The tokenizer in a checkpoint of a run from scratch, as `train_tokenizer` had made it.

    What transformers adds when it saves one, a post-processor that does nothing, is left out: its tokens were cached
    under a name without it.
    """
    content = read_json(checkpoint / "tokenizer.json")
    raw = Tokenizer.from_str(json.dumps({**content, "post_processor": None}))
    return TextTokenizer(raw, raw.token_to_id(END_OF_TEXT))


def train_tokenizer(source: TextSource, vocab_size: int) -> TextTokenizer:
    """Byte-pair encoding after Sennrich et al. 2016, over bytes as in GPT-2 (Radford et al. 2019)."""
    raw = byte_level(BPE())
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((piece.text for piece in source), trainer)
    return TextTokenizer(raw, raw.token_to_id(END_OF_TEXT))


def engine_model(model: GPT2LMHeadModel, end_id: int) -> GPT2:
    """The model in training as our engine computes it, dropout left out; nothing is copied where it is in fp32."""
    return GPT2(plain_weights(model), shape_of_model(model, end_id), model.device)


def shape_of_model(model: GPT2LMHeadModel, end_id: int) -> ModelShape:
    """The shape of a model of transformers."""
    return shape_of({**model.config.to_dict(), "model_type": "gpt2"}, Path("the model in training"), (end_id,))


def transformers_tokenizer(tokenizer: TextTokenizer, positions: int) -> PreTrainedTokenizerFast:
    """The same tokenizer as transformers saves and loads it."""
    end = tokenizer.raw.id_to_token(tokenizer.end_id)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.raw, bos_token=end, eos_token=end, unk_token=end, model_max_length=positions
    )


def for_training(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Mend some things of transformers, for training alone: the config, and so the checkpoint, stays as it is."""
    # The Trainer counts the labels that carry loss, and counts one too many a block unless it knows this loss.
    model.loss_type = "ForCausalLM"
    model.forward = MethodType(_forward, model)
    model.set_attn_implementation(ATTENTION)
    config, network = model.config, model.transformer
    network.drop = Dropout(config.embd_pdrop)
    for block in network.h:
        block.attn.resid_dropout, block.mlp.dropout = Dropout(config.resid_pdrop), Dropout(config.resid_pdrop)
        # In one operation: spelled out in eight, GPT-2's tanh GELU costs a quarter of a training step on a CPU.
        if config.activation_function == "gelu_new":
            block.mlp.act = GELU()
    return model.train(model.training)


def _forward(
    model: GPT2LMHeadModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **others: Any,
) -> ModelOutput:
    """As in transformers; where there are labels, the loss is all that comes back, and the logits are never whole."""
    seen = dict(attention_mask=attention_mask, position_ids=position_ids, **others)
    if labels is None:
        return GPT2LMHeadModel.forward(model, input_ids, **seen)
    hidden = model.transformer(input_ids, **seen).last_hidden_state
    return CausalLMOutput(next_token_loss(hidden, model.lm_head.weight, labels, num_items_in_batch))
