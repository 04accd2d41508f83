"""Write a model as a directory of CTranslate2, with the converter of that package."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from ctranslate2.converters import TransformersConverter
from transformers.utils import logging

from gpt2tg.checkpoint.file_names import TOKENIZER_FILES
from gpt2tg.export.source import Source
from gpt2tg.export.transformers_directory import write_directory

# Our names of the precisions, and those of CTranslate2.
QUANTIZATIONS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


def write_ctranslate2(directory: Path, source: Source, precision: str) -> None:
    """Write a model and its tokenizer for CTranslate2 into an empty directory.

    Args:
        precision: `fp32`, `fp16` or `int8`.

    Raises:
        UserError: the weights are broken.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers does not annotate it
    with tempfile.TemporaryDirectory(dir=directory.parent) as beside:
        write_directory(Path(beside), source, "fp32")
        tokenizer = [name for name in TOKENIZER_FILES if (Path(beside) / name).is_file()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers, which the converter uses in its own way
            converter = TransformersConverter(beside, copy_files=tokenizer)
            converter.convert(str(directory), quantization=QUANTIZATIONS[precision], force=True)
