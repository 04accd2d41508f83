"""How texts look on a terminal: bold and coloured, without control characters of their own."""

from __future__ import annotations

from dataclasses import dataclass

RESET = "\x1b[0m"

# Control characters, by which a text could move the cursor or rename the window. Line breaks and tabs stay.
CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

# Bold and red are legible on light and on dark backgrounds.
BOLD, RED = "\x1b[1m", "\x1b[31m"

# Upper bound of the probability -> background of a token, the least probable first. The text colour is set too, so
# that it contrasts with the background whatever the terminal's own colours are.
HEAT = ((0.01, "\x1b[97;41m"), (0.05, "\x1b[30;43m"), (0.2, "\x1b[30;42m"))


@dataclass(frozen=True)
class Style:
    """How texts look on stdout."""

    has_colours: bool = False
    hides_controls: bool = False
    """Whether control characters are replaced."""

    def safe(self, text: str) -> str:
        """Return a text of the model or of a file, safe to print."""
        return text.translate(CONTROLS) if self.hides_controls else text

    def typed(self, text: str) -> str:
        """Return what the user typed, in bold."""
        return self._paint(BOLD, text)

    def error(self, text: str) -> str:
        """Return the word before an error message, in red."""
        return self._paint(RED, text)

    def heat(self, text: str, probability: float) -> str:
        """Return a token on a background that shows how improbable it is.

        Without colours, tokens with a probability below 1 % are put in brackets.
        """
        colour = next((colour for bound, colour in HEAT if probability < bound), None)
        if colour is None:
            return text
        breaks, shown = "\n" * text.count("\n"), text.lstrip(" ").replace("\n", "\\n")
        spaces = text[: len(text) - len(text.lstrip(" "))]
        if self.has_colours and shown:
            return f"{spaces}{self._paint(colour, shown)}{breaks}"
        if self.has_colours:
            return self._paint(colour, spaces)
        return f"{spaces}[{shown}]{breaks}" if probability < HEAT[0][0] else text

    def legend(self) -> str:
        """Return the meaning of the colours or brackets of `heat`."""
        if not self.has_colours:
            return f"in brackets: tokens with a probability below {HEAT[0][0]:.0%}"
        return "probability below " + "  ".join(self._paint(colour, f" {bound:.0%} ") for bound, colour in HEAT)

    def _paint(self, code: str, text: str) -> str:
        return f"{code}{text}{RESET}" if self.has_colours and text else text


PLAIN = Style()
