"""The endpoints of the runtime API. Who may ask is decided here, what is stored is the store's matter.

Every endpoint checks in the same order: the token, whose execution it is, how often, then the body.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cronium_runner import __version__
from cronium_runner.wire import exactjson
from cronium_runner.wire.changes import ChangeError, is_number

from ..errors import StoreError
from ..platform_store import (
    Caller,
    GrantError,
    MissingVariableError,
    PlatformStore,
    Quota,
    QuotaError,
    SequenceError,
    Write,
)
from ..platform_store.database import CONNECTIONS
from ..platform_store.live import DELETE, LONGEST_NAME
from . import metrics, requests
from .connections import Connections
from .edge import Edge, log
from .errors import ApiError, json_response
from .limits import WRITE_BYTES, Limits
from .metrics import Metrics
from .protocol import STATE_NAME
from .rate import RateLimit
from .schema import document
from .tokens import Claims, TokenError, TokenExpiredError, Tokens
from .tools import Tool, ToolCaller, ToolError, ToolInputError

_DONE: Final = b'{"success":true}'

_MEMBERS: Final[Mapping[str, tuple[str, Callable[[Any], bool], str]]] = {
    "output.set": ("data", lambda _: True, "anything"),
    "variable.set": ("value", lambda _: True, "anything"),
    "variable.increment": ("by", is_number, "a number"),
    "variable.append": ("text", lambda value: isinstance(value, str), "a text"),
    "condition.set": ("condition", lambda value: isinstance(value, bool), "true or false"),
}
"""What the body of each write has: its member, which values that may have, and how a message says so."""

# Seconds. A token bucket's next drop comes sooner; the header has whole ones only.
_RETRY_AT_LEAST: Final = 1

# Executions whose first refusal because of a quota is in the audit log. A controller has far fewer at a time.
_REMEMBERED: Final = 10_000

_T = TypeVar("_T")
_Endpoint = Callable[[Request], Awaitable[Response]]


class _RawSegment(Convertor[str]):
    """A path segment as it was sent, also an empty one; starlette's own refuses that before we can say why."""

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("raw", _RawSegment())


