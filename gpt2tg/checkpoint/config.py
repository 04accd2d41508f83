"""Read config.json: the shape of a GPT-2. Anything else is refused. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2tg.checkpoint.adapters import embedding_rows, is_adapter
from gpt2tg.checkpoint.file_names import GENERATION_CONFIG
from gpt2tg.checkpoint.find import base_directory
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.json_files import read_json

# Upper bounds of the sizes. gpt2-xl has 48 layers of width 1600: a config.json beyond these bounds is a mistake, or an
# attempt to exhaust memory.
LARGEST = {"n_layer": 512, "n_embd": 65_536, "n_head": 1_024, "vocab_size": 4_000_000, "n_positions": 1_048_576}

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "gelu_fast", "relu")

# Other names of the sizes, which transformers accepts; `n_ctx` is from its first versions.
OTHER_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "n_ctx": "n_positions",
}

# Boolean fields with their defaults.
SWITCHES = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "reorder_and_upcast_attn": False,  # changes rounding alone, and we compute in fp32
    "add_cross_attention": False,  # its layers attend to an encoder, and a GPT-2 has none
}

# Fields that make it another model than a GPT-2, or store its weights in a form that we do not read.
UNREADABLE_FIELDS = {
    "quantization_config": "the weights are quantised: give a directory with the model in 16 or 32 bits",
    "compression_config": "the weights are compressed: give a directory with the model in 16 or 32 bits",
    "pruned_heads": "some attention heads are removed, which cannot be computed",
    "is_encoder_decoder": "it needs an encoder, and only models of the GPT-2 architecture can be used",
}


def read_shape(directory: Path, base: ModelShape | None = None) -> ModelShape:
    """Read the shape of the model in a directory. An adapter without a config.json has the shape of its model.

    Args:
        base: shape of the model that an adapter was trained on; None to find that model if it is needed.

    Raises:
        UserError: config.json is missing, broken, of another architecture, or has a size out of bounds.
    """
    if is_adapter(directory) and not (directory / "config.json").is_file():
        shape = base or read_shape(base_directory(directory))
        return replace(shape, vocab_size=embedding_rows(directory, shape.vocab_size))
    config = read_json(directory / "config.json")
    return shape_of(config, directory, _end_ids(directory, config))


def shape_of(config: dict[str, Any], directory: Path, end_ids: tuple[int, ...]) -> ModelShape:
    """Return the shape that a config describes, after checking that it is a GPT-2.

    Args:
        directory: of the model, for messages.

    Raises:
        UserError: names the file and the field that cannot be used.
    """
    _refuse_other_architectures(config, directory)
    where = directory / "config.json"
    config = _under_usual_names(config, where)
    _refuse_unreadable_fields(config, where)
    _check_sizes(config, where)
    switches = {name: config.get(name, default) for name, default in SWITCHES.items()}
    return ModelShape(
        vocab_size=config["vocab_size"],
        n_positions=config["n_positions"],
        n_embd=config["n_embd"],
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_inner=_inner_width(config, where),
        activation=_activation(config, where),
        epsilon=_epsilon(config, where),
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
        kind = "gpt2"  # the first versions of transformers wrote the sizes alone, without the architecture
    if kind == "unknown":
        raise UserError(
            f"{directory / 'config.json'} names no architecture: only models of the GPT-2 architecture can be used"
        )
    if kind != "gpt2":
        raise UserError(f"{directory} is a {kind} model: only models of the GPT-2 architecture can be used")


def _under_usual_names(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Return the config with its sizes under GPT-2's own names.

    Raises:
        UserError: two names of one size have different values.
    """
    found = dict(config)
    for other, usual in OTHER_NAMES.items():
        if other in config and found.setdefault(usual, config[other]) != config[other] and other != "n_ctx":
            raise UserError(f"{where}: {usual} is {found[usual]}, but {other} is {config[other]}")
    return found


def _refuse_unreadable_fields(config: dict[str, Any], where: Path) -> None:
    for name, why in UNREADABLE_FIELDS.items():
        if config.get(name):
            raise UserError(f"{where}: {name} {one_line(config[name], 80)} cannot be used: {why}")
    for name in SWITCHES:
        if not isinstance(config.get(name, True), bool):
            raise UserError(f"{where}: {name} is {one_line(config[name], 80)}, expected true or false")


def _check_sizes(config: dict[str, Any], where: Path) -> None:
    for name, most in LARGEST.items():
        _check_size(name, config.get(name), most, where)
    if config["n_embd"] % config["n_head"]:
        raise UserError(f"{where}: width {config['n_embd']} cannot be divided among {config['n_head']} heads")


def _check_size(name: str, value: object, most: int, where: Path) -> None:
    if type(value) is not int or not 1 <= value <= most:  # isinstance would accept True
        raise UserError(f"{where}: {name} is {one_line(repr(value), 80)}, expected a whole number from 1 to {most}")


def _inner_width(config: dict[str, Any], where: Path) -> int:
    """Return the width of the MLP."""
    inner: int = 4 * config["n_embd"] if config.get("n_inner") is None else config["n_inner"]
    _check_size("n_inner", inner, 4 * LARGEST["n_embd"], where)
    return inner


def _activation(config: dict[str, Any], where: Path) -> str:
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: activation {activation} is unknown: choose from {', '.join(ACTIVATIONS)}")
    return str(activation)


def _epsilon(config: dict[str, Any], where: Path) -> float:
    """Return the epsilon of the layer norms."""
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, (int, float)) or not 0 <= epsilon < 1:
        raise UserError(f"{where}: layer_norm_epsilon is {epsilon}, expected a number from 0 to 1")
    return epsilon


def _end_ids(directory: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Return the ids that end a text, from generation_config.json or else from config.json."""
    settings = directory / GENERATION_CONFIG
    ids = read_json(settings).get("eos_token_id") if settings.is_file() else None
    if ids is None:
        ids = config.get("eos_token_id", 50256)
    ids = ids if isinstance(ids, list) else [ids]
    size = config.get("vocab_size")
    known = size if isinstance(size, int) else 0  # any other value is refused by `shape_of`
    return tuple(i for i in ids if isinstance(i, int) and 0 <= i < known)
