"""The OpenAPI description of the runtime API, served at /openapi.json and committed as docs/openapi.json."""

import copy
from typing import Any, Final

from cronium_runner import __version__

from .errors import STATUSES

_ANY: Final[dict[str, Any]] = {"description": "Any JSON value; numbers keep all their digits."}

_MEANINGS: Final = {
    400: "The path, the body or the Idempotency-Key cannot be used.",
    401: "No token, or one that is invalid, expired or revoked.",
    403: "The token, or the Idempotency-Key, is another execution's.",
    404: "There is no such thing.",
    409: "The variable's value cannot be changed so.",
    413: "The body is too large, or a quota of the execution is used up.",
    429: "Too many requests or bytes of this execution in a minute, or too many connections.",
    431: "The request's headers, or the token, are too long.",
    500: "The service failed; the request was fine.",
}


def document() -> dict[str, Any]:
    """The whole description; the caller may change it."""
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "Cronium runtime API",
            "version": __version__,
            "description": "What a job's script reads and writes on the platform while it runs.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": {**_execution_paths(), **_other_paths()},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "parameters": {"execution": _EXECUTION, "key": _KEY, "idempotency": _IDEMPOTENCY},
            "schemas": _SCHEMAS,
            "responses": {str(status): _refusal(status) for status in _MEANINGS},
        },
    }
    return copy.deepcopy(whole)


_EXECUTION: Final = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "The execution that the token is for.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$"},
}
_KEY: Final = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "The variable's name, percent-encoded: a slash in it is %2F. At most 1024 bytes of UTF-8.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 256},
}
_IDEMPOTENCY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": (
        "`<execution>/<sequence>`: the write is applied once. Sequences rise; gaps are allowed. One that was applied "
        "is answered again without effect; one that comes after a higher one, or with another write, is refused."
    ),
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}/[0-9]{1,18}$"},
    "example": "exec_20260102_030405_0123456789ab/1",
}
_NULLABLE_TEXT: Final = {"type": ["string", "null"]}
_VARIABLE: Final = {
    "type": "object",
    "required": ["key", "value"],
    "properties": {"key": {"type": "string"}, "value": _ANY},
}
_SCHEMAS: Final[dict[str, Any]] = {
    "Error": {
        "type": "object",
        "required": ["error", "message"],
        "properties": {"error": {"type": "string", "enum": list(STATUSES)}, "message": {"type": "string"}},
    },
    "Done": {"type": "object", "required": ["success"], "properties": {"success": {"const": True}}},
    "Input": {
        "type": "object",
        "required": ["success", "data"],
        "properties": {"success": {"const": True}, "data": _ANY},
    },
    "Variable": {
        "type": "object",
        "required": ["success", "data"],
        "properties": {"success": {"const": True}, "data": _VARIABLE},
    },
    "Changed": {
        "type": "object",
        "required": ["success"],
        "properties": {"success": {"const": True}, "data": _VARIABLE},
        "description": "`data` is what the variable has become. A repeated request is answered without it.",
    },
    "Context": {
        "type": "object",
        "required": ["success", "data"],
        "properties": {
            "success": {"const": True},
            "data": {
                "type": "object",
                "required": [
                    "executionId", "eventId", "eventName", "eventType", "userId", "startTime", "metadata",
                ],
                "properties": {
                    "executionId": {"type": "string"},
                    "jobId": _NULLABLE_TEXT,
                    "userId": {"type": "string"},
                    "eventId": _ANY,
                    "eventName": _ANY,
                    "eventType": _ANY,
                    "startTime": _ANY,
                    "metadata": _ANY,
                },
            },
        },
    },
    "ToolAnswer": {
        "type": "object",
        "required": ["success", "data"],
        "description": "`success` is false when the tool failed; `data` then has `error` and `message`.",
        "properties": {"success": {"type": "boolean"}, "data": _ANY},
    },
    "ToolAction": {
        "type": "object",
        "required": ["tool", "action"],
        "properties": {
            "tool": {"type": "string"},
            "action": {"type": "string"},
            "params": {"type": "object"},
            "config": {"type": "object", "description": "Accepted for `params`."},
        },
    },
}  # fmt: skip


