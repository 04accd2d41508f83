"""Open a page in the browser of the desktop, never in one that would take over the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import webbrowser


def open_page(address: str) -> None:
    """Open an address in the background; do nothing where there is no desktop."""
    if has_desktop():
        threading.Thread(target=_open, args=(address,), daemon=True).start()


def has_desktop() -> bool:
    """Whether a graphical browser can be opened here."""
    is_windowed = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if not is_windowed:
        return False
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return False
    # Browsers in a terminal are generic ones that are not run in the background.
    return not isinstance(found, webbrowser.GenericBrowser) or isinstance(found, webbrowser.BackgroundBrowser)


def _open(address: str) -> None:
    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(address)
