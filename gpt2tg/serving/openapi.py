"""The description of the API at `/openapi.json`, made from the same fields that requests are checked against."""

from __future__ import annotations

import dataclasses
from dataclasses import Field
from typing import Any

from gpt2tg import __version__
from gpt2tg.options import CompletionOptions, DecodingOptions, Options, ServingOptions
from gpt2tg.options.completions import (
    LARGEST_LOGIT_BIAS,
    OPENAI_DEFAULTS,
    OPENAI_NAMES,
)
from gpt2tg.options.fields import LARGEST_COUNT, LARGEST_SEED, type_of

JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}

# The ends of a range: ours, and JSON Schema's.
RANGE = {"low": "minimum", "above": "exclusiveMinimum", "high": "maximum", "below": "exclusiveMaximum"}

ERRORS = {
    "400": "A field is wrong: `param` names it",
    "401": "The key is missing or wrong",
    "403": "The request names a foreign host or comes from a foreign page",
    "404": "The model does not exist",
    "408": "The body did not arrive in time",
    "413": "The body is too long",
    "429": "Too many texts wait: try again after `Retry-After` seconds",
    "503": "The server shuts down",
}


def description(options: ServingOptions) -> dict[str, Any]:
    """Return the description in OpenAPI 3.1."""
    security: dict[str, Any] = {"security": [{"key": []}]} if options.key is not None else {}
    schemes = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if security else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt2tg", "version": __version__, "description": "Texts of a GPT-2, as OpenAI's API."},
        **security,
        "paths": _paths(),
        "components": {
            "schemas": {"CompletionRequest": _request(), "Completion": _completion(), "Error": _error()},
            **schemes,
        },
    }


def _paths() -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": _ref("CompletionRequest")}}}
    completion = {
        "description": "The texts; with `stream`, their pieces as server-sent events",
        "content": {"application/json": {"schema": _ref("Completion")}, "text/event-stream": {}},
    }
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/v1/completions": {
            "post": {
                "operationId": "complete",
                "summary": "Continue prompts",
                "requestBody": body,
                "responses": {"200": completion, **_errors(*ERRORS)},
            }
        },
        "/v1/models": {"get": _get("models", "List the model", "application/json", *_guards())},
        "/v1/models/{model}": {
            "get": {**_get("model", "Describe a model", "application/json", *_guards(), "404"), "parameters": [model]}
        },
        "/health": {"get": _get("health", "Whether the server is up", "application/json", "403", "503")},
        "/metrics": {"get": _get("metrics", "Numbers for Prometheus", "text/plain", *_guards())},
        "/openapi.json": {"get": _get("openapi", "This description", "application/json", *_guards())},
    }


def _guards() -> tuple[str, ...]:
    return "401", "403"


def _get(name: str, summary: str, media_type: str, *errors: str) -> dict[str, Any]:
    found = {"description": summary, "content": {media_type: {}}}
    return {"operationId": name, "summary": summary, "responses": {"200": found, **_errors(*errors)}}


def _errors(*statuses: str) -> dict[str, Any]:
    schema = {"application/json": {"schema": _ref("Error")}}
    return {status: {"description": ERRORS[status], "content": schema} for status in statuses}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _request() -> dict[str, Any]:
    """Return the schema of a request: the fields of our options, under OpenAI's names where it has one."""
    ours = {name: openai for openai, name in OPENAI_NAMES.items()}
    properties: dict[str, Any] = {"prompt": _prompt(), "logit_bias": _logit_bias(), "stream_options": _stream_options()}
    for options in (CompletionOptions, DecodingOptions):
        for field in dataclasses.fields(options):
            properties[ours.get(field.name, field.name)] = _property(options, field)
    properties["max_tokens"]["anyOf"][0]["minimum"] = 0  # the prompt alone, with echo
    properties["stop"]["anyOf"].insert(0, {"type": "string"})
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _property(options: type[Options], field: Field[Any]) -> dict[str, Any]:
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
    default: Any = OPENAI_DEFAULTS.get(field.name, field.default)
    return found if default is None else {**found, "default": list(default) if kind is tuple else default}


def _prompt() -> dict[str, Any]:
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    each = [{"type": "string"}, ids]
    several = {"type": "array", "items": {"anyOf": each}, "minItems": 1}
    return {"anyOf": [*each, several], "default": "", "description": "a text, its token ids, or several of either"}


def _logit_bias() -> dict[str, Any]:
    number = {"type": "number", "minimum": -LARGEST_LOGIT_BIAS, "maximum": LARGEST_LOGIT_BIAS}
    found = {"type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"}, "additionalProperties": number}
    return {"anyOf": [found, {"type": "null"}], "description": "what to add to the logits of tokens, by id"}


def _stream_options() -> dict[str, Any]:
    usage = {"include_usage": {"type": "boolean"}, "include_obfuscation": {"type": "boolean"}}
    found = {"type": "object", "properties": usage, "additionalProperties": False}
    return {"anyOf": [found, {"type": "null"}], "description": "include_usage: end the stream with the token counts"}


def _completion() -> dict[str, Any]:
    choice = {
        "type": "object",
        "required": ["text", "index", "logprobs", "finish_reason"],
        "properties": {
            "text": {"type": "string"},
            "index": {"type": "integer"},
            "logprobs": {"type": ["object", "null"]},
            "finish_reason": {"enum": ["stop", "length", None]},
        },
    }
    count = {"type": "integer"}
    counts = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": count}
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "text_completion"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": choice},
            "usage": {"type": "object", "properties": counts},
            "seed": {"type": "integer", "description": "the seed, if anything was drawn"},
            "warnings": {"type": "array", "items": {"type": "string"}, "description": "fields without effect"},
        },
    }


def _error() -> dict[str, Any]:
    text, maybe = {"type": "string"}, {"type": ["string", "null"]}
    error = {"type": "object", "properties": {"message": text, "type": text, "param": maybe, "code": maybe}}
    return {"type": "object", "required": ["error"], "properties": {"error": error}}
