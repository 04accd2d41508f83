"""The effect of signals at each moment of a session, without a terminal."""

from __future__ import annotations

import os
import signal

import pytest

from gpt2tg.io import signals
from gpt2tg.io.signals import SessionSignals


class Ended(BaseException):
    """Raised instead of ending the process."""


@pytest.fixture(autouse=True)
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(signals.os, "_exit", leave)
    monkeypatch.setattr(signals, "_write", lambda *_: None)
    return codes


def test_ctrl_c_ends_a_session_until_it_has_started(ended: list[int]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with SessionSignals() as handling:
            with pytest.raises(Ended):
                signal.raise_signal(signal.SIGINT)
            handling.on_ctrl_c = "ignore"
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt), handling.answering():
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # generation has ended
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [130]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["end", "raise", "ignore"])
def test_other_signals_end_a_session_at_any_moment(ended: list[int], number: int, moment: str) -> None:
    with SessionSignals() as handling:
        handling.on_ctrl_c = moment  # type: ignore[assignment]
        with pytest.raises(Ended):
            os.kill(os.getpid(), number)
    assert ended == [128 + number]


def test_ignored_signal_stays_ignored(ended: list[int]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SessionSignals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended == []
