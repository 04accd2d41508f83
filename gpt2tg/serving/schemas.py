"""Parts of the description of the API: fields, errors and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from gpt2tg.options import Options
from gpt2tg.options.fields import LARGEST_COUNT, LARGEST_SEED, type_of

JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}

# The ends of a range: ours, and JSON Schema's.
RANGE = {"low": "minimum", "above": "exclusiveMinimum", "high": "maximum", "below": "exclusiveMaximum"}

ERRORS = {
    "400": "A field is wrong: `param` names it",
    "401": "The key is missing or wrong",
    "403": "The request names a foreign host or comes from a foreign page",
    "404": "The model, the text or the node does not exist",
    "408": "The body did not arrive in time",
    "409": "The model cannot be loaded now",
    "413": "The body is too long",
    "429": "Too many texts wait: try again after `Retry-After` seconds",
    "503": "The server shuts down",
}

# The answers of the guards, which stand before every path.
GUARDED = ("401", "403")


def get(name: str, summary: str, media_type: str, *statuses: str) -> dict[str, Any]:
    """Return the description of a GET.

    Args:
        statuses: of the errors.
    """
    found = {"description": summary, "content": {media_type: {}}}
    return {"operationId": name, "summary": summary, "responses": {"200": found, **errors(*statuses)}}


def errors(*statuses: str) -> dict[str, Any]:
    """Return the descriptions of errors."""
    schema = {"application/json": {"schema": ref("Error")}}
    return {status: {"description": ERRORS[status], "content": schema} for status in statuses}


def ref(name: str) -> dict[str, str]:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def property_of(options: type[Options], field: Field[Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of an option.

    Args:
        defaults: replace that of the option.
    """
    kind, rule = type_of(options, field.name)[0], field.metadata
    schema: dict[str, Any] = {"type": JSON_TYPES.get(kind, "string")}
    schema |= {name: rule[end] for end, name in RANGE.items() if rule[end] is not None}
    if kind is int:
        schema.setdefault("maximum", LARGEST_SEED if field.name == "seed" else LARGEST_COUNT)
    if rule["choices"]:
        schema["enum"] = list(rule["choices"])
    if kind is tuple:
        schema = {"type": "array", "items": {**schema, "minLength": 1}}
    found: dict[str, Any] = {"anyOf": [schema, {"type": "null"}], "description": rule["help"]}
    default: Any = (defaults or {}).get(field.name, field.default)
    return found if default is None else {**found, "default": list(default) if kind is tuple else default}


def error_schema() -> dict[str, Any]:
    """Return the schema of an error."""
    text, maybe = {"type": "string"}, {"type": ["string", "null"]}
    error = {"type": "object", "properties": {"message": text, "type": text, "param": maybe, "code": maybe}}
    return {"type": "object", "required": ["error"], "properties": {"error": error}}
