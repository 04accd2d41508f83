"""Use `datasets` and `huggingface_hub` without their progress bars, warnings and download counter."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

import datasets
import datasets.config
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silence `datasets`: we show progress and report errors ourselves, and nobody counts what is loaded."""
    bars_were_off, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else each use sends a request to a server
    try:
        with quiet_hub(has_bars=False):
            yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        datasets.logging.set_verbosity(verbosity)
        if not bars_were_off:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def quiet_hub(has_bars: bool = True) -> Iterator[None]:
    """Silence `huggingface_hub`, but for the progress of downloads on a terminal.

    Args:
        has_bars: whether progress may be shown.
    """
    verbosity, bars_were_off = hub_logging.get_verbosity(), are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    if not (has_bars and sys.stderr.isatty()):
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if not bars_were_off:
            enable_progress_bars()
