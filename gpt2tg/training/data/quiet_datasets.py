"""Use `datasets` without its progress bars, warnings and download counter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import datasets
import datasets.config


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silence `datasets`: we show progress and report errors ourselves, and nobody counts what is loaded."""
    bars_were_off, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else each use sends a request to a server
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        datasets.logging.set_verbosity(verbosity)
        if not bars_were_off:
            datasets.enable_progress_bars()
