"""The command line: flags from option classes, help, and errors as one line with an exit code.

The wing imports nothing but the standard library, so that a script shows its help and refuses bad flags before torch is
loaded.
"""

from __future__ import annotations

from gpt2tg.cli.flags import flag
from gpt2tg.cli.parser import Parser, pick
from gpt2tg.cli.run import run
from gpt2tg.io.streams import notice

__all__ = ["Parser", "flag", "notice", "pick", "run"]