class RuntimeApi:
    """The ASGI application. `clock` gives seconds since the epoch; `tools` are by the name that scripts use."""

    def __init__(
        self,
        store: PlatformStore,
        tokens: Tokens,
        *,
        tools: Mapping[str, Tool] | None = None,
        clock: Callable[[], float] = time.time,
        limits: Limits | None = None,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._tools = dict(tools or {})
        self._clock = clock
        self.limits = limits or Limits()
        self._rate = RateLimit(self.limits.requests_per_minute)
        self._byte_rate = RateLimit(self.limits.bytes_per_minute)
        self._quota = Quota(self.limits.keys, self.limits.stored_bytes)
        self._over_quota: set[tuple[str, str]] = set()
        self._metrics = Metrics()
        self.connections = Connections(self.limits, self._metrics)
        self._document = exactjson.encode(document())
        # The store waits for disks and servers, so it is called in threads: as many as there are connections to it.
        self._threads = anyio.CapacityLimiter(CONNECTIONS)
        self._app: ASGIApp = Edge(self._routed(), self._metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def _routed(self) -> Starlette:
        routes = [
            _route("/executions/{id:raw}/input", GET=self._input),
            _route("/executions/{id:raw}/output", POST=self._output),
            _route(
                "/executions/{id:raw}/variables/{key:raw}",
                GET=self._variable,
                PUT=self._set_variable,
                DELETE=self._delete_variable,
            ),
            _route("/executions/{id:raw}/variables/{key:raw}/increment", POST=self._increment_variable),
            _route("/executions/{id:raw}/variables/{key:raw}/append", POST=self._append_variable),
            _route("/executions/{id:raw}/condition", POST=self._condition),
            _route("/executions/{id:raw}/context", GET=self._context),
            _route("/tool-actions/execute", POST=self._tool_action),
            _route("/health", GET=self._health),
            _route("/metrics", GET=self._show_metrics),
            _route("/openapi.json", GET=self._openapi),
        ]
        app = Starlette(routes=routes, exception_handlers={ApiError: _refuse, HTTPException: _refuse_unrouted})
        app.router.redirect_slashes = False
        return app

    # Reading.

    async def _input(self, request: Request) -> Response:
        caller = await self._caller_of(request)
        return _data(await self._read(self._store.read_input, caller))

    async def _context(self, request: Request) -> Response:
        caller = await self._caller_of(request)
        found = await self._read(self._store.read_context, caller)
        given = {"eventId": None, "eventName": None, "eventType": None, "startTime": None, "metadata": None, **found}
        return _data(exactjson.dumps(given))

    async def _variable(self, request: Request) -> Response:
        caller = await self._caller_of(request)
        key = _key(request)
        value = await self._read(self._store.read_variable, caller, key) if _is_storable(key) else None
        if value is None:
            raise _no_variable()
        return _variable(key, value)

    # Writing.

    async def _output(self, request: Request) -> Response:
        return await self._write(request, await self._caller_of(request), "output.set")

    async def _condition(self, request: Request) -> Response:
        return await self._write(request, await self._caller_of(request), "condition.set")

    async def _set_variable(self, request: Request) -> Response:
        return await self._write_variable(request, "variable.set")

    async def _increment_variable(self, request: Request) -> Response:
        return await self._write_variable(request, "variable.increment")

    async def _append_variable(self, request: Request) -> Response:
        return await self._write_variable(request, "variable.append")

    async def _delete_variable(self, request: Request) -> Response:
        caller = await self._caller_of(request)
        key = _key(request)
        sequence = requests.sequence(request, caller.execution_id)
        await requests.body(request, self.limits.largest_body)  # none is wanted
        if not _is_storable(key):
            raise _no_variable()
        return await self._apply(caller, Write(DELETE, None, key, sequence), 0)

    async def _write_variable(self, request: Request, action: str) -> Response:
        caller = await self._caller_of(request)
        key = _key(request)
        if not _is_storable(key):
            raise ApiError("invalid_request", f"a variable's name has 1 to {LONGEST_NAME} bytes")
        return await self._write(request, caller, action, key)

    async def _write(self, request: Request, caller: Caller, action: str, key: str | None = None) -> Response:
        sequence = requests.sequence(request, caller.execution_id)
        body = await requests.body(request, self.limits.largest_body)
        name, is_possible, what = _MEMBERS[action]
        value = requests.member(requests.json_object(body), name)
        if not is_possible(value):
            raise ApiError("invalid_body", f'"{name}" is {what}')
        return await self._apply(caller, Write(action, value, key, sequence), len(body))

    async def _apply(self, caller: Caller, write: Write, size: int) -> Response:
        """Applies a write, which came in a body of `size` bytes."""
        self._charge(caller, size)
        try:
            applied = await self._in_store(self._store.write, caller, write, self._clock(), self._quota)
        except QuotaError as error:
            await self._note_over_quota(caller, error.quota)
            raise ApiError("quota_exceeded", str(error)) from None
        except MissingVariableError:
            raise _no_variable() from None
        except ChangeError as error:
            raise ApiError("invalid_change", f"the variable {error}") from None
        self._metrics.writes.labels(write.action, "applied" if applied.is_new else "repeated").inc()
        if write.name is None or applied.changed is None:
            return json_response(_DONE)
        return _variable(write.name, applied.changed)

    def _charge(self, caller: Caller, size: int) -> None:
        """Takes a write from what the token may send in a minute."""
        size += WRITE_BYTES
        if size > self.limits.bytes_per_minute:
            raise ApiError("quota_exceeded", f"one write has more than {self.limits.bytes_per_minute} bytes a minute")
        wait = self._byte_rate.take(caller.execution_id, self._clock(), size)
        if wait:
            self._metrics.over_quota.labels("bytes_per_minute").inc()
            said = f"this execution has written more than {self.limits.bytes_per_minute} bytes a minute"
            raise ApiError("rate_limited", said, _retry_after(wait))

    async def _note_over_quota(self, caller: Caller, quota: str) -> None:
        """Counts it; the audit log has the first one of each execution, since any number may follow."""
        self._metrics.over_quota.labels(quota).inc()
        if (caller.execution_id, quota) in self._over_quota:
            return
        if len(self._over_quota) >= _REMEMBERED:
            self._over_quota.clear()
        self._over_quota.add((caller.execution_id, quota))
        await self._audit(caller, "quota.exceeded", quota, {})

    # Tools: at most once, never repeated, both sides of the call in the audit log.

    async def _tool_action(self, request: Request) -> Response:
        claims = self._claims(request)
        caller = await self._admitted(request, claims)
        if "idempotency-key" in request.headers:
            raise ApiError("invalid_key", "a tool action takes no Idempotency-Key: it is never repeated")
        received = await requests.body(request, self.limits.largest_body)
        self._charge(caller, len(received))
        body = requests.json_object(received)
        name, action = requests.member(body, "tool"), requests.member(body, "action")
        params = body.get("params", body.get("config", {}))
        if not isinstance(name, str) or not isinstance(action, str) or not isinstance(params, dict):
            raise ApiError("invalid_body", '"tool" and "action" are texts, "params" is an object')
        tool = self._tools.get(name)
        if tool is None:
            await self._audit_tool(caller, "tool.unknown", name, action)
            raise ApiError("not_found", "no tool of this name is configured")
        return await self._execute(tool, name, action, params, caller)

    async def _execute(self, tool: Tool, name: str, action: str, params: Mapping[str, Any], caller: Caller) -> Response:
        await self._audit_tool(caller, "tool.started", name, action)
        outcome = "failed"
        try:
            data = await tool.execute(action, params, ToolCaller(caller.execution_id, caller.peer))
            body = exactjson.encode({"success": True, "data": data})
            outcome = "succeeded"
        except ToolInputError as error:
            outcome = "refused"
            raise ApiError("invalid_action", str(error)) from None
        except ToolError as error:
            body = exactjson.encode({"success": False, "data": {"error": "tool_failed", "message": str(error)}})
        except asyncio.CancelledError:
            outcome = "interrupted"  # the service is ending; whether the tool has acted is not known
            raise
        finally:
            self._metrics.tool_actions.labels(name, outcome).inc()
            await self._audit_tool(caller, f"tool.{outcome}", name, action)
        return json_response(body)

    async def _audit_tool(self, caller: Caller, what: str, name: str, action: str) -> None:
        await self._audit(caller, what, name, {"action": action[:100]})

    async def _audit(self, caller: Caller, what: str, subject: str, detail: dict[str, Any]) -> None:
        def note() -> None:
            self._store.note(caller, what, self._clock(), subject=subject, detail=detail)

        await self._in_store(note)

    # For everybody.

    async def _health(self, _request: Request) -> Response:
        try:
            await self._in_thread(self._store.check)
        except StoreError:
            return json_response(b'{"status":"unhealthy"}', 503)
        return json_response(exactjson.encode({"status": "healthy", "version": __version__}))

    async def _show_metrics(self, _request: Request) -> Response:
        return Response(self._metrics.text(), media_type=metrics.CONTENT_TYPE)

    async def _openapi(self, _request: Request) -> Response:
        return json_response(self._document)

    # Who asks.

    async def _caller_of(self, request: Request) -> Caller:
        """Who may ask about the path's execution."""
        claims = self._claims(request)
        if requests.segment(request.path_params["id"], "execution") != claims.execution_id:
            raise ApiError("forbidden", "the token is another execution's")
        return await self._admitted(request, claims)

    def _claims(self, request: Request) -> Claims:
        try:
            return self._tokens.check(requests.bearer_token(request))
        except TokenExpiredError as error:
            raise ApiError("token_expired", str(error)) from None
        except TokenError as error:
            raise ApiError("unauthorized", str(error)) from None

    async def _admitted(self, request: Request, claims: Claims) -> Caller:
        wait = self._rate.take(claims.execution_id, self._clock())
        if wait:
            raise ApiError("rate_limited", "too many requests for this execution", _retry_after(wait))
        connection = request.scope.get("state", {}).get(STATE_NAME)
        if connection is not None and not await connection.identify(claims.execution_id):
            said = f"this execution has {self.limits.connections} connections open already"
            raise ApiError("too_many_connections", said, {**_retry_after(0), "Connection": "close"})
        request.scope["cronium_execution"] = claims.execution_id
        return Caller(claims.execution_id, claims.jti, None if request.client is None else request.client.host)

    async def _read(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Like `_in_store`; without the two switches of threads where reading is quicker than they are."""
        return await self._in_store(call, *arguments, at_once=self._store.reads_at_once)

    async def _in_store(self, call: Callable[..., _T], *arguments: Any, at_once: bool = False) -> _T:
        """A call of the store, its refusals as answers."""
        try:
            if at_once:
                return call(*arguments)
            return await self._in_thread(call, *arguments)
        except GrantError:
            raise ApiError("token_revoked", "the token has been revoked, or was never issued") from None
        except SequenceError as error:
            raise ApiError("out_of_order", str(error)) from None
        except StoreError as error:
            log.error("store_failed", extra={"reason": error.message})
            raise ApiError("internal", "the platform's database cannot be used just now") from None

    async def _in_thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await anyio.to_thread.run_sync(call, *arguments, limiter=self._threads)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(_RETRY_AT_LEAST, int(seconds + 1)))}


def _route(path: str, **endpoints: _Endpoint) -> Route:
    """One route for all methods of a path, so that `Allow` names them all."""

    async def dispatch(request: Request) -> Response:
        request.scope["cronium_route"] = path.replace(":raw", "")
        method = "GET" if request.method == "HEAD" else request.method
        return await endpoints[method](request)

    return Route(path, dispatch, methods=list(endpoints))


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "registered for this only"
    return error.response()


async def _refuse_unrouted(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this only"
    if error.status_code == 405:
        return ApiError("method_not_allowed", "the path has no such method", error.headers).response()
    return ApiError("not_found", "there is no such path").response()


def _no_variable() -> ApiError:
    return ApiError("not_found", "there is no variable of this name")


def _key(request: Request) -> str:
    return requests.segment(request.path_params["key"], "variable's name")


def _is_storable(key: str) -> bool:
    return 0 < len(key.encode()) <= LONGEST_NAME


def _variable(key: str, encoded: str) -> Response:
    return _data(f'{{"key":{exactjson.dumps(key)},"value":{encoded}}}')


def _data(encoded: str) -> Response:
    """A value that is JSON already, so that it goes out as it was written."""
    return json_response(f'{{"success":true,"data":{encoded}}}'.encode())
