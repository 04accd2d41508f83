"""The interactive session: generate a text turn by turn, inspect it, undo it, change settings.

`loop` answers lines. `commands` holds the table of commands, whose actions are in `text_commands`,
`setting_commands`, `inspect_commands`, `compare_command` and `file_commands`. They act on a `Session`, which holds
the model, the settings and the text, and does not know the commands. A `Front` is where the session reads and writes:
`front` has the one for plain streams, `terminal` the line editor, which alone needs prompt_toolkit.
"""

from gpt2tg.session.front import Front
from gpt2tg.session.session import Session

__all__ = ["Front", "Session"]
