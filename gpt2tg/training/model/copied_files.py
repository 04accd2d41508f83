"""Copy files of the base model into each checkpoint: the tokenizer, chat templates and generation settings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.added_tokens import with_new_tokens
from gpt2tg.checkpoint.chat_template import stored_template
from gpt2tg.checkpoint.file_names import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    OTHER_CHAT_TEMPLATES,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
)
from gpt2tg.checkpoint.find import base_directory
from gpt2tg.checkpoint.shape import ModelShape
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_files import tokenizer_directory
from gpt2tg.errors import UserError
from gpt2tg.io.json_files import read_json
from gpt2tg.io.lfs import is_pointer, refuse_pointer


class CopiedFiles:
    """Files of a base model, read before training and written into each checkpoint.

    The Trainer gets it as its `processing_class`, of which it only calls `save_pretrained`.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = dict(files)

    def with_tokens(self, tokens: Mapping[int, str]) -> CopiedFiles:
        """Return the files with further tokens, by id, in the tokenizer."""
        return CopiedFiles(with_new_tokens(self._files, tokens)) if tokens else self

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the files into a directory."""
        for name, content in self._files.items():
            (Path(directory) / name).write_bytes(content)


def files_to_copy(
    directory: Path, shape: ModelShape, tokenizer: TextTokenizer, template: str | None = None
) -> CopiedFiles:
    """Read the files of a base model that its checkpoints keep.

    Only two things change. If training ends its examples with another token, generation stops at that one. And if the
    examples are conversations, their template becomes that of the model.

    Args:
        template: the chat template of the examples, if they are conversations.

    Raises:
        UserError: a file that is needed is missing or a Git LFS pointer.
    """
    where = tokenizer_directory(directory)
    existing = [name for name in TOKENIZER_FILES if (where / name).is_file()]
    # A vocabulary that the tokenizer does not need may be a Git LFS pointer: it is left out.
    files = {name: (where / name).read_bytes() for name in existing if not is_pointer(where / name)}
    files = _with_all_templates(files, where)
    if template is not None and template != stored_template(directory):
        files = _with_template(files, template)
    settings = _generation_config(directory)
    if settings is not None:
        files[GENERATION_CONFIG] = settings.read_bytes()
        if tokenizer.end_id not in shape.end_ids:
            changed = {**read_json(settings), "eos_token_id": eos_token_id(shape, tokenizer)}
            files[GENERATION_CONFIG] = (json.dumps(changed, indent=2, sort_keys=True) + "\n").encode()
    return CopiedFiles(files)


def _with_all_templates(files: dict[str, bytes], directory: Path) -> dict[str, bytes]:
    """Move all chat templates into tokenizer_config.json, if the base model has more than the default one.

    Our checkpoints have no subdirectories. Transformers reads the templates from tokenizer_config.json too, unless the
    default template has a file of its own, so that file is left out.
    """
    templates = sorted((directory / OTHER_CHAT_TEMPLATES).glob("*.jinja"))
    for path in templates:
        refuse_pointer(path)
    by_name = {path.stem: path.read_text(encoding="utf-8") for path in templates}
    if not by_name:
        return files
    config = json.loads(files.get(TOKENIZER_CONFIG, b"{}"))
    default = files[CHAT_TEMPLATE].decode() if CHAT_TEMPLATE in files else config.get("chat_template")
    if isinstance(default, str):
        by_name["default"] = default
    config["chat_template"] = [{"name": name, "template": template} for name, template in by_name.items()]
    content = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return {**{name: files[name] for name in files if name != CHAT_TEMPLATE}, TOKENIZER_CONFIG: content}


def _with_template(files: dict[str, bytes], template: str) -> dict[str, bytes]:
    """Make a template the default one, in the place of the base model's."""
    if TOKENIZER_CONFIG in files:
        config = json.loads(files[TOKENIZER_CONFIG])
        if "chat_template" in config:
            del config["chat_template"]
            files = {**files, TOKENIZER_CONFIG: (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()}
    return {**files, CHAT_TEMPLATE: template.encode()}


def eos_token_id(shape: ModelShape, tokenizer: TextTokenizer) -> int | list[int]:
    """Return the ids that end the texts of the fine-tuned model, in the form of config.json.

    They are those of the base model if they include the token that ended the training examples. If not, they are that
    token and those of the others that are special tokens, not ordinary words.
    """
    known = list(shape.end_ids)
    if tokenizer.end_id not in known:
        known = [tokenizer.end_id, *(number for number in known if number in tokenizer.special)]
    return known[0] if len(known) == 1 else known


def _generation_config(directory: Path) -> Path | None:
    """Return the generation settings of a model; those of the base model if an adapter has none."""
    if (directory / GENERATION_CONFIG).is_file():
        return directory / GENERATION_CONFIG
    if not is_adapter(directory) or (directory / "config.json").is_file():
        return None
    with contextlib.suppress(UserError):  # the adapter is applied to another model than that which it names
        return _generation_config(base_directory(directory))
    return None
