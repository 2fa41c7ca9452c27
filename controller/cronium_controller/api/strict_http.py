"""HTTP/1.1 as h11 parses it, without what two parsers may read in two ways (request smuggling, RFC 9112 section 11.2).

h11 is generous where the RFC allows it: Content-Length beside Transfer-Encoding, the same Content-Length twice, folded
lines, lines that end with LF alone. No client needs that. A proxy in front that reads it in another way would take the
end of one request for the beginning of the next.
"""

import re
from typing import Any, Final

import h11

MOST_HEADERS: Final = 100
"""As Apache's LimitRequestFields. Each costs more to parse than its bytes say."""

_FIRST_CHUNKS: Final = 1024
_CHUNK_BYTES: Final = 64
"""Bytes of data that each chunk after the first 1024 has to carry on average: the size of a line of text. A chunk costs
as much time as a kilobyte."""

_END: Final = re.compile(rb"\n\r?\n")
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")


class StrictConnection(h11.Connection):
    """A server's side. `next_event` raises RemoteProtocolError for what is refused here as for what h11 refuses."""

    def __init__(self, largest_header: int) -> None:
        super().__init__(h11.SERVER, largest_header)
        self.requests = 0
        """Requests whose headers have arrived."""
        self._chunks = 0
        self._data = 0
        self._is_chunked = False

    @property
    def has_begun(self) -> bool:
        """Whether part of a request has arrived whose headers are not complete."""
        return self.their_state is h11.IDLE and bool(self.trailing_data[0])

    def next_event(self) -> Any:
        """As h11's."""
        if self.their_state is h11.IDLE:
            _check_head(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            return self._checked(event)
        if isinstance(event, h11.Data) and self._is_chunked:
            self._count(event)
        return event

    def _checked(self, request: h11.Request) -> h11.Request:
        self.requests += 1
        self._chunks = self._data = 0
        self._is_chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
        if not self._is_chunked:
            return request
        if request.http_version < b"1.1":
            raise _refused("Transfer-Encoding in HTTP/1.0")
        # What follows a chunked body is not taken for a request: its end can be written in several ways.
        headers = [*request.headers.raw_items(), (b"Connection", b"close")]
        return h11.Request(
            method=request.method, target=request.target, headers=headers, http_version=request.http_version
        )

    def _count(self, event: h11.Data) -> None:
        self._chunks += event.chunk_start
        self._data += len(event.data)
        if self._chunks > _FIRST_CHUNKS + self._data // _CHUNK_BYTES:
            raise _refused("chunks of a few bytes")


def _check_head(received: bytes) -> None:
    """Refuses a complete head that is ambiguous. How long one may become is h11's matter."""
    end = _END.search(received)
    if end is None:
        return
    head = received[: end.end()]
    if _BARE.search(head):
        raise _refused("a line that ends with a lone CR or LF")
    lines = head.split(b"\r\n")[1:-2]
    if len(lines) > MOST_HEADERS:
        raise h11.RemoteProtocolError(f"more than {MOST_HEADERS} headers", error_status_hint=431)
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise _refused("a folded line")
    fields = [line.partition(b":") for line in lines]
    lengths = [value.strip(b" \t") for name, _, value in fields if name.lower() == b"content-length"]
    encodings = [value for name, _, value in fields if name.lower() == b"transfer-encoding"]
    if len(lengths) + len(encodings) > 1:
        raise _refused("several Content-Length and Transfer-Encoding headers")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise _refused("a Content-Length that is no number")


def _refused(what: str) -> h11.RemoteProtocolError:
    return h11.RemoteProtocolError(what, error_status_hint=400)
