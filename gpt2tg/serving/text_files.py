"""Texts of the desk as files to save, and files to open."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from starlette.responses import Response

from gpt2tg.checkpoint.fingerprint import weights_fingerprint
from gpt2tg.desk.desk import Desk
from gpt2tg.desk.files import as_session, tree_content
from gpt2tg.desk.tree import shown_text
from gpt2tg.errors import UserError
from gpt2tg.inspection.tokens import token_texts
from gpt2tg.serving.models import ServedModel
from gpt2tg.serving.page_files import PRIVATE
from gpt2tg.serving.page_settings import page_options
from gpt2tg.session.files import SavedSession

# The forms of a text as a file: the end of its name, and its media type.
FORMATS = {
    "txt": (".txt", "text/plain; charset=utf-8"),
    "session": (".jsonl", "application/x-ndjson"),
    "json": (".json", "application/json"),
}

# Characters that some system does not allow in the name of a file, and those that turn the direction of what follows:
# with them, the name of a program can look like that of a text.
NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u202a-\u202e\u2066-\u2069]+')


def export(desk: Desk, text: int, node: int | None, form: str, model: ServedModel) -> Response:
    """Return a text as a file.

    Args:
        node: the end of the branch; None is the one that is shown. A tree has all branches.
        form: a key of FORMATS.

    Raises:
        MissingError: there is no such text or node.
    """
    stored = desk.store.text(text)
    path = desk.store.path_in(text, stored.current if node is None else node)
    if form == "json":
        content = tree_content(desk.view(text, with_all_tokens=True))
    elif form == "session":
        settings = dataclasses.asdict(page_options(stored.settings, model, 1).options)
        last = next((found.settings for found in reversed(path) if found.settings is not None), None)
        name = model.name if last is None else str(last.get("model", ""))
        weights = None
        if name == model.name and (checkpoint := model.generator.checkpoint) is not None:
            name, weights = checkpoint.name, fingerprint(model)
        content = as_session(path, settings, name, weights)
    else:
        content = shown_text(path)
    end, media_type = FORMATS[form]
    words = NOT_IN_NAMES.sub(" ", stored.entry.title or stored.entry.opening[:40]).split()
    title = " ".join(words).strip(". ") or "text"
    name = quote(f"{title}{end}", safe="")
    headers = {**PRIVATE, "Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
    return Response(content.encode(), media_type=media_type, headers=headers)


def fingerprint(model: ServedModel) -> str | None:
    """Return the fingerprint of a model's weights; None if they are no longer on disk."""
    checkpoint = model.generator.checkpoint
    try:
        return None if checkpoint is None else weights_fingerprint(checkpoint)
    except (UserError, OSError):
        return None


@dataclass(frozen=True)
class Author:
    """The model that may have written a session."""

    model: ServedModel
    weights: str | None = None
    """The fingerprint of its weights; None if it is not known."""

    def has_written(self, saved: SavedSession) -> bool:
        """Whether a session was written by this model."""
        checkpoint = self.model.generator.checkpoint
        names = (self.model.name, checkpoint.name if checkpoint else "")
        return saved.model in names if saved.weights is None else saved.weights == self.weights

    def name(self, saved: SavedSession) -> str:
        """Return what the model of a session is called here."""
        return self.model.name if self.has_written(saved) else saved.model

    def spell(self, saved: SavedSession, before: str, ids: Sequence[int]) -> list[str] | None:
        """Return the text of each token after another text; None if another model has written them."""
        generator = self.model.generator
        if not self.has_written(saved) or not ids or max(ids) >= generator.model.shape.vocab_size:
            return None
        return token_texts(generator.tokenizer, ids, generator.encode(before))
