"""Tokens and the runtime API: every attack is refused with its own status, quickly and never with 500."""

import json
import os
import pwd
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from api_process import Client, Platform
from runner_process import PATIENCE


def forged(platform: Platform, execution: str, **changes: Any) -> str:
    """A token like one that was issued, with other claims and our key; None takes a claim away."""
    key = platform.key_file.read_bytes().strip()
    good = jwt.decode(platform.token(execution), options={"verify_signature": False})
    claims = {name: value for name, value in (good | changes).items() if value is not None}
    return jwt.encode(claims, key, "HS256")


def revoked(platform: Platform, execution: str) -> str:
    token = platform.token(execution)
    with Client(platform.address, token, execution) as client:
        assert client.get("input").status == 200
    platform.api("revoke", execution)
    return token


def other_key(platform: Platform, execution: str) -> str:
    good = jwt.decode(platform.token(execution), options={"verify_signature": False})
    return jwt.encode(good, b"w" * 32, "HS256")


def no_algorithm(platform: Platform, execution: str) -> str:
    good = jwt.decode(platform.token(execution), options={"verify_signature": False})
    return jwt.encode(good, "", "none")


QUICKLY = 0.05
"""Seconds: contracts and promises, for every token that opens nothing. Asserted of the service's processor time, which
a loaded machine doesn't change; the time on the clock is printed."""

TOKENS: dict[str, tuple[Callable[[Platform, str], str | None], int]] = {
    "none at all": (lambda _platform, _id: None, 401),
    "not a token": (lambda _platform, _id: "letmein", 401),
    "alg none": (no_algorithm, 401),
    "wrong key": (other_key, 401),
    "no exp": (lambda platform, each: forged(platform, each, exp=None), 401),
    "no jti": (lambda platform, each: forged(platform, each, jti=None), 401),
    "no sub": (lambda platform, each: forged(platform, each, sub=None), 401),
    "no aud": (lambda platform, each: forged(platform, each, aud=None), 401),
    "wrong aud": (lambda platform, each: forged(platform, each, aud="else"), 401),
    "expired": (lambda platform, each: forged(platform, each, exp=1), 401),
    "not yet": (lambda platform, each: forged(platform, each, nbf=2**40), 401),
    "never issued": (lambda platform, each: forged(platform, each, jti="f" * 32), 401),
    "revoked": (revoked, 401),
    "other execution": (lambda platform, each: platform.token(f"{each}-other"), 403),
    "64 KB": (lambda _platform, _id: "a" * 65_536, 431),
    "9 KB": (lambda _platform, _id: "a" * 9_000, 431),
}


@pytest.mark.parametrize("attack", TOKENS)
def test_tokens_that_open_nothing(shared_platform: Platform, attack: str) -> None:
    make, status = TOKENS[attack]
    execution = "attack-" + re.sub(r"\W", "-", attack)
    token = make(shared_platform, execution)
    for method, what, body in [
        ("GET", "input", None),
        ("GET", "variables/..%2F..%2Fetc", None),
        ("PUT", "variables/x", '{"value": 1}'),
        ("POST", "output", '{"data": 1}'),
        ("POST", "condition", '{"condition": true}'),
        ("GET", "context", None),
    ]:
        with Client(shared_platform.address, token, execution) as client:
            answer = client.send(method, f"/executions/{execution}/{what}", body)
        assert answer.status == status, answer.body
        assert set(answer.json()) == {"error", "message"}
        assert status != 401 or answer.headers["www-authenticate"] == "Bearer"
        assert token is None or token[:100] not in answer.body.decode()
    if attack != "other execution":
        with Client(shared_platform.address, token) as client:
            answer = client.send("POST", "/tool-actions/execute", '{"tool": "t", "action": "a"}')
        assert answer.status == status
    assert not [e for e in shared_platform.audit(execution) if e["action"].endswith(".set")]


