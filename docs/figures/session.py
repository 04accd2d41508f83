"""Replay the transcripts of docs/session.md with the bundled model, and write the answers into the page.

    python docs/figures/session.py

All blocks marked `transcript` are one session. Their lines that begin with `> ` are the input; all others are replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parent.parent / "session.md"
sys.path.insert(0, str(PAGE.parent.parent))

from gpt2tg.generation.generator import load  # noqa: E402
from gpt2tg.options import BUNDLED_MODEL, SESSION_SEQUENCES, DecodingOptions  # noqa: E402
from gpt2tg.session import Front, Session  # noqa: E402
from gpt2tg.session.commands import Quit  # noqa: E402
from gpt2tg.session.loop import answer  # noqa: E402

BLOCK = re.compile(r"^```transcript\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def replayed(page: str) -> str:
    """Return the page with the current answers."""
    shown: list[str] = []
    front = Front(
        read=lambda: "", write=shown.append, say=lambda line: shown.append(f"{line}\n"), width=lambda: 100,
        at_terminal=True,
    )  # fmt: skip
    # The same flags as in the first command of the page.
    options = DecodingOptions(seed=7, num_sequences=SESSION_SEQUENCES, max_new_tokens=40)
    session = Session(load(BUNDLED_MODEL, "cpu"), options, BUNDLED_MODEL, front)
    session.welcome()

    def answered(block: re.Match[str]) -> str:
        for line in block[1].splitlines():
            if line.startswith("> "):
                shown.append(f"{line}\n")
                with contextlib.suppress(Quit):
                    answer(session, line.removeprefix("> "))
        text = "".join(shown)
        shown.clear()
        return f"```transcript\n{text}```"

    here = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)  # the transcripts save a session
        try:
            return BLOCK.sub(answered, page)
        finally:
            os.chdir(here)


if __name__ == "__main__":
    PAGE.write_text(replayed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
