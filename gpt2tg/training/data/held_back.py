"""The test text: measured once, by the final model, in the same blocks as the validation text."""

from __future__ import annotations

from pathlib import Path

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.options import TrainingOptions
from gpt2tg.training.data.blocks import Blocks
from gpt2tg.training.data.corpus import Corpus, scan_corpus
from gpt2tg.training.data.packing import pack
from gpt2tg.training.data.sources import text_format_of
from gpt2tg.training.data.token_cache import tokenize
from gpt2tg.training.data.training_data import TrainingData


def scan_test(options: TrainingOptions, model_name: str | None) -> Corpus | None:
    """Scan the test files; None if there are none.

    Args:
        model_name: of the model whose chat template writes conversations.

    Raises:
        UserError: a file cannot be used.
    """
    if not options.test_file:
        return None
    text_format = text_format_of(options, model_name)
    return scan_corpus(options.test_file, text_format, "test_file", Path(options.output_dir))


def load_test(corpus: Corpus, tokenizer: TextTokenizer, data: TrainingData) -> Blocks:
    """Tokenize the test text, and pack it as the other texts.

    Args:
        data: the other texts.

    Raises:
        UserError: no block has a token that carries loss.
        RunError: the token cache cannot be written to.
    """
    tokens = tokenize(corpus, tokenizer)
    return pack(tokens, tokens.starts, tokens.ends, data.block_size, data.is_apart)
