"""What the runtime API refuses, as `{"error", "message"}` with a status. The words are listed in docs/api.md."""

from collections.abc import Mapping
from typing import Final

from starlette.responses import Response

from cronium_runner.wire import exactjson

STATUSES: Final[dict[str, int]] = {
    "invalid_body": 400,
    "invalid_key": 400,
    "invalid_request": 400,
    "out_of_order": 400,
    "invalid_action": 400,
    "unauthorized": 401,
    "token_expired": 401,
    "token_revoked": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "invalid_change": 409,
    "body_too_large": 413,
    "quota_exceeded": 413,
    "rate_limited": 429,
    "too_many_connections": 429,
    "header_too_large": 431,
    "internal": 500,
}
"""Every word of an error, and its status."""


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, error: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.headers = dict(headers or {})
        self.status = STATUSES[error]
        if self.status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def response(self) -> Response:
        """The envelope."""
        return json_response(envelope(self.error, self.message), self.status, self.headers)


def envelope(error: str, message: str) -> bytes:
    """An error's body."""
    return exactjson.encode({"error": error, "message": message})


def json_response(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that has been encoded already. It is one execution's business, so nobody on the way may keep it."""
    return Response(
        body, status, headers={"Cache-Control": "no-store", **(headers or {})}, media_type="application/json"
    )
