"""The interactive session: sit with a model, watch a text grow, look inside, change what is not liked.

`core` answers lines, `commands` has what begins with a slash, `state` the text so far, `settings` its decoding,
`files` saving and loading. They read and write through a `Front`, of which there are two: `front` for plain streams,
`terminal` for a terminal, which alone knows prompt_toolkit.
"""

from gpt2tg.session.front import Front
from gpt2tg.session.session import Session

__all__ = ["Front", "Session"]
