"""Reading config.json: the shape of a GPT-2, and the refusal of everything else. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.adapters import embedding_rows, is_adapter
from gpt2tg.checkpoint.find import base_directory
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_json

# gpt2-xl has 48 layers of width 1600; a config.json beyond these bounds is a mistake or an attack on memory.
LARGEST = {"n_layer": 512, "n_embd": 65_536, "n_head": 1_024, "vocab_size": 4_000_000, "n_positions": 1_048_576}

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "gelu_fast", "relu")

# Other names of the sizes: those that transformers knows, and the one of its first versions.
OTHER_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "n_ctx": "n_positions",
}

# Fields that are on or off, and what they are where config.json does not say.
SWITCHES = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "reorder_and_upcast_attn": False,  # the same in exact arithmetic, and 32 bits is what we compute in
    "add_cross_attention": False,  # layers that attend to an encoder, which is never there
}

# Fields that make another model of a GPT-2, or weights that are no plain numbers.
UNREADABLE_FIELDS = {
    "quantization_config": "the weights are quantised: give a directory with the model in 16 or 32 bits",
    "compression_config": "the weights are compressed: give a directory with the model in 16 or 32 bits",
    "pruned_heads": "some attention heads are removed, which cannot be computed",
    "is_encoder_decoder": "it needs an encoder, and only models of the GPT-2 architecture can be used",
}


def read_shape(directory: Path) -> ModelShape:
    """Read config.json and refuse what is no GPT-2 or no sane size. An adapter may leave it to its model.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    if is_adapter(directory) and not (directory / "config.json").is_file():
        shape = read_shape(base_directory(directory))
        return replace(shape, vocab_size=embedding_rows(directory) or shape.vocab_size)
    config = read_json(directory / "config.json")
    return shape_of(config, directory, _end_ids(directory, config))


def shape_of(config: dict[str, Any], directory: Path, end_ids: tuple[int, ...]) -> ModelShape:
    """The shape that a config describes, once it is known to be that of a GPT-2.

    Args:
        directory: where it stands, for messages.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    _refuse_other_architectures(config, directory)
    where = directory / "config.json"
    config = _under_usual_names(config, where)
    for name, why in UNREADABLE_FIELDS.items():
        if config.get(name):
            raise UserError(f"{where}: {name} {one_line(config[name], 80)} cannot be used: {why}")
    for name, most in LARGEST.items():
        value = config.get(name)
        if type(value) is not int or not 1 <= value <= most:  # True is an int, but no size
            raise UserError(f"{where}: {name} is {one_line(repr(value), 80)}, expected a whole number from 1 to {most}")
    for name in SWITCHES:
        if not isinstance(config.get(name, True), bool):
            raise UserError(f"{where}: {name} is {one_line(config[name], 80)}, expected true or false")
    if config["n_embd"] % config["n_head"]:
        raise UserError(f"{where}: width {config['n_embd']} cannot be divided among {config['n_head']} heads")
    inner = 4 * config["n_embd"] if config.get("n_inner") is None else config["n_inner"]
    if type(inner) is not int or not 1 <= inner <= 4 * LARGEST["n_embd"]:
        most = 4 * LARGEST["n_embd"]
        raise UserError(f"{where}: n_inner is {one_line(repr(inner), 80)}, expected a whole number from 1 to {most}")
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: activation {activation} is none of {', '.join(ACTIVATIONS)}")
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, (int, float)) or not 0 <= epsilon < 1:
        raise UserError(f"{where}: layer_norm_epsilon is {epsilon}, expected a small number")
    switches = {name: config.get(name, default) for name, default in SWITCHES.items()}
    return ModelShape(
        vocab_size=config["vocab_size"],
        n_positions=config["n_positions"],
        n_embd=config["n_embd"],
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_inner=inner,
        activation=activation,
        epsilon=epsilon,
        scale_attention=switches["scale_attn_weights"],
        scale_by_layer=switches["scale_attn_by_inverse_layer_idx"],
        tied=switches["tie_word_embeddings"],
        end_ids=end_ids,
    )


def _refuse_other_architectures(config: dict[str, Any], directory: Path) -> None:
    classes = config.get("architectures")
    classes = [str(name) for name in classes] if isinstance(classes, list) else []
    kind = config.get("model_type") or ("gpt2" if "GPT2LMHeadModel" in classes else ", ".join(classes) or "unknown")
    if kind == "unknown" and "architectures" not in config and {*LARGEST, "n_ctx"} <= config.keys():
        kind = "gpt2"  # as the very first versions wrote it, with no word of which model it is
    if kind != "gpt2":
        raise UserError(f"{directory} is a {kind} model: only models of the GPT-2 architecture can be used")


def _under_usual_names(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """The config with its sizes under the names of GPT-2's own.

    Raises:
        UserError: two names of one size contradict each other.
    """
    found = dict(config)
    for other, usual in OTHER_NAMES.items():
        if other in config and found.setdefault(usual, config[other]) != config[other] and other != "n_ctx":
            raise UserError(f"{where}: {usual} is {found[usual]}, but {other} is {config[other]}")
    return found


def _end_ids(directory: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """The ids that end a text: the generation settings know best, the model's own config second."""
    settings = directory / "generation_config.json"
    ids = read_json(settings).get("eos_token_id") if settings.is_file() else None
    if ids is None:
        ids = config.get("eos_token_id", 50256)
    ids = ids if isinstance(ids, list) else [ids]
    size = config.get("vocab_size")
    known = size if isinstance(size, int) else 0  # what is no size is refused by `shape_of`
    return tuple(i for i in ids if isinstance(i, int) and 0 <= i < known)
