"""How many tokens to guess at once: from how often guesses are right, and from what it costs to make and read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

# The weight of the newest observation in a moving average, once there are enough of them.
RECENT = 0.1

# Until it is measured: the cost of reading one more token in the same forward pass, as a share of a decode step.
PRICE = 0.1

# A forward pass beside another program may take many times as long. It counts as at most so many times the expected.
OUTLIER = 2.0

# The most tokens that a draft model guesses at once.
LONGEST_GUESS = 16

# A draft that does not pay is tried again after so many forward passes; doubled each time that this was in vain.
FIRST_PAUSE, LONGEST_PAUSE = 8, 64


class Average:
    """A moving average that begins as the plain mean."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    @property
    def weight(self) -> float:
        """The weight of the next observation."""
        return max(RECENT, 1 / (self.count + 1))

    def add(self, observed: float) -> None:
        """Add an observation."""
        self.value += self.weight * (observed - self.value)
        self.count += 1


class Costs:
    """What forward passes cost: those of the model by the number of tokens that they read, and those of its draft.

    The model's are a line, fitted to the last passes by least squares, with `PRICE` as the prior of its slope.
    """

    def __init__(self, draft: float = 0.0, is_measured: bool = True) -> None:
        """
        Args:
            draft: until it is measured, the cost of a draft's decode step as a share of the model's.
            is_measured: whether time is measured. Otherwise the costs stay as they are, so that what depends on them is
                the same in every run.
        """
        self._share = draft
        self._is_measured = is_measured
        self._tokens, self._seconds, self._draft = Average(), Average(), Average()
        self._variance = self._covariance = 0.0  # of tokens, and of tokens and seconds

    @contextmanager
    def measured_pass(self, tokens: int) -> Iterator[None]:
        """Measure the model's forward pass in the block, which reads so many tokens."""
        started = perf_counter()
        yield
        if self._is_measured:
            self.note_pass(tokens, perf_counter() - started)

    @contextmanager
    def measured_draft(self) -> Iterator[None]:
        """Measure the decode step of the draft in the block."""
        started = perf_counter()
        yield
        if self._is_measured:
            self.note_draft(perf_counter() - started)

    def note_pass(self, tokens: int, seconds: float) -> None:
        """Note what a forward pass of the model took."""
        if self._seconds.count:
            seconds = min(seconds, OUTLIER * self.of_pass(tokens))
        weight = self._tokens.weight
        more_tokens, more_seconds = tokens - self._tokens.value, seconds - self._seconds.value
        self._variance = (1 - weight) * (self._variance + weight * more_tokens * more_tokens)
        self._covariance = (1 - weight) * (self._covariance + weight * more_tokens * more_seconds)
        self._tokens.add(tokens)
        self._seconds.add(seconds)

    def note_draft(self, seconds: float) -> None:
        """Note what a decode step of the draft took."""
        self._draft.add(min(seconds, OUTLIER * self._draft.value) if self._draft.count else seconds)

    @property
    def per_token(self) -> float:
        """The cost of one more token in a forward pass of the model."""
        if not self._seconds.count:
            return PRICE
        prior = PRICE * self._seconds.value / (1 + PRICE * (self._tokens.value - 1))
        return max(0.0, (self._covariance + prior) / (self._variance + 1))

    def of_pass(self, tokens: int) -> float:
        """Return the cost of a forward pass of the model that reads so many tokens."""
        if not self._seconds.count:
            return 1 + PRICE * (tokens - 1)
        # A line may fall below zero beyond the passes that it was fitted to.
        return max(self._seconds.value + self.per_token * (tokens - self._tokens.value), self._seconds.value / 10)

    def of_draft(self, rows: int) -> float:
        """Return the cost of a decode step of the draft for so many rows."""
        return self._draft.value if self._draft.count else self._share * self.of_pass(rows)

    def price(self, rows: int) -> float:
        """Return the cost of reading a guess, as a share of what a token costs in a decode step of so many rows."""
        return self.per_token * rows / self.of_pass(rows)


class Pace:
    """How far a draft model guesses ahead, and how often its guesses were right."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.agreement = 0.5
        """The estimated probability that a guess is right if those before it are."""
        self.guessed = self.right = 0
        """The number of guesses that were compared with the text, and of those that were right."""
        self._idle, self._pause = 0, FIRST_PAUSE

    def note(self, right: int, guessed: int) -> None:
        """Note that the first `right` of so many guesses were right. Those after the first wrong one tell nothing."""
        for is_right in [True] * right + [False] * (right < guessed):
            self.agreement += RECENT * (is_right - self.agreement)
            self.guessed += 1
            self.right += is_right

    @property
    def is_paused(self) -> bool:
        """Whether drafting did not pay lately."""
        return self._idle > 0

    def next_length(self, rows: int) -> int:
        """Return how many tokens to guess for each of so many rows: what promises the most tokens a second.

        While no number promises more than plain decode steps, it is 0, and now and then 1, to see whether guesses are
        right again.
        """
        best = max(range(LONGEST_GUESS + 1), key=lambda length: self._speed(length, rows))
        if best:
            self._idle, self._pause = 0, FIRST_PAUSE
            return best
        self._idle += 1
        if self._idle < self._pause:
            return 0
        self._idle, self._pause = 1, min(2 * self._pause, LONGEST_PAUSE)
        return 1

    def _speed(self, length: int, rows: int) -> float:
        """Return the expected number of tokens by the cost of a forward pass with so many guesses (Leviathan et al.,
        equation 1)."""
        expected = sum(self.agreement**n for n in range(length + 1))
        return rows * expected / (self.costs.of_pass(rows * (1 + length)) + length * self.costs.of_draft(rows))
