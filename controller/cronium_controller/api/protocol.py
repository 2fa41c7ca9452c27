"""One connection's HTTP/1.1: uvicorn's, with our errors, and an end for every client that keeps us waiting.

uvicorn closes a connection that is idle after an answer (`timeout_keep_alive`) and bounds the size of headers
(`h11_max_incomplete_event_size`). It waits without end for headers, for a body and for an answer to be read, and its
`limit_concurrency` doesn't tell one client from another. Those are here, and in `connections`.
"""

import asyncio
import logging
import select
import socket
import sys
from typing import Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from .connections import ADDRESS, SOCKET, TUNNEL, Connections, Origin
from .errors import envelope
from .limits import BODY_RATE, BODY_SECONDS, STALLED_SECONDS, Limits
from .requests import LARGEST_HEADER
from .strict_http import MOST_HEADERS, StrictConnection

STATE_NAME: Final = "cronium_connection"
"""The name of the connection in a request's `scope["state"]`."""

# Of a request that was refused while it was still being sent, this much is read and thrown away: a connection that is
# closed with unread bytes is reset, and the answer is lost with it. 16 MiB is three of the largest tokens in the tests.
_MOST_DISCARDED: Final = 16 << 20
_DISCARD_SECONDS: Final = 2.0

NEW_SECONDS: Final = 1.0
"""A connection whose first request is not there after that may be closed for another: clients connect to send one."""
_LOOK_SECONDS: Final = 0.02

# Requests that are no HTTP are counted and answered; a line for each would let any client fill the log.
_quiet = logging.getLogger("cronium.api.http")
_quiet.setLevel(logging.ERROR)


