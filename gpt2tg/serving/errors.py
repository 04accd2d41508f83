"""Errors of the API, in the shape of OpenAI's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gpt2tg.errors import UserError, one_line
from gpt2tg.io.streams import notice
from gpt2tg.options.fields import shown

# What the Python API calls a value -> what JSON calls it.
IN_JSON = {"a tuple of strings": "a list of strings", "True or False": "true or false", " or None": " or null"}


class ApiError(Exception):
    """A request that is refused or failed."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            status: the HTTP status.
            param: the field of the request that is wrong.
            code: a short name of the error for programs.
        """
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": {"message": self.message, "type": self._type, "param": self.param, "code": self.code}}

    def tell(self) -> None:
        """Say on stderr what failed, if it is no fault of the client."""
        if self.status == 500:
            notice(f"a request failed: {one_line(self.message)}")

    @property
    def _type(self) -> str:
        names = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return "server_error" if self.status >= 500 else names.get(self.status, "invalid_request_error")


def from_user_error(error: UserError, names: Mapping[str, str]) -> ApiError:
    """Return the error of a request whose options are wrong.

    Args:
        names: the names that the request used for our options.
    """
    message = re.sub(r"--(\w+)", lambda found: names.get(found[1], found[1]), error.message)
    if message.startswith(ours := shown(repr(error.value))) and error.value is not None:
        message = shown(json.dumps(error.value, ensure_ascii=False, default=str)) + message[len(ours) :]
    before, give, way_out = message.rpartition(": give ")
    for ours, theirs in IN_JSON.items():
        way_out = way_out.replace(ours, theirs)
    message = before + give + way_out
    param = None if error.option is None else names.get(error.option, error.option)
    return ApiError(400, f"{param}: {message}" if param else message, param, "invalid_value")
