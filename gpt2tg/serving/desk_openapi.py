"""The paths of the page in the description of the API."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpt2tg.desk.settings import settings_on_the_page
from gpt2tg.options import DecodingOptions, Options
from gpt2tg.options.desk import (
    WITH_SETTINGS,
    Choice,
    ComparisonRequest,
    Continuation,
    Edit,
    ModelSwitch,
    NewText,
    NodeChange,
    TextChange,
    TextToScore,
)
from gpt2tg.serving.schemas import GUARDED, errors, get, property_of, ref
from gpt2tg.serving.text_files import FORMATS

BODIES: tuple[type[Options], ...] = (
    *(NewText, TextChange, Edit, Choice, Continuation, NodeChange, ModelSwitch, TextToScore, ComparisonRequest),
)

READ, FOUND = GUARDED, (*GUARDED, "404")
SENT = ("400", *GUARDED, "408", "413", "429", "503")
SENT_TO = (*SENT, "404")

JSON, EVENTS = "application/json", "text/event-stream"


def desk_paths() -> dict[str, Any]:
    """Return the descriptions of the paths."""
    text, node = "/api/texts/{text}", "/api/texts/{text}/nodes/{node}"
    return {
        "/api/state": {"get": get("state", "All that the page shows before a text is open", JSON, *READ)},
        "/api/model": {"post": _send("switchModel", "Load a model", ModelSwitch, *SENT_TO, "409")},
        "/api/texts": {
            "get": get("texts", "List the texts", JSON, *READ),
            "post": _send("newText", "Begin a text", NewText, *SENT, status="201"),
        },
        text: {
            "parameters": [_number("text")],
            "get": get("text", "A text with its nodes", JSON, *FOUND),
            "patch": _send("changeText", "Change title, settings or the shown node", TextChange, *SENT_TO),
            "delete": {"operationId": "deleteText", "summary": "Delete a text", "responses": _gone()},
        },
        f"{text}/restore": _at_text(get("restoreText", "Bring a deleted text back", JSON, *FOUND)),
        f"{text}/edit": _at_text(_send("edit", "Take up an edit of the shown text", Edit, *SENT_TO)),
        f"{text}/choose": _at_text(_send("choose", "Continue with another token", Choice, *SENT_TO)),
        f"{text}/continue": _at_text(_send("continue", "Let the model continue", Continuation, *SENT_TO, media=EVENTS)),
        f"{text}/export": {
            "parameters": [_number("text"), *_export_parameters()],
            "get": get("export", "A text as a file", "*/*", "400", *FOUND),
        },
        node: {
            "parameters": [_number("text"), _number("node")],
            "get": get("node", "A node with its tokens", JSON, *FOUND),
            "patch": _send("changeNode", "Name or prune a node", NodeChange, *SENT_TO),
        },
        "/api/import": {"post": _import()},
        "/api/score": {"post": _send("score", "The probability of each token of a text", TextToScore, *SENT)},
        "/api/compare": {
            "post": _send("compare", "Compare strategies on a prompt", ComparisonRequest, *SENT, media=EVENTS)
        },
        "/api/reports/{report}": {
            "parameters": [{"name": "report", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": get("report", "The report of a comparison", "text/html", "403", "404"),
        },
    }


def desk_schemas() -> dict[str, Any]:
    """Return the schemas of the bodies."""
    settings = {field.name: property_of(DecodingOptions, field) for field in settings_on_the_page()}
    shared = {"Settings": {"type": "object", "properties": settings, "additionalProperties": False}}
    return shared | {body.__name__: _body_schema(body) for body in BODIES}


def _body_schema(body: type[Options]) -> dict[str, Any]:
    fields = dataclasses.fields(body)
    properties = {field.name: property_of(body, field) for field in fields}
    required = [field.name for field in fields if field.metadata["is_required"]]
    for name in required:
        properties[name] = {**properties[name]["anyOf"][0], "description": properties[name]["description"]}  # not null
    if body in WITH_SETTINGS:
        properties["settings"] = {"anyOf": [ref("Settings"), {"type": "null"}]}
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": required}


def _send(
    name: str, summary: str, body: type[Options], *statuses: str, status: str = "200", media: str = JSON
) -> dict[str, Any]:
    """Return the description of a request with a JSON body."""
    content = {JSON: {"schema": ref(body.__name__)}}
    answer = {status: {"description": summary, "content": {media: {}}}}
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": content},
        "responses": {**answer, **errors(*statuses)},
    }


def _at_text(post: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": [_number("text")], "post": post}


def _number(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}


def _gone() -> dict[str, Any]:
    return {"204": {"description": "It can be restored for 30 days"}, **errors(*FOUND)}


def _export_parameters() -> list[dict[str, Any]]:
    return [
        {"name": "node", "in": "query", "schema": {"type": "integer", "minimum": 1}},
        {"name": "format", "in": "query", "schema": {"enum": list(FORMATS)}},
    ]


def _import() -> dict[str, Any]:
    summary = "Open a plain text, a session of the terminal, or an exported text"
    name = {"name": "name", "in": "query", "schema": {"type": "string"}, "description": "the name of the file"}
    answer = {"201": {"description": summary, "content": {JSON: {}}}}
    return {
        "operationId": "import",
        "summary": summary,
        "parameters": [name],
        "requestBody": {"required": True, "content": {"application/octet-stream": {}}},
        "responses": {**answer, **errors("400", *GUARDED, "408", "413", "503")},
    }
