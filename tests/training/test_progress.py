"""The progress bar."""

from __future__ import annotations

import contextlib
import os
import struct
import sys

import pytest
from transformers import TrainerControl, TrainerState

from gpt2tg.training.progress import Progress
from gpt2tg.training.stopwatch import Stopwatch


def test_progress_bar_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    monkeypatch.setattr(sys, "stderr", terminal := os.fdopen(writer, "w", encoding="utf-8"))
    progress, state = Progress(Stopwatch(512)), TrainerState(max_steps=100_000, global_step=50_000)
    progress.on_train_begin(None, state, TrainerControl())
    logs = {"loss": 3.14159, "tokens_per_second": 432_100.0, "memory_gb": 101.25, "epoch": 1.5, "learning_rate": 1e-4}
    progress.on_log(None, state, TrainerControl(), logs)
    state.global_step += 1
    progress.on_step_end(None, state, TrainerControl())
    progress.on_train_end(None, state, TrainerControl())
    terminal.close()
    written = b""
    with contextlib.suppress(OSError):  # Linux signals the end so; a terminal is read in pieces
        while piece := os.read(reader, 10_000):
            written += piece
    os.close(reader)
    bar = written.decode().rstrip().split("\r")[-1]
    assert len(bar) <= 80
    assert "/100000" in bar
    assert "left, loss 3.142, 432,100 tokens/s, 101.25 GB" in bar