def _execution_paths() -> dict[str, Any]:
    execution = {"$ref": "#/components/parameters/execution"}
    key = {"$ref": "#/components/parameters/key"}
    read = (401, 403, 429, 431, 500)
    return {
        "/executions/{id}/input": {
            "parameters": [execution],
            "get": _operation("getInput", "The execution's input.", "Input", (400, *read)),
        },
        "/executions/{id}/output": {
            "parameters": [execution],
            "post": _write("setOutput", "Replaces the execution's output.", "data", _ANY),
        },
        "/executions/{id}/variables/{key}": {
            "parameters": [execution, key],
            "get": _operation(
                "getVariable",
                "A variable: handed over for this execution, else its user's, else the global one.",
                "Variable",
                (400, 404, *read),
            ),
            "put": _write("setVariable", "Sets a variable of the execution's user.", "value", _ANY),
            "delete": _delete(),
        },
        "/executions/{id}/variables/{key}/increment": {
            "parameters": [execution, key],
            "post": _write(
                "incrementVariable",
                "Adds a number to a variable of the execution's user, in one step. One that isn't there counts as 0.",
                "by",
                {"type": "number", "description": "All digits count, of this and of the sum: at most 400."},
                409,
                answer="Changed",
            ),
        },
        "/executions/{id}/variables/{key}/append": {
            "parameters": [execution, key],
            "post": _write(
                "appendVariable",
                "Puts a text behind that of a variable of the execution's user, in one step.",
                "text",
                {"type": "string"},
                409,
                answer="Changed",
            ),
        },
        "/executions/{id}/condition": {
            "parameters": [execution],
            "post": _write("setCondition", "Sets the execution's condition.", "condition", {"type": "boolean"}),
        },
        "/executions/{id}/context": {
            "parameters": [execution],
            "get": _operation("getContext", "What the execution runs for.", "Context", (400, *read)),
        },
    }


def _other_paths() -> dict[str, Any]:
    tool = _operation(
        "executeToolAction", "Has a configured tool do something, at most once.", "ToolAnswer",
        (400, 401, 404, 413, 429, 431, 500),
    )  # fmt: skip
    tool["requestBody"] = _body({"$ref": "#/components/schemas/ToolAction"})
    health = {"type": "object", "required": ["status"], "properties": {"status": {"enum": ["healthy", "unhealthy"]}}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    refused = {"431": {"$ref": "#/components/responses/431"}}
    return {
        "/tool-actions/execute": {"post": tool},
        "/health": {
            "get": {
                "operationId": "health",
                "security": [],
                "responses": {
                    "200": {"description": "It works.", "content": {"application/json": {"schema": health}}},
                    "503": {"description": "It doesn't.", "content": {"application/json": {"schema": health}}},
                    **refused,
                },
            }
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "security": [],
                "responses": {"200": {"description": "Prometheus' text form.", "content": text}, **refused},
            }
        },
    }


def _operation(name: str, summary: str, answer: str, refusals: tuple[int, ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    responses |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in refusals}
    return {"operationId": name, "summary": summary, "responses": responses}


def _write(
    name: str, summary: str, member: str, schema: dict[str, Any], *more: int, answer: str = "Done"
) -> dict[str, Any]:
    body = {"type": "object", "required": [member], "properties": {member: schema}}
    operation = _operation(name, summary, answer, (400, 401, 403, *more, 413, 429, 431, 500))
    parameters = [{"$ref": "#/components/parameters/idempotency"}]
    return {**operation, "parameters": parameters, "requestBody": _body(body)}


def _delete() -> dict[str, Any]:
    said = "Deletes a variable of the execution's user, or one handed over for the execution. Global ones stay."
    operation = _operation("deleteVariable", said, "Done", (400, 401, 403, 404, 413, 429, 431, 500))
    return {**operation, "parameters": [{"$ref": "#/components/parameters/idempotency"}]}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _refusal(status: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": _MEANINGS[status], "content": content}
