"""The texts of a batch that have not ended yet."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor

from gpt2tg.decoding.interface import Finish, Text, Token


class LiveTexts:
    """One text for each row of a batch. A text that ends gives up its row."""

    def __init__(self, prompts: Sequence[Sequence[int]], finish: Finish) -> None:
        """Begin one text after each prompt; `finish` is called for each text after each of its tokens."""
        self.samples = list(range(len(prompts)))
        """The index of the text in each row."""
        self._texts = [Text.after(prompt) for prompt in prompts]
        self._finish = finish

    @property
    def texts(self) -> list[Text]:
        """The text of each row."""
        return [self._texts[sample] for sample in self.samples]

    def append(self, tokens: Tensor, logprobs: Tensor, allowed: Sequence[bool]) -> Generator[Token, None, list[int]]:
        """Append a token to each text and drop the texts that end.

        Args:
            tokens: (B,) the chosen tokens.
            logprobs: (B, V) the model's log-probabilities.
            allowed: for each row, whether any token is allowed. If none is, the text ends without a further token.

        Yields:
            The token of each row.

        Returns:
            The rows of the texts that go on.
        """
        chosen = logprobs.gather(1, tokens[:, None])[:, 0]
        staying = []
        for row, (token, logprob) in enumerate(zip(tokens.tolist(), chosen.tolist(), strict=True)):
            added = self.add(row, token, logprob, allowed[row])
            yield added
            if added.finish_reason is None:
                staying.append(row)
        self.keep(staying)
        return staying

    def add(self, row: int, token: int, logprob: float, is_allowed: bool) -> Token:
        """Append a token to the text of a row, unless every token is banned. Returns it, with the reason if the text
        ends."""
        sample = self.samples[row]
        if not is_allowed:
            return Token.all_banned(sample)
        text = self._texts[sample]
        text.append(token)
        return Token(sample, token, logprob, self._finish(sample, text.new))

    def keep(self, rows: Sequence[int]) -> None:
        """Keep the texts of these rows, in this order."""
        self.samples = [self.samples[row] for row in rows]
