"""What a fine-tuned model keeps of the one it began as: the tokenizer, chat template and generation settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from gpt2tg.checkpoint.adapters import is_adapter
from gpt2tg.checkpoint.find import ModelShape, base_directory
from gpt2tg.checkpoint.hub import GENERATION_CONFIG, TOKENIZER_FILES
from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.checkpoint.tokenizer_files import SETTINGS, tokenizer_directory
from gpt2tg.io.json_files import read_json
from gpt2tg.io.lfs import is_pointer, refuse_pointer

# Where transformers keeps the default chat template, and others beside it.
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"


class CopiedFiles:
    """The files of a model beside its weights and config.json, read before training and written into each checkpoint.

    The Trainer takes it for its tokenizer, of which it wants no more than that it saves itself.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = dict(files)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the files."""
        for name, content in self._files.items():
            (Path(directory) / name).write_bytes(content)


def files_to_copy(directory: Path, shape: ModelShape, tokenizer: TextTokenizer) -> CopiedFiles:
    """Read the files of a model. They stay as they are, but for end tokens that training does not end texts with."""
    where = tokenizer_directory(directory)
    there = [name for name in TOKENIZER_FILES if (where / name).is_file()]
    # A vocabulary that nobody reads may be a pointer of Git LFS.
    files = {name: (where / name).read_bytes() for name in there if not is_pointer(where / name)}
    files = _with_all_templates(files, where)
    settings = _generation_config(directory)
    if settings is not None:
        files[GENERATION_CONFIG] = settings.read_bytes()
        if tokenizer.end_id not in shape.end_ids:
            changed = {**read_json(settings), "eos_token_id": eos_token_id(shape, tokenizer)}
            files[GENERATION_CONFIG] = (json.dumps(changed, indent=2, sort_keys=True) + "\n").encode()
    return CopiedFiles(files)


def _with_all_templates(files: dict[str, bytes], directory: Path) -> dict[str, bytes]:
    """The files, with all chat templates in tokenizer_config.json where the directory has further ones.

    Transformers reads them there too, unless the default one has a file, and a checkpoint of ours has no directories.
    """
    templates = sorted((directory / TEMPLATES).glob("*.jinja"))
    for path in templates:
        refuse_pointer(path)
    found = {path.stem: path.read_text(encoding="utf-8") for path in templates}
    if not found:
        return files
    config = json.loads(files.get(SETTINGS, b"{}"))
    default = files[TEMPLATE].decode() if TEMPLATE in files else config.get("chat_template")
    if isinstance(default, str):
        found["default"] = default
    config["chat_template"] = [{"name": name, "template": template} for name, template in found.items()]
    content = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    return {**{name: files[name] for name in files if name != TEMPLATE}, SETTINGS: content}


def eos_token_id(shape: ModelShape, tokenizer: TextTokenizer) -> int | list[int]:
    """The ids that end the texts of a fine-tuned model, as config.json has it.

    They are those of the model it began as, if the token that ended the examples is among them. Otherwise they are
    that token, and of the others those that are no ordinary words.
    """
    known = list(shape.end_ids)
    if tokenizer.end_id not in known:
        known = [tokenizer.end_id, *(number for number in known if number in tokenizer.special)]
    return known[0] if len(known) == 1 else known


def _generation_config(directory: Path) -> Path | None:
    """Where the generation settings are: an adapter may leave them to its model."""
    if (directory / GENERATION_CONFIG).is_file():
        return directory / GENERATION_CONFIG
    has_config = (directory / "config.json").is_file()
    return _generation_config(base_directory(directory)) if is_adapter(directory) and not has_config else None
