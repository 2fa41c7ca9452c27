"""HTTP that two parsers may read in two ways: refused, and nothing behind it is taken for a request."""

import json
import socket

import pytest

from api_process import Platform
from runner_process import PATIENCE

HIDDEN = b"GET /health HTTP/1.1\r\nHost: hidden\r\n\r\n"


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def exchange(address: str, sent: bytes) -> bytes:
    """All that comes back until the service closes the connection; ours stays open."""
    with connect(address) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


def post(*headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"POST /executions/one/output HTTP/" + version, b"Host: x", *headers, b"", b""]) + body


CHUNKED = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"

AMBIGUOUS = {
    "length and encoding": post(b"Content-Length: 5", CHUNKED, body=END),
    "encoding and length": post(CHUNKED, b"Content-Length: 5", body=END),
    "length and encoding, other case": post(b"content-LENGTH: 5", b"TRANSFER-encoding: chunked", body=END),
    "the same length twice": post(b"Content-Length: 2", b"Content-Length: 2", body=b"{}"),
    "two lengths": post(b"Content-Length: 2", b"Content-Length: 40", body=b"{}"),
    "two lengths in one": post(b"Content-Length: 2, 2", body=b"{}"),
    "a signed length": post(b"Content-Length: +2", body=b"{}"),
    "a length in hexadecimal": post(b"Content-Length: 0x2", body=b"{}"),
    "no length": post(b"Content-Length:", body=b"{}"),
    "two encodings": post(CHUNKED, CHUNKED, body=END),
    "another encoding": post(b"Transfer-Encoding: gzip, chunked", body=END),
    "an encoding with a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=END),
    "an encoding in HTTP/1.0": post(CHUNKED, version=b"1.0", body=END),
    "a space before the colon": post(b"Content-Length : 2", body=b"{}"),
    "a folded line": post(b"X: a", b" b"),
    "a folded length": post(b"Content-Length:", b" 2", body=b"{}"),
    "a folded first line": post(b" Content-Length: 2", body=b"{}"),
    "lines that end with LF": b"POST /x HTTP/1.1\nHost: x\n\n",
    "one line that ends with LF": post(b"X: a\nContent-Length: 2", body=b"{}"),
    "a line that ends with CR": post(b"X: a\rContent-Length: 2", body=b"{}"),
    "an end with LF": b"POST /x HTTP/1.1\r\nHost: x\r\n\n",
    "a NUL": post(b"X: a\0b"),
    "a chunk's size in words": post(CHUNKED, body=b"two\r\n{}\r\n" + END),
    "a chunk's size with a sign": post(CHUNKED, body=b"+2\r\n{}\r\n" + END),
    "a chunk's size in 0x": post(CHUNKED, body=b"0x2\r\n{}\r\n" + END),
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_ambiguous_requests_are_refused_and_closed(shared_platform: Platform, what: str) -> None:
    token = shared_platform.token("one").encode()
    sent = AMBIGUOUS[what].replace(b"Host: x", b"Host: x\r\nAuthorization: Bearer " + token, 1)
    if b"POST /x HTTP/1.1\n" in sent:
        sent = AMBIGUOUS[what]
    received = exchange(shared_platform.address, sent + HIDDEN)
    assert received.startswith(b"HTTP/1.1 400 "), received
    assert received.count(b"HTTP/1.1 ") == 1, "what was hidden behind it has been answered"
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"] == "invalid_request"
    assert not [entry for entry in shared_platform.audit("one") if entry["action"] == "output.set"]


def chunked(token: str, body: bytes) -> bytes:
    return post(b"Authorization: Bearer " + token.encode(), CHUNKED, body=body)


@pytest.mark.parametrize(
    "end",
    [b"0\r\n\r\n", b"0\r\n\n", b"0;ext=1\r\n\r\n", b"0\r\nX: a\r\n\r\n", b"0\r\nX: a\n\n"],
    ids=["usual", "LF", "extension", "trailer", "trailer with LF"],
)
def test_behind_a_chunked_body_nothing_is_a_request(shared_platform: Platform, end: bytes) -> None:
    """Its end can be written in several ways, so that a proxy may see another."""
    execution = f"chunked-{len(end)}"
    sent = chunked(shared_platform.token(execution), b'a\r\n{"data":1}\r\n' + end + HIDDEN)
    received = exchange(shared_platform.address, sent.replace(b"/one/", f"/{execution}/".encode()))
    assert received.startswith(b"HTTP/1.1 200 "), received
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in received.lower()


@pytest.mark.parametrize("chunk", [b"1\r\n \r\n", b"1;" + b"x" * 8000 + b"\r\n \r\n"], ids=["bytes", "extensions"])
def test_a_flood_of_small_chunks_is_refused(shared_platform: Platform, chunk: bytes) -> None:
    received = exchange(shared_platform.address, chunked(shared_platform.token("one"), chunk * 1500))
    assert received.startswith(b"HTTP/1.1 400 "), received


@pytest.mark.parametrize(("count", "status"), [(90, b"200"), (101, b"431"), (3000, b"431")])
def test_how_many_headers_there_may_be(shared_platform: Platform, count: int, status: bytes) -> None:
    sent = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"a:b\r\n" * count + b"\r\n"
    assert exchange(shared_platform.address, sent).startswith(b"HTTP/1.1 " + status)
