"""The test text: measured once, by the final model, in the same blocks as the validation text."""

from __future__ import annotations

from pathlib import Path

from gpt2tg.checkpoint.tokenizer import TextTokenizer
from gpt2tg.options import TrainingOptions
from gpt2tg.training.console import log
from gpt2tg.training.data.advice import on_known_examples
from gpt2tg.training.data.blocks import Blocks
from gpt2tg.training.data.corpus import Corpus, scan_corpus
from gpt2tg.training.data.packing import pack
from gpt2tg.training.data.sources import Sources, text_format_of
from gpt2tg.training.data.token_cache import tokenize
from gpt2tg.training.data.training_data import TrainingData


def scan_test(options: TrainingOptions, model_name: str | None, sources: Sources) -> Corpus | None:
    """Scan the test files; None if there are none. Logs what the user should know about them.

    Args:
        model_name: of the model whose chat template writes conversations.
        sources: the other texts, whose notices are logged already.

    Raises:
        UserError: a file cannot be used.
    """
    if not options.test_file:
        return None
    text_format = text_format_of(options, model_name)
    corpus = scan_corpus(options.test_file, text_format, "test_file", Path(options.output_dir))
    logged = {line for side in sources if side is not None for line in side.corpus.notices}
    for line in corpus.notices:
        if line not in logged:
            log.info(line)
    for line in on_known_examples(sources[0], corpus.hashes, "test"):
        log.info(f"advice: {line}")
    return corpus


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
