"""Around the application: paths as they were sent, headers of bounded size, every failure an envelope, one line of log.

Starlette routes on the decoded path, where `%2F` in a key is a slash like any other; here the path is handed on as it
was sent, and each segment is decoded after it has been routed.
"""

import logging
import time
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .metrics import Metrics
from .requests import check_headers

log: Final = logging.getLogger("cronium.api")

NO_ROUTE: Final = "none"
"""The route of a request that matched none."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class Edge:
    """An ASGI application around another. The inner one leaves its route in `scope["cronium_route"]`."""

    def __init__(self, inner: ASGIApp, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        else:
            await self._inner(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        status = 0
        body = _Body(scope, receive)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if body.ends_the_connection:
                    await body.read_rest()
            await send(message)

        scope = {**scope, "path": scope["raw_path"].decode("latin-1"), "root_path": ""}
        try:
            check_headers(scope)
            await self._inner(scope, body.receive, noting)
        except ApiError as error:
            await error.response()(scope, receive, noting)
        except ClientDisconnect:
            pass  # in the middle of its body; nobody is there to be answered
        except Exception:
            log.exception("request_failed", extra={"route": scope.get("cronium_route", NO_ROUTE)})
            if not status:
                failure = ApiError("internal", "the request could not be answered; the service's log says why")
                await failure.response()(scope, receive, noting)
        self._note(scope, status, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("cronium_route", NO_ROUTE)
        method = scope["method"] if scope["method"] in _METHODS else "other"  # a stranger's word makes no label
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        log.debug(
            "request",
            extra={
                "method": method,
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 2),
                "execution": scope.get("cronium_execution"),
            },
        )


class _Body:
    """The body of a request, as it arrives."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._is_read = False
        self.ends_the_connection = any(name == b"transfer-encoding" for name, _ in scope["headers"])
        """A connection ends with the answer to a request whose length was not announced (see strict_http). With bytes
        of it unread it would be reset, and the answer lost."""

    async def receive(self) -> Message:
        """The next piece, as of ASGI."""
        message = await self._receive()
        self._is_read = not message.get("more_body", False)
        return message

    async def read_rest(self) -> None:
        """Reads and forgets what is left. The protocol ends a connection on which that is too much, or too slow."""
        while not self._is_read:
            await self.receive()
