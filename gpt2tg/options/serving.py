"""The options of the server: where it listens, who may use it, how much one may ask for, and the page to write on."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from gpt2tg.errors import UserError
from gpt2tg.options.fields import Options, option

# Where the key may be given instead of on the command line, which other users of the machine can read.
KEY_VARIABLE = "GPT2TG_API_KEY"

# As browsers send it: in lower case, and without a slash at the end.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#A-Z*]+")


@dataclass(frozen=True)
class ServingOptions(Options):
    """How the model is served to other programs."""

    serve: bool = option(
        False,
        "serve the model to other programs over HTTP, as OpenAI's API does, until Ctrl-C",
        group="server",
    )
    web: bool = option(
        False,
        "open a page to write on in the browser, and serve other programs as --serve does, until Ctrl-C",
        group="server",
        is_common=True,
    )
    no_browser: bool = option(False, "with --web, print the address of the page and open nothing", group="server")
    texts_file: str | None = option(
        None,
        "with --web, the database that keeps the texts",
        group="server",
        metavar="FILE",
        shown_default="texts.db in the user's data folder",
    )
    models_folder: str | None = option(
        None,
        "with --web, a folder of models and adapters among which the page can switch",
        group="server",
        metavar="FOLDER",
        shown_default="none",
    )
    host: str = option(
        "127.0.0.1", "the address to listen on; any but this machine's own needs --api_key", group="server"
    )
    port: int = option(8000, "the port to listen on; 0 is a free one", group="server", low=0, high=65535)
    api_key: str | None = option(
        None,
        f"the key that every request must bring; other users of the machine cannot read it in {KEY_VARIABLE}",
        group="server",
        metavar="KEY",
        shown_default=f"the environment variable {KEY_VARIABLE}, else none",
    )
    allow_origin: tuple[str, ...] = option(
        (),
        "web pages of this origin may use the server: https://example.org",
        group="server",
        metavar="ORIGIN",
        shown_default="none but its own",
    )
    max_rows: int = option(32, "texts that are generated at the same time", group="server", low=1, high=1024)
    max_waiting: int = option(
        256, "texts that wait; more are refused with status 429", group="server", low=0, high=100_000
    )
    max_texts: int = option(
        64, "texts that one request may ask for: its prompts times n, best_of or num_beams", group="server", low=1
    )
    max_body: int = option(1_000_000, "bytes of a request", group="server", low=1)
    max_request_time: float = option(
        600.0, "seconds after which the texts of a request end, waiting included", group="server", above=0
    )
    shutdown_time: float = option(
        30.0, "seconds in which running requests may finish after Ctrl-C or SIGTERM", group="server", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.api_key is not None and not _is_sendable(self.api_key):
            raise UserError("needs at least one character, ASCII alone, and no space at its ends", "api_key")
        if self.is_serving and self.key is not None and not _is_sendable(self.key):
            raise UserError(f"{KEY_VARIABLE} is no key: it needs ASCII alone, and no space at its ends")
        for origin in self.allow_origin:
            if not ORIGIN.fullmatch(origin):
                raise UserError(
                    f"{origin} is no origin: give the address without a path, https://example.org", "allow_origin"
                )
        if self.is_serving and not self.is_local and self.key is None:
            raise UserError(
                f"{self.host}: other machines can reach it, so a key is needed: give --api_key, or set {KEY_VARIABLE}",
                "host",
            )

    @property
    def is_serving(self) -> bool:
        """Whether a server is wanted."""
        return self.serve or self.web

    @property
    def key(self) -> str | None:
        """The key that requests must bring; None if they need none."""
        return self.api_key if self.api_key is not None else os.environ.get(KEY_VARIABLE) or None

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def _is_sendable(key: str) -> bool:
    """Whether a header can hold a key as it is: spaces around it would be lost."""
    return bool(key) and key.isascii() and key.isprintable() and key == key.strip()
