"""The thread in which the database of texts is used, so that no request waits for the disk in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from gpt2tg.desk.desk import Desk
from gpt2tg.desk.store import MissingError
from gpt2tg.errors import UserError, one_line
from gpt2tg.io.streams import notice
from gpt2tg.serving.errors import ApiError, from_user_error

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class DeskThread:
    """Runs methods of a desk one after the other."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._thread = ThreadPoolExecutor(1, "texts")
        self._fails = False

    async def run(
        self, method: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        """Return the result of a method.

        Raises:
            ApiError: a text or a node does not exist, a field is wrong, or the texts cannot be saved.
        """
        try:
            return await asyncio.wrap_future(self._thread.submit(method, *arguments, **named))
        except MissingError as error:
            raise ApiError(404, str(error), code="not_found") from None
        except UserError as error:
            raise from_user_error(error, {}) from None
        except (sqlite3.Error, OverflowError) as error:
            raise ApiError(500, f"the texts cannot be read or saved: {one_line(error)}", code="failed") from None

    def post(self, method: Callable[Arguments, object], *arguments: Arguments.args, **named: Arguments.kwargs) -> None:
        """Run a method after all that were handed over before, without waiting for it.

        A failure is printed, but not those that follow it: growing texts are saved again and again.
        """
        with contextlib.suppress(RuntimeError):  # it is closed: an event loop that ends still cancels what is left
            self._thread.submit(method, *arguments, **named).add_done_callback(self._tell)

    def _tell(self, done: Future[object]) -> None:
        error = done.exception()
        if error and not self._fails:
            notice(f"a text could not be saved, and is tried again: {one_line(error)}")
        self._fails = error is not None

    def close(self) -> None:
        """Finish what was handed over, and close the database. It may be closed already."""
        with contextlib.suppress(RuntimeError):
            self._thread.submit(self.desk.store.close)
        self._thread.shutdown()