def test_how_quickly_attacks_are_refused(shared_platform: Platform) -> None:
    """The median is printed (docs/api.md)."""
    print()
    for attack in TOKENS:
        token = TOKENS[attack][0](shared_platform, "timed")
        taken = []
        used = processor_seconds(shared_platform)
        for _ in range(20):
            with Client(shared_platform.address, token, "timed") as client:
                began = time.perf_counter()
                assert client.get("input").status == TOKENS[attack][1]
                taken.append(time.perf_counter() - began)
        assert (processor_seconds(shared_platform) - used) / 20 < QUICKLY, attack
        print(f"  {attack:16} refused in {statistics.median(taken) * 1000:.1f} ms (median of 20, new connections)")


def processor_seconds(platform: Platform) -> float:
    """What the service has used of a processor."""
    assert platform.process is not None
    user, system = Path(f"/proc/{platform.process.pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def raw(address: str, request: bytes) -> bytes:
    """Sends bytes that no client would, and returns all that comes back."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_a_token_of_5_mb_gets_its_answer(shared_platform: Platform) -> None:
    huge = b"GET /executions/one/input HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"a" * 5_000_000 + b"\r\n\r\n"
    used = processor_seconds(shared_platform)
    for _ in range(5):  # a connection that is reset before the answer is read would show sooner or later
        answer = raw(shared_platform.address, huge)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "header_too_large"
    assert (processor_seconds(shared_platform) - used) / 5 < QUICKLY, "with the reading of all of it"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\0\0\0\0\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"4"),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n", b"400"),
        (b"GET /%ZZ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
        (b"GET http://x/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"404"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"431"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 4000 + b"Connection: close\r\n\r\n", b"431"),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", b"4"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"200"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_http(shared_platform: Platform, request_bytes: bytes, status: bytes) -> None:
    answer = raw(shared_platform.address, request_bytes)
    assert answer.startswith(b"HTTP/1.1 " + status), answer
    with Client(shared_platform.address) as client:
        assert client.send("GET", "/health").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        ["Authorization: Basic eDp5"],
        ["Authorization: Bearer"],
        ["Authorization: Bearer "],
        ["Authorization: {token}"],
        ["Authorization: Bearer {token}", "Authorization: Bearer {token}"],
        ["Authorization: Bearer {token}, Bearer {token}"],
        ["X-Authorization: Bearer {token}"],
        ["Cookie: token={token}"],
    ],
)
def test_other_ways_to_hand_a_token_over(shared_platform: Platform, headers: list[str]) -> None:
    token = shared_platform.token("spelled")
    lines = "\r\n".join(["GET /executions/spelled/input HTTP/1.1", "Host: x", "Connection: close", *headers])
    answer = raw(shared_platform.address, f"{lines.replace('{token}', token)}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    good = "\r\n".join(["GET /executions/spelled/input HTTP/1.1", "host: x", f"authorization: bearer {token}", "", ""])
    assert raw(shared_platform.address, good.encode()).startswith(b"HTTP/1.1 200 ")


def test_a_token_opens_what_it_is_for_and_only_until_it_is_revoked(shared_platform: Platform) -> None:
    with shared_platform.client("mine") as client:
        assert client.get("input").status == 200
        shared_platform.api("revoke", "mine")
        answer = client.get("input")
        assert (answer.status, answer.json()["error"]) == (401, "token_revoked")
    assert [entry["action"] for entry in shared_platform.audit("mine")][-1] == "token.revoked"


_CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


def test_another_local_user_cannot_connect_to_the_unix_socket(platform: Platform, as_root: None) -> None:
    """Not even in a folder that everybody may enter: the socket itself is 0600."""
    folder = Path("/tmp") / f"cronium-api-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        path = folder / "s"
        platform.serve("--unix", str(path))
        nobody = pwd.getpwnam("nobody")
        attempt = subprocess.run(
            ["python3", "-c", _CONNECT, path], user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], cwd="/",
            env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert attempt.returncode != 0
        assert "Permission denied" in attempt.stderr
        with platform.client("one") as client:
            assert client.get("input").status == 200
        platform.stop()
        assert not path.exists()
    finally:
        folder.rmdir()
