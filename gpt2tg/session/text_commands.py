"""Commands that change or show the text."""

from __future__ import annotations

from dataclasses import replace

from gpt2tg.errors import UserError
from gpt2tg.session.session import Session
from gpt2tg.session.turns import Turn, is_conversation
from gpt2tg.session.words import parse_number

# Length in characters of the end of the text, which is shown after /undo, /pick and /edit.
SHOWN_END = 60


def continue_text(session: Session, words: str) -> None:
    """Continue the text, after a space and the words that were typed, if any."""
    text, words = session.prompt_of(session.text.turns), session.read_text(words)
    needs_no_space = not words or not text or text[-1].isspace() or words[0] in ",.;:!?)"
    session.continue_text(words if needs_no_space else f" {words}")


def say(session: Session, words: str) -> None:
    """Say something to the model in a conversation, which it answers."""
    if not words:
        raise UserError("the message is missing: write /say and what you want to say")
    session.say(session.read_text(words))


def retry(session: Session, _: str) -> None:
    """Generate the last turn again with another random draw."""
    session.regenerate(session.options_for_retry())


def again(session: Session, _: str) -> None:
    """Generate the last turn again with the same random draw and the current settings."""
    session.regenerate(session.options_for_again())


def pick(session: Session, words: str) -> None:
    """Continue with another of several texts."""
    if not session.samples:
        raise UserError("the last turn has one text only: /set num_sequences=3 generates several")
    choice = parse_number(words, len(session.samples), "text number") - 1
    sample, last = session.samples[choice], session.text.turns[-1]
    turn = replace(last, written=sample.completion, choice=choice, finish_reason=sample.finish_reason, ids=sample.ids)
    session.text.change((*session.text.turns[:-1], turn))
    _say_end(session)


def undo(session: Session, _: str) -> None:
    """Undo the last change to the text."""
    if not session.text.undo():
        raise UserError("there is nothing to undo")
    session.samples = ()
    _say_end(session)


def edit(session: Session, _: str) -> None:
    """Let the user edit the text; it becomes one turn."""
    if session.front.edit is None:
        raise UserError("/edit needs a terminal with line editing")
    if is_conversation(session.text.turns):
        raise UserError("/edit changes a text, not a conversation: /undo takes back the last message")
    before = str(session.text)
    try:
        after = session.front.edit(before)
    except (KeyboardInterrupt, EOFError):
        after = before
    if after == before:
        session.front.say("The text is unchanged.")
        return
    session.samples = ()
    session.text.change((Turn(after),) if after else ())
    _say_end(session)


def new(session: Session, words: str) -> None:
    """Clear the text, and begin another if words were typed."""
    if words:
        session.begin(session.read_text(words))
        return
    session.text.change(())
    session.samples = ()
    session.front.say("The text is cleared. Type the beginning of another, or let the model begin with /continue.")


def show_text(session: Session, _: str) -> None:
    """Write the whole text, with what was typed in bold."""
    front = session.front
    if not session.text.turns:
        raise UserError("there is no text yet: type its beginning")
    if is_conversation(session.text.turns):
        front.write(front.style.safe(str(session.text)) + "\n")
        return
    with front.open_text() as write:
        for turn in session.text.turns:
            write(front.style.typed(front.style.safe(turn.typed)) + front.style.safe(turn.written))
    front.write("\n")


def _say_end(session: Session) -> None:
    text = str(session.text)
    end = " ".join(text[-SHOWN_END:].split())
    if not text:
        session.front.say("The text is empty.")
    else:
        dots = "..." if len(text) > SHOWN_END else ""
        what = "conversation" if is_conversation(session.text.turns) else "text"
        session.front.say(f"The {what} ends: {dots}{session.front.style.safe(end)}")
