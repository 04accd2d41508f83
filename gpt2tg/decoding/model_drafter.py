"""Drafts by a smaller model: it guesses with the filters and the uniform numbers with which the model will choose."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from gpt2tg.decoding.drafting import ExtensibleRows
from gpt2tg.decoding.interface import Filter, Text, apply_filters
from gpt2tg.decoding.live_texts import LiveTexts
from gpt2tg.decoding.lookup import PromptLookup
from gpt2tg.decoding.pace import Costs, Pace
from gpt2tg.decoding.sampling import ChooseAhead


class ModelDrafter:
    """A `Drafter` that asks a draft model.

    The draft reads a text when it first guesses its next token, and what was added to it before each further guess. So
    it costs nothing while it pauses.
    """

    def __init__(
        self,
        rows: ExtensibleRows,
        capacity: int,
        prompts: Sequence[Sequence[int]],
        owners: Sequence[int],
        filters: Sequence[Filter],
        choose: ChooseAhead,
        pace: Pace,
    ) -> None:
        """
        Args:
            rows: the draft model. Its vocabulary is that of the model.
            capacity: the number of tokens that a row of it can hold. Longer texts get no guesses.
            prompts, owners, filters: as in `decode_with_drafts`.
            choose: picks the guesses.
            pace: decides how far to guess; it learns from each text.
        """
        self.pace = pace
        self._rows = rows
        self._capacity = capacity
        self._prompts, self._owners = prompts, owners
        self._filters, self._choose = filters, choose
        self._has_started = False
        self._read = [0] * len(owners)  # for each row, the number of tokens of the text that the draft holds
        # For each row, the last guess, and the length of the text before it.
        self._last: list[tuple[int, list[int]]] = [(0, []) for _ in owners]

    @property
    def costs(self) -> Costs:
        """See `Drafter.costs`."""
        return self.pace.costs

    def guess(self, live: LiveTexts, limits: Sequence[int]) -> list[list[int]]:
        """See `Drafter.guess`."""
        texts = live.texts
        self._learn(texts)
        rooms = [self._room(text, limit) for text, limit in zip(texts, limits, strict=True)]
        length = self.pace.next_length(len(rooms)) if any(rooms) else 0
        guesses = self._guess(list(texts), live.samples, [min(length, room) for room in rooms])
        self._last = [(len(text.ids), guess) for text, guess in zip(texts, guesses, strict=True)]
        return guesses

    def _learn(self, texts: Sequence[Text]) -> None:
        """Compare the last guesses with what came, and take back from the draft what did not."""
        back = [0] * len(texts)
        for row, (before, guess) in enumerate(self._last):
            if guess:
                pairs = zip(guess, texts[row].ids[before:], strict=False)
                right = next((n for n, (guessed, found) in enumerate(pairs) if guessed != found), len(guess))
                self.pace.note(right, len(guess))
                read = len(guess) - 1  # it has not read its last guess
                self._read[row] = before + min(right, read)
                back[row] = read - min(right, read)
        if any(back):
            self._rows.take_back(back)

    def _room(self, text: Text, limit: int) -> int:
        """Return how many tokens the draft can guess after a text."""
        if max(map(len, self._prompts)) >= self._capacity:
            return 0
        return max(0, min(limit, self._capacity - len(text.ids) + 1))

    def _guess(self, texts: list[Text], samples: Sequence[int], wanted: Sequence[int]) -> list[list[int]]:
        """Let the draft write as many tokens as are wanted after each text."""
        guesses: list[list[int]] = [[] for _ in wanted]
        if any(wanted) and not self._has_started:
            self._start()
        for place in range(max(wanted)):
            going = [row for row, count in enumerate(wanted) if count > place]
            reads = {row: texts[row].ids[self._read[row] :] for row in going}
            is_step = max(map(len, reads.values())) <= 2  # not many tokens after a pause
            with self.costs.measured_draft() if is_step else nullcontext():
                logits = self._rows.extend(reads, every=False)
                filtered = apply_filters(self._filters, logits, [texts[row] for row in going])
                chosen = self._choose(filtered, [samples[row] for row in going], place).tolist()
            for row, token in zip(going, chosen, strict=True):
                self._read[row] = len(texts[row].ids)
                guesses[row].append(token)
                texts[row] = texts[row].continued(token)
        return guesses

    def _start(self) -> None:
        """Read each prompt once, however many texts continue it."""
        self._rows.start(self._prompts)
        self._rows.select(self._owners)
        self._read = [len(self._prompts[owner]) for owner in self._owners]
        self._has_started = True

    def select(self, rows: Sequence[int]) -> None:
        """See `Drafter.select`."""
        if self._has_started:
            self._rows.select(rows)
        self._owners = [self._owners[row] for row in rows]
        self._read = [self._read[row] for row in rows]
        self._last = [self._last[row] for row in rows]


class LookupOrModel:
    """A `Drafter` that asks prompt lookup where its guess is likelier to be right than that of a draft model."""

    def __init__(self, lookup: PromptLookup, model: ModelDrafter) -> None:
        self._lookup, self._model = lookup, model

    @property
    def costs(self) -> Costs:
        """See `Drafter.costs`."""
        return self._model.costs

    def guess(self, live: LiveTexts, limits: Sequence[int]) -> list[list[int]]:
        """See `Drafter.guess`."""
        pace = self._model.pace
        least = 0.0 if pace.is_paused else pace.agreement
        is_copied = [chance > least for chance in self._lookup.update(live)]
        copied = self._lookup.guess(live, [limit * own for limit, own in zip(limits, is_copied, strict=True)])
        guessed = self._model.guess(live, [0 if copy else limit for limit, copy in zip(limits, copied, strict=True)])
        return [copy or guess for copy, guess in zip(copied, guessed, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """See `Drafter.select`."""
        self._lookup.select(rows)
        self._model.select(rows)
