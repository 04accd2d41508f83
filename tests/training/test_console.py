"""What a run prints: log lines on stderr, from the main process alone."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from gpt2tg.training.console import log, print_result


def test_log_lines_are_plain_text_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("100% of the text")
    logging.getLogger("gpt2tg.training.part").warning("two\nlines")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "100% of the text\ntwo\nlines\n"


def test_log_lines_can_be_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    level = log.level
    try:
        log.setLevel(logging.WARNING)
        log.info("silenced")
        log.warning("printed")
    finally:
        log.setLevel(level)
    assert capsys.readouterr().err == "printed\n"


def test_only_the_main_process_logs_and_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    log.info("a line")
    print_result("a result")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stream", ["closed", None], ids=["closed", "missing"])
def test_log_lines_never_fail(stream: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = io.StringIO() if stream else None
    if broken is not None:
        broken.close()
    monkeypatch.setattr(sys, "stderr", broken)
    log.info("lost")