class HttpProtocol(H11Protocol):
    """Made for one connection."""

    conn: StrictConnection

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        connections: Connections,
    ) -> None:
        super().__init__(config, state, {STATE_NAME: self}, loop)
        self.conn = StrictConnection(LARGEST_HEADER)
        self.logger = _quiet
        self._limits = limits
        self._admission = connections
        self._origin = Origin(SOCKET, "")
        self._began_at = self._answered_at = 0.0
        self._early: bytearray | None = bytearray()
        self._has_early_end = False
        self._discarded: int | None = None
        self._phase: tuple[str, int] | None = None
        self._phase_began = 0.0
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    # What `connections` and the application ask.

    @property
    def idle_seconds(self) -> float | None:
        """Since the last answer, or since the beginning where no request has come for NEW_SECONDS; None while a request
        is being answered or has arrived."""
        is_new = not self.conn.requests
        idle = self.loop.time() - (self._began_at if is_new else self._answered_at)
        is_busy = idle < NEW_SECONDS if is_new else not self.cycle.response_complete
        return None if is_busy or _has_unread(self.transport) else idle

    def begin(self) -> None:
        """Reads it from now on."""
        self._began_at = self.loop.time()
        early, self._early = self._early, None
        if early:
            self.data_received(bytes(early))
        self.flow.resume_reading()
        self._watch()
        if self._has_early_end and not self.eof_received():
            self.transport.close()

    def refuse(self) -> None:
        """Answers 429 and closes it, without having read it."""
        self._early = None
        self._refuse(429, envelope("too_many_connections", "too many connections are open from there"))
        self.transport.close()

    def drop(self) -> None:
        """Closes it once what was answered is sent."""
        self.transport.close()

    async def identify(self, token: str) -> bool:
        """A request of it has shown a valid token; whether it may be answered. Waits for others of the token to end."""
        began = self.loop.time()
        while not self._admission.identify(self, token, self.loop.time() - began):
            if self.loop.time() - began > self._limits.header_seconds:
                self._admission.note_refusal("token_connections", token)
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True

    # What asyncio and uvicorn call.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._origin = _origin(transport)
        self.flow.pause_reading()
        self._admission.admit(self, self._origin)

    def data_received(self, data: bytes) -> None:
        if self._early is not None:  # a tunnel's channel delivers what was under way when it was paused
            self._early += data
            self.transport.pause_reading()
            return
        if self._discarded is None:
            self._received += len(data)
            super().data_received(data)
            self._watch()
            if self._is_body_too_long():
                self.transport.close()
            return
        self._discarded += len(data)
        if self._discarded > _MOST_DISCARDED:
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the connection stays open: until the answer is sent, for a client that has only stopped sending."""
        if self._early is not None:
            self._has_early_end = True
            return True
        if self._discarded is not None or self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
            return False
        self.cycle.keep_alive = False
        return True

    def on_response_complete(self) -> None:
        self._answered_at = self.loop.time()
        super().on_response_complete()
        self._watch()
        self._admission.pump()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_SECONDS, self._end_stalled)

    def resume_writing(self) -> None:
        self._cancel_stalled()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._cancel_stalled()
        self._unset_keepalive_if_required()
        self._admission.discard(self)
        super().connection_lost(exc)

    def send_400_response(self, _msg: str) -> None:
        """Called while h11's error is being handled; which one it was decides the status."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        self._admission.note_refusal("invalid_request", self._origin.name)
        if status == 431:
            said = f"the request's line and headers are longer than {LARGEST_HEADER} bytes, or more than {MOST_HEADERS}"
            body = envelope("header_too_large", said)
        else:
            status, body = 400, envelope("invalid_request", "that is no HTTP request, or one that has two meanings")
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun already
            self._discarded = 0
            self.transport.close()
            return
        self._refuse(status, body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_DISCARD_SECONDS, self.transport.close)

    def _refuse(self, status: int, body: bytes) -> None:
        """Answers without a request of h11's; what still arrives is thrown away."""
        self._discarded = 0
        self._cancel_timer()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    # Waiting for the client.

    def _watch(self) -> None:
        """Sets the deadline of what is expected next from the client, if that has changed."""
        phase = None if self._discarded is not None else self._expected()
        if phase == self._phase:
            return
        self._phase, self._phase_began, self._received = phase, self.loop.time(), 0
        self._cancel_timer()
        if phase is not None:
            seconds = self._limits.header_seconds if phase[0] == "header" else BODY_SECONDS
            self._timer = self.loop.call_later(seconds, self._look_at_deadline)

    def _expected(self) -> tuple[str, int] | None:
        if self.transport.is_closing():
            return None
        if self.conn.their_state is h11.SEND_BODY:
            return "body", self.conn.requests
        if self.conn.has_begun or (self.conn.their_state is h11.IDLE and not self.conn.requests):
            return "header", self.conn.requests
        return None

    def _look_at_deadline(self) -> None:
        self._timer = None
        if self._phase is None:
            return
        what = self._phase[0]
        if what == "body":
            waited = self.loop.time() - self._phase_began
            left = 1.0 if self.flow.read_paused else BODY_SECONDS + self._received / BODY_RATE - waited
            if left > 0:
                self._timer = self.loop.call_later(left, self._look_at_deadline)
                return
        self._admission.note_refusal(f"slow_{what}", self._origin.name)
        self.transport.close()

    def _is_body_too_long(self) -> bool:
        """Whether more has arrived than the largest body takes, or than is thrown away of one that was refused."""
        most = max(_MOST_DISCARDED, 2 * self._limits.largest_body)
        return self._phase is not None and self._phase[0] == "body" and self._received > most

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cancel_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _end_stalled(self) -> None:
        self._stalled = None
        self._admission.note_refusal("slow_reader", self._origin.name)
        self.transport.abort()


def _has_unread(transport: asyncio.BaseTransport) -> bool:
    """Whether something has arrived that the event loop has not come to: the next request, most likely."""
    connected = transport.get_extra_info("socket")
    if connected is None or connected.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(connected.fileno(), select.POLLIN)
    return any(event & select.POLLIN and not event & select.POLLHUP for _, event in poll.poll(0))


def _origin(transport: asyncio.BaseTransport) -> Origin:
    """A tunnel's channel is no socket of this machine; its peer is the host."""
    connected = transport.get_extra_info("socket")
    peer = transport.get_extra_info("peername")
    if connected is None:
        return Origin(TUNNEL, str(peer[0]) if peer else "")
    if connected.family == socket.AF_UNIX:
        return Origin(SOCKET, "unix socket")
    return Origin(ADDRESS, str(peer[0]) if peer else "")
