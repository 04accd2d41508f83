"""The description of the API at `/openapi.json`, made from the same fields that requests are checked against."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpt2tg import __version__
from gpt2tg.options import CompletionOptions, DecodingOptions, ServingOptions
from gpt2tg.options.completions import LARGEST_LOGIT_BIAS, OPENAI_DEFAULTS, OPENAI_NAMES
from gpt2tg.serving.desk_openapi import desk_paths, desk_schemas
from gpt2tg.serving.schemas import ERRORS, GUARDED, error_schema, errors, get, property_of, ref


def description(options: ServingOptions) -> dict[str, Any]:
    """Return the description in OpenAPI 3.1, with the paths of the page if there is one."""
    security: dict[str, Any] = {"security": [{"key": []}]} if options.key is not None else {}
    schemes = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if security else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt2tg", "version": __version__, "description": "Texts of a GPT-2, as OpenAI's API."},
        **security,
        "paths": _paths() | (desk_paths() if options.web else {}),
        "components": {
            "schemas": {
                "CompletionRequest": _request(),
                "Completion": _completion(),
                "Error": error_schema(),
                **(desk_schemas() if options.web else {}),
            },
            **schemes,
        },
    }


def _paths() -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": ref("CompletionRequest")}}}
    completion = {
        "description": "The texts; with `stream`, their pieces as server-sent events",
        "content": {"application/json": {"schema": ref("Completion")}, "text/event-stream": {}},
    }
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "/v1/completions": {
            "post": {
                "operationId": "complete",
                "summary": "Continue prompts",
                "requestBody": body,
                "responses": {"200": completion, **errors(*ERRORS)},
            }
        },
        "/v1/models": {"get": get("models", "List the model", "application/json", *GUARDED)},
        "/v1/models/{model}": {
            "get": {**get("model", "Describe a model", "application/json", *GUARDED, "404"), "parameters": [model]}
        },
        "/health": {"get": get("health", "Whether the server is up", "application/json", "403", "503")},
        "/metrics": {"get": get("metrics", "Numbers for Prometheus", "text/plain", *GUARDED)},
        "/openapi.json": {"get": get("openapi", "This description", "application/json", *GUARDED)},
    }


def _request() -> dict[str, Any]:
    """Return the schema of a request: the fields of our options, under OpenAI's names where it has one."""
    ours = {name: openai for openai, name in OPENAI_NAMES.items()}
    properties: dict[str, Any] = {"prompt": _prompt(), "logit_bias": _logit_bias(), "stream_options": _stream_options()}
    for options in (CompletionOptions, DecodingOptions):
        for field in dataclasses.fields(options):
            properties[ours.get(field.name, field.name)] = property_of(options, field, OPENAI_DEFAULTS)
    properties["max_tokens"]["anyOf"][0]["minimum"] = 0  # the prompt alone, with echo
    properties["stop"]["anyOf"].insert(0, {"type": "string"})
    return {"type": "object", "properties": properties, "additionalProperties": False}


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
