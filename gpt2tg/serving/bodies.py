"""Read the body of a request, and its JSON fields."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from gpt2tg.errors import UserError, did_you_mean, one_line
from gpt2tg.options import Options
from gpt2tg.options.desk import WITH_SETTINGS
from gpt2tg.reading.strict_json import parse_json, refuse_lone_surrogates
from gpt2tg.serving.errors import ApiError, from_user_error

# Seconds in which the body of a request must arrive.
BODY_TIME = 30

OptionsT = TypeVar("OptionsT", bound=Options)


async def read_body(request: Request, most: int) -> bytes:
    """Return the body of a request.

    Args:
        most: the largest number of bytes.

    Raises:
        ApiError: it is too long, too slow, or not complete.
    """
    body = bytearray()
    error = ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise error

    async def read() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > most:
                raise error

    try:
        await asyncio.wait_for(read(), BODY_TIME)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_TIME} seconds") from None
    except ClientDisconnect:
        raise ApiError(400, "the body is not complete") from None
    return bytes(body)


def read_object(body: bytes, known: Collection[str]) -> dict[str, Any]:
    """Return the fields of a JSON object, also those that are null.

    Args:
        known: the names that a field may have.

    Raises:
        ApiError: the body is no JSON object, or a field is unknown.
    """
    try:
        value = parse_json(body.decode("utf-8-sig"))
        refuse_lone_surrogates(value)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"the body {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    for name in value:
        if name not in known:
            way_out = did_you_mean(name, known, "/openapi.json lists all fields")
            shown = one_line(name, 40)
            raise ApiError(400, f"{shown} is an unknown field: {way_out}", shown, "unknown_field")
    return value


def read_fields(options: type[OptionsT], body: bytes) -> tuple[OptionsT, dict[str, Any] | None]:
    """Return the fields of a JSON object as an option class, and its object `settings`; None if it has none.

    A field that is null counts as left out.

    Raises:
        ApiError: the body is no JSON object, or a field is unknown, missing or wrong.
    """
    fields = {field.name: field for field in dataclasses.fields(options)}
    found = read_object(body or b"{}", {*fields, *(["settings"] if options in WITH_SETTINGS else [])})
    given = {name: part for name, part in found.items() if part is not None}
    settings = given.pop("settings", None)
    if not isinstance(settings, dict | None):
        raise ApiError(400, "settings is not valid: give an object of names and values", "settings", "invalid_value")
    for name, field in fields.items():
        if field.metadata["is_required"] and name not in given:
            raise ApiError(400, f"{name} is missing", name, "missing_field")
    try:
        return options(**given), settings
    except UserError as error:
        raise from_user_error(error, {}) from None
