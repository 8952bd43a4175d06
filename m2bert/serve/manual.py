"""An OpenAPI schema as a page shows it: one Operation per address and method.

Test: tests/serve/test_pages.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """A parameter, or a key of a body."""

    name: str
    kind: str
    required: bool
    default: str
    words: str


@dataclass(frozen=True)
class Operation:
    """What can be asked: parameters of the address, and keys of the JSON body."""

    method: str
    path: str
    summary: str
    words: str
    parameters: list[Field]
    body: list[Field]


def operations(schema: Mapping[str, Any]) -> list[Operation]:
    """All operations of a schema, in its order."""
    known = schema.get("components", {}).get("schemas", {})
    found = []
    for path, methods in schema["paths"].items():
        for method, one in methods.items():
            parameters = [
                _field(each["name"], each["schema"] | each, each["required"]) for each in one.get("parameters", [])
            ]
            content = one.get("requestBody", {}).get("content", {})
            body = [_body(each["schema"], known) for each in content.values()]
            found.append(
                Operation(
                    method.upper(), path, one.get("summary", ""), one.get("description", ""), parameters,
                    body[0] if body else [],
                )
            )  # fmt: skip
    return found


def _body(schema: Mapping[str, Any], known: Mapping[str, Any]) -> list[Field]:
    whole = known[_name(schema)]
    required = whole.get("required", [])
    return [_field(name, each, name in required) for name, each in whole["properties"].items()]


def _field(name: str, schema: Mapping[str, Any], required: bool) -> Field:
    default = json.dumps(schema["default"]) if schema.get("default") is not None else ""
    return Field(name, _kind(schema), required, default, schema.get("description", ""))


def _kind(schema: Mapping[str, Any]) -> str:
    """The type of a value in words: `text`, `list of text`, `one of "float", "base64"`."""
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(each) for each in schema["enum"])
    if "$ref" in schema:
        return _name(schema)
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    words = {"string": "text", "integer": "whole number", "boolean": "true or false"}
    return words.get(schema.get("type", ""), schema.get("type", "anything"))


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]
