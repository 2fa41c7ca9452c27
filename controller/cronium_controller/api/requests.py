"""What is read from a request: path segments, token, idempotency key and body. Refusals are ApiErrors."""

import re
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from cronium_runner.wire import exactjson

from .errors import ApiError
from .tokens import LONGEST_TOKEN

LARGEST_HEADER: Final = 16 << 10
"""Bytes of a request's line and headers together, as nginx and h11 have it. A path with the longest name, each byte
percent-encoded, has 3 KiB."""

_LARGEST_SEQUENCE: Final = 2**63 - 1  # what the database's integers hold
_KEY: Final = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]{0,63})/([0-9]{1,19})")


def segment(raw: str, what: str) -> str:
    """A percent-encoded path segment as text. Whatever it holds stays one segment: `%2F` is a slash in the name."""
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise ApiError("invalid_request", f"the {what} in the path is not UTF-8") from None


def check_headers(scope: Any) -> None:
    """Refuses a request whose line and headers are too long."""
    size = len(scope["raw_path"]) + len(scope["query_string"])
    size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # with ": " and CRLF
    if size > LARGEST_HEADER:
        raise ApiError(
            "header_too_large", f"the request's line and headers have {size} bytes; {LARGEST_HEADER} at most"
        )


def bearer_token(request: Request) -> str:
    """The token of the Authorization header."""
    given = request.headers.getlist("authorization")
    if len(given) != 1:
        raise ApiError("unauthorized", "send one header: Authorization: Bearer TOKEN")
    scheme, _, token = given[0].partition(" ")
    if len(token) > LONGEST_TOKEN:
        raise ApiError("header_too_large", f"the token has {len(token)} characters; {LONGEST_TOKEN} at most")
    if scheme.lower() != "bearer" or not token.strip():
        raise ApiError("unauthorized", "send the header: Authorization: Bearer TOKEN")
    return token.strip()


def sequence(request: Request, execution_id: str) -> int | None:
    """The number of `Idempotency-Key: <execution>/<sequence>`, None without one."""
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    match = _KEY.fullmatch(given[0])
    if len(given) != 1 or match is None or int(match[2]) > _LARGEST_SEQUENCE:
        raise ApiError("invalid_key", "an Idempotency-Key is <execution>/<number>")
    if match[1] != execution_id:
        raise ApiError("forbidden", "the Idempotency-Key is another execution's")
    return int(match[2])


async def body(request: Request, most: int) -> bytes:
    """The body, of at most `most` bytes."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(most)
    received = bytearray()
    async for piece in request.stream():
        received += piece
        if len(received) > most:
            raise _too_large(most)
    return bytes(received)


def json_object(body: bytes) -> dict[str, Any]:
    """A body as the JSON object that it has to be."""
    try:
        value = exactjson.loads(body)
    except ValueError as error:
        raise ApiError("invalid_body", f"the body is {error}") from None
    if not isinstance(value, dict):
        raise ApiError("invalid_body", "the body is no JSON object")
    return value


def member(body: dict[str, Any], name: str) -> Any:
    """A member that has to be there; `null` is a value."""
    if name not in body:
        raise ApiError("invalid_body", f'the body needs "{name}"')
    return body[name]


def _too_large(most: int) -> ApiError:
    return ApiError("body_too_large", f"the body is larger than {most} bytes")
