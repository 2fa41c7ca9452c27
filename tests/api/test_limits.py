"""What one token, one connection and one origin may take: attacks with real sockets on the real service."""

import asyncio
import contextlib
import http.client
import json
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from api_process import Answer, Client, Platform
from cronium_controller.api import protocol
from cronium_controller.api.connections import ADDRESS, SOCKET, TUNNEL, WAITING, Connections, Origin
from cronium_controller.api.limits import NAMES, Limits, chosen, environment_name
from cronium_controller.api.metrics import Metrics
from cronium_controller.errors import ControllerError
from cronium_controller.platform_store import Caller, LiveExecution, PlatformStore, Quota, QuotaError, Write
from cronium_controller.tunnel import _Transport as TunnelTransport
from live_platform import platform as live_platform
from runner_process import PATIENCE, wait_until

MIB = 1 << 20


def refusals(platform: Platform) -> list[dict[str, Any]]:
    """The log's lines about refused connections."""
    lines = [json.loads(line) for line in platform.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "connections_refused"]


def metric(address: str, name: str) -> float:
    with Client(address) as client:
        text = client.send("GET", "/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def connect(address: str) -> socket.socket:
    if address.startswith("unix://"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(address.removeprefix("unix://"))
        return connection
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it, or says that it does."""
    return count_closed([connection]) == 1


def count_closed(connections: list[socket.socket]) -> int:
    """How many of them the other side has closed, or says that it does."""
    poll = select.poll()  # select takes no descriptor above 1,023
    for connection in connections:
        poll.register(connection, select.POLLIN)
    return len(poll.poll(0))


@contextlib.contextmanager
def room_for_descriptors(count: int) -> Iterator[None]:
    """Raises this process's limit of open files by what the block needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may open only {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def error(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]


# Quotas.


def test_a_token_has_a_quota_of_variables(platform: Platform) -> None:
    platform.serve("--port", "0", "--max-keys", "3")
    with platform.client("one") as client, platform.client("two") as other:
        for number in range(3):
            assert client.write("PUT", f"variables/x{number}", {"value": 1}).status == 200
        for number in (3, 4):
            assert error(client.write("PUT", f"variables/x{number}", {"value": 1}, number)) == (413, "quota_exceeded")
        assert client.write("PUT", "variables/x0", {"value": 2}, 5).status == 200, "one that is there is replaced"
        assert client.write("POST", "output", {"data": 1}, 6).status == 200
        assert client.get("variables/x3").status == 404
        assert other.write("PUT", "variables/x9", {"value": 1}).status == 200, "of each token"
        with Client(platform.address, platform.token("one"), "one") as again:
            assert error(again.write("PUT", "variables/x5", {"value": 1})) == (413, "quota_exceeded")
    assert [e["subject"] for e in platform.audit("one") if e["action"] == "quota.exceeded"] == ["keys"], "the first"
    assert metric(platform.address, 'cronium_api_over_quota_total{quota="keys"}') == 3


def test_a_token_that_writes_without_end_is_stopped(platform: Platform) -> None:
    """It wrote 237 MB in 10 seconds, first under new names, then under one."""
    most, a_minute = 2 * MIB, 6 * MIB
    platform.serve("--port", "0", "--max-stored", str(most), "--bytes-per-minute", str(a_minute))
    with platform.client("attack") as client, platform.client("other") as other:
        body = json.dumps({"value": "x" * (MIB // 2)})
        stored = [client.write("PUT", f"variables/{number}", body) for number in range(8)]
        assert [answer.status for answer in stored] == [200] * 3 + [413] * 5
        replaced = [client.write("PUT", "variables/0", body) for _ in range(20)]
        assert error(replaced[-1]) == (429, "rate_limited")
        assert int(replaced[-1].headers["retry-after"]) >= 1
        assert sum(answer.status == 200 for answer in replaced) < 15
        assert other.write("PUT", "variables/mine", {"value": 1}).status == 200
    kept = sum(path.stat().st_size for path in (platform.folder / "state").glob("live.db*"))
    assert kept < 4 * a_minute, "the database and its log"


def test_one_write_that_no_minute_has_room_for(platform: Platform) -> None:
    platform.serve("--port", "0", "--bytes-per-minute", "10000")
    with platform.client("one") as client:
        assert error(client.write("PUT", "variables/x", {"value": "x" * 20_000})) == (413, "quota_exceeded")


@pytest.fixture
def caller(store: PlatformStore) -> Caller:
    store.register(LiveExecution("one", "u"), 1.0, actor="test")
    made = Caller("one", "grant")
    store.grant(made, 1.0, 1e12, actor="test")
    return made


def test_changes_are_counted_as_what_they_come_to(store: PlatformStore, caller: Caller) -> None:
    quota = Quota(keys=2, stored_bytes=30)

    def write(action: str, name: str, value: object = None) -> bool:
        return store.write(caller, Write(f"variable.{action}", value, name), 2.0, quota).is_new

    for _ in range(3):
        write("append", "t", "12345")
    write("increment", "n", 1)
    with pytest.raises(QuotaError, match="2 variables"):
        write("increment", "m", 1)
    with pytest.raises(QuotaError, match="more than 30 bytes"):
        write("append", "t", "1234567890123")
    assert store.read_variable(caller, "t") == '"123451234512345"'
    write("delete", "t")
    assert write("increment", "m", 1), "what is deleted is given back"
    assert write("set", "n", "x" * 10)
    with pytest.raises(QuotaError):
        write("set", "o", 1)


def test_what_is_stored_is_counted_in_the_database(store: PlatformStore, caller: Caller) -> None:
    quota = Quota(keys=100, stored_bytes=50)

    def put(name: str | None, value: object, sequence: int | None = None) -> bool:
        action = "output.set" if name is None else "variable.set"
        return store.write(caller, Write(action, value, name, sequence), 2.0, quota).is_new

    put("a", "x" * 20, 1)  # 1 + 22
    put(None, "y" * 20, 2)  # 22
    with pytest.raises(QuotaError, match="more than 50 bytes"):
        put("b", "1234", 3)
    assert store.read_variable(caller, "b") is None
    assert put("b", 1, 3), "a refused write uses up no number"
    assert not put("a", "x" * 20, 1), "a repeated one is not counted again"
    put("a", "short", 4)
    put("b", "1234", 5)
    store.write(caller, Write("condition.set", True), 2.0, quota)
    store.forget("one", 3.0, actor="test")
    store.register(LiveExecution("one", "u"), 4.0, actor="test")
    store.grant(caller, 4.0, 1e12, actor="test")
    put("c", "x" * 40)


# Connections.


def test_half_open_connections_shut_nobody_out(platform: Platform) -> None:
    """1,500 of them stayed open for 20 seconds each."""
    many, most = 1500, 32 * (1 + WAITING)
    platform.serve("--port", "0", "--header-timeout", "60")
    with room_for_descriptors(many), contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(platform.address)) for _ in range(many)]
        wait_until(lambda: count_closed(opened) >= many - most, f"all but {most} to be closed")
        with platform.client("one") as client:
            assert client.get("input").status == 200
            assert client.get("input").status == 200
        assert metric(platform.address, "cronium_api_connections ") <= 33
        assert metric(platform.address, "cronium_api_refused_connections_total") >= many - most
    assert platform.stop() == 0
    lines = refusals(platform)
    assert sum(line["count"] for line in lines) >= many - most
    assert len(lines) <= len({line["at"] for line in lines}) + 2, "at most one line a second"


def test_a_connection_that_sends_no_headers_is_closed(platform: Platform) -> None:
    platform.serve("--port", "0", "--header-timeout", "0.5")
    half = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    second = connect_and_ask(platform.address, half + b"\r\n")
    with connect(platform.address) as silent, connect(platform.address) as partial, second:
        with contextlib.suppress(ConnectionError):  # closed already, where this process had to wait for its turn
            partial.sendall(half)
            second.sendall(half)
        assert [until_closed(each) for each in (silent, partial, second)] == [b""] * 3
    wait_until(lambda: slow_headers(platform.address) >= 3, "all three to be counted")


def connect_and_ask(address: str, request: bytes) -> socket.socket:
    """A connection on which a request was answered; on another one when the time for it was over before it was sent."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        connection = connect(address)
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
                if answer.endswith(b"}"):
                    return connection
        connection.close()
    raise AssertionError("no request was answered")


def slow_headers(address: str) -> float:
    """How many were closed; 0 when the connection that asks was one of them."""
    try:
        return metric(address, 'cronium_api_refused_connections_total{reason="slow_header"}')
    except (ConnectionError, http.client.HTTPException):
        return 0


def until_closed(connection: socket.socket) -> bytes:
    """What comes before the other side closes. What it did not read makes it a reset."""
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def trickle(connection: socket.socket, seconds: float = 0.05) -> None:
    """Sends a byte now and then until the other side has closed."""
    until = time.monotonic() + PATIENCE
    with contextlib.suppress(ConnectionError):
        while not is_closed(connection):
            connection.sendall(b"a")
            assert time.monotonic() < until, "it is still open"
            time.sleep(seconds)


def test_headers_that_come_byte_by_byte_have_a_deadline(platform: Platform) -> None:
    platform.serve("--port", "0", "--header-timeout", "0.5")
    with connect(platform.address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        trickle(connection)


def unfinished(token: str | None, execution: str = "one", length: int = 1000) -> bytes:
    """A write whose body doesn't end."""
    shown = "" if token is None else f"Authorization: Bearer {token}\r\n"
    return (
        f'POST /executions/{execution}/output HTTP/1.1\r\nHost: x\r\n{shown}Content-Length: {length}\r\n\r\n{{"data": "'
    ).encode()


@pytest.mark.parametrize("has_token", [True, False])
def test_a_body_that_comes_byte_by_byte_has_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_token: bool
) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.5)
    with live_platform(tmp_path) as live, connect(live.endpoint) as connection:
        connection.sendall(unfinished(live.token("one") if has_token else None))
        if not has_token:
            assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        trickle(connection)


def test_a_body_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    """Refused at once; what still comes is thrown away, but not for ever."""
    with live_platform(tmp_path) as live, connect(live.endpoint) as connection:
        connection.sendall(unfinished(None, length=1 << 40))
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        with pytest.raises(ConnectionError):
            connection.sendall(b"a" * (64 * MIB))


def test_a_body_of_the_largest_size_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is thrown away may be less than what a body may have."""
    monkeypatch.setattr(protocol, "_MOST_DISCARDED", 1000)
    with live_platform(tmp_path) as live, Client(live.endpoint, live.token("one"), "one") as client:
        assert client.write("PUT", "variables/x", {"value": "x" * MIB}).status == 200


class Channel:
    """A tunnel's channel that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.asked.append(name)


class Waits(Connections):
    """Keeps every connection waiting."""

    def admit(self, connection: object, origin: Origin) -> None: ...


def arrived(connections: Connections) -> tuple[protocol.HttpProtocol, Channel]:
    """A connection that has come through a tunnel."""
    config = uvicorn.Config(Starlette(), lifespan="off")
    made = protocol.HttpProtocol(config, ServerState(), asyncio.get_running_loop(), Limits(), connections)
    channel = Channel()
    made.connection_made(TunnelTransport(channel, "web01"))
    return made, channel


async def test_a_client_that_reads_again_is_not_cut_off() -> None:
    connection, _ = arrived(Connections(Limits(), Metrics()))
    connection.pause_writing()
    deadline = connection._stalled
    assert deadline is not None
    connection.resume_writing()
    assert deadline.cancelled()
    connection.connection_lost(None)


async def test_a_connection_that_waits_is_not_read() -> None:
    connection, channel = arrived(Waits(Limits(), Metrics()))
    assert channel.asked == ["pause_reading"]
    connection.data_received(b"GET /health HTTP/1.1\r\n")  # was on its way
    assert channel.asked == ["pause_reading", "pause_reading"]
    assert not connection.conn.trailing_data[0], "it is kept, and not looked at"
    assert connection.eof_received()
    connection.begin()
    assert channel.asked[2:] == ["close"], "half a request, and nothing will follow"
    connection.connection_lost(None)
    connection, channel = arrived(Waits(Limits(), Metrics()))
    connection.begin()
    await asyncio.sleep(0)
    assert channel.asked == ["pause_reading", "resume_reading"]
    connection.connection_lost(None)


def test_one_that_there_is_no_room_for_is_told_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "NEW_SECONDS", 600.0)
    limits = Limits(connections_without_token=1, header_seconds=600)
    with live_platform(tmp_path, limits) as live, contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(live.endpoint)) for _ in range(2 + WAITING)]
        answer = b""
        while piece := opened[1].recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 429 ")


def test_a_body_that_we_do_not_read_has_no_deadline() -> None:
    """While the application is busy the client can't go on, and is not to blame."""
    waits: list[float] = []
    loop = SimpleNamespace(time=lambda: 1e6, call_later=lambda seconds, _call: waits.append(seconds))
    for is_paused in (True, False):
        closed: list[bool] = []
        connection = SimpleNamespace(
            _phase=("body", 1), _phase_began=0.0, _received=0, loop=loop, flow=SimpleNamespace(read_paused=is_paused),
            transport=SimpleNamespace(close=lambda closed=closed: closed.append(True)), _origin=Origin(SOCKET, ""),
            _admission=SimpleNamespace(note_refusal=lambda *_: None), _look_at_deadline=None,
        )  # fmt: skip
        protocol.HttpProtocol._look_at_deadline(connection)  # type: ignore[arg-type]
        assert bool(closed) is not is_paused
    assert waits == [1.0]


@pytest.mark.parametrize("by", ["bytes", "time"])
def test_what_follows_a_refused_request_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """It is read, as the answer would be lost else, but neither for long nor without end."""
    monkeypatch.setattr(protocol, "_DISCARD_SECONDS", 600.0 if by == "bytes" else 0.1)
    monkeypatch.setattr(protocol, "_MOST_DISCARDED", MIB if by == "bytes" else 1 << 40)
    with live_platform(tmp_path) as live, connect(live.endpoint) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert metric(live.endpoint, 'cronium_api_refused_connections_total{reason="invalid_request"}') == 1
        if by == "bytes":
            with pytest.raises(ConnectionError):
                connection.sendall(b"a" * (32 * MIB))
        else:
            wait_until(lambda: _is_reset(connection), "the connection to be closed")


def test_a_client_that_reads_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALLED_SECONDS", 0.5)
    with live_platform(tmp_path) as live, connect(live.endpoint) as connection:
        token = live.token("one", input="x" * (4 * MIB))
        request = f"GET /executions/one/input HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        connection.sendall(request.encode())
        wait_until(lambda: _is_reset(connection), "the connection to be cut off")
        assert metric(live.endpoint, 'cronium_api_refused_connections_total{reason="slow_reader"}') == 1


def _is_reset(connection: socket.socket) -> bool:
    """Whether writing fails; nothing is read."""
    try:
        connection.send(b"G")
    except ConnectionError:
        return True
    return False


def test_pipelining_without_reading_takes_no_memory(platform: Platform) -> None:
    platform.serve()
    token = platform.token("one", input="x" * MIB)
    request = f"GET /executions/one/input HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    with platform.client("two") as client, connect(platform.address) as connection:
        assert client.get("input").status == 200
        before = peak_kib(platform)
        connection.setblocking(False)
        while select.select([], [connection], [], 1.0)[1]:
            connection.send(request * 100)
        assert client.get("input").status == 200
        assert peak_kib(platform) - before < 32 * 1024


def peak_kib(platform: Platform) -> int:
    assert platform.process is not None
    status = Path(f"/proc/{platform.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_a_token_has_so_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS", 600.0)
    with live_platform(tmp_path, Limits(connections=4)) as live, contextlib.ExitStack() as stack:
        token = live.token("one")
        busy = [stack.enter_context(connect(live.endpoint)) for _ in range(4)]
        for each in busy:
            each.sendall(unfinished(token))
        wait_until(lambda: metric(live.endpoint, "cronium_api_connections ") >= 5, "the connections")
        wait_until(lambda: _ask(live.endpoint, token) == 429, "the limit")
        with Client(live.endpoint, token, "one") as client:
            answer = client.get("input")
            assert error(answer) == (429, "too_many_connections")
            assert answer.headers["connection"] == "close"
        with Client(live.endpoint, live.token("two"), "two") as other:
            assert other.get("input").status == 200
        assert metric(live.endpoint, 'cronium_api_refused_connections_total{reason="token_connections"}') >= 1
        busy[0].close()
        wait_until(lambda: _ask(live.endpoint, token) == 200, "room for another")


def _ask(address: str, token: str) -> int:
    with Client(address, token, "one") as client:
        return client.get("input").status


def test_idle_connections_make_room(tmp_path: Path) -> None:
    """More executions than a tunnel may have connections: each of their requests is answered."""
    with live_platform(tmp_path, Limits(connections=4)) as live, contextlib.ExitStack() as stack:
        token = live.token("one")
        clients = [stack.enter_context(Client(live.endpoint, token, "one")) for _ in range(10)]
        assert [client.get("input").status for client in clients] == [200] * 10
        with pytest.raises((http.client.HTTPException, OSError)):
            clients[0].get("input")
        assert clients[-1].get("input").status == 200
        wait_until(lambda: metric(live.endpoint, "cronium_api_connections ") <= 5, "the others to be closed")


class Peer:
    """A connection for the counting alone."""

    def __init__(self, is_idle: bool = False) -> None:
        self.idle_seconds: float | None = 10.0 if is_idle else None
        self.state = "waits"

    def begin(self) -> None:
        assert self.state == "waits"
        self.state = "open"

    def refuse(self) -> None:
        assert self.state == "waits"
        self.state = "refused"

    def drop(self) -> None:
        assert self.state == "open"
        self.state = "dropped"


def admit(connections: Connections, origin: Origin, count: int = 1, *, is_idle: bool = False) -> list[Peer]:
    peers = [Peer(is_idle) for _ in range(count)]
    for peer in peers:
        connections.admit(peer, origin)
    return peers


def states(peers: list[Peer]) -> list[str]:
    return [peer.state for peer in peers]


@pytest.mark.parametrize(
    ("kind", "most"), [(TUNNEL, 32), (ADDRESS, 32), (SOCKET, 64)], ids=["tunnel", "address", "socket"]
)
async def test_how_many_may_come_from_where(kind: str, most: int) -> None:
    connections = Connections(Limits(), Metrics(), clock=lambda: 0.0)
    here, there = Origin(kind, "a"), Origin(kind, "b")
    busy = admit(connections, here, most)
    waiting = admit(connections, here, 2)
    assert (states(busy), states(waiting)) == (["open"] * most, ["waits"] * 2)
    if kind != SOCKET:
        assert states(admit(connections, there)) == ["open"]
    busy[3].idle_seconds = 0.1
    connections.pump()
    assert busy[3].state == "open", "its next request may be on its way"
    busy[3].idle_seconds = 0.6
    connections.pump()
    assert (busy[3].state, states(waiting)) == ("dropped", ["waits", "open"]), "the newest is next"
    connections.discard(busy[4])
    assert states(waiting) == ["open", "open"]
    connections.close()


async def test_who_has_waited_takes_the_place_of_any_idle_one() -> None:
    now = 0.0
    connections = Connections(Limits(connections=2), Metrics(), clock=lambda: now)
    busy = admit(connections, Origin(TUNNEL, "web01"), 2)
    busy[0].idle_seconds = 0.1
    waiting = admit(connections, Origin(TUNNEL, "web01"))
    connections.pump()
    assert states(waiting) == ["waits"]
    now = 1.5
    connections.pump()
    assert (states(waiting), busy[0].state) == (["open"], "dropped")
    connections.close()


async def test_so_many_wait_and_so_long() -> None:
    now = 0.0
    connections = Connections(Limits(connections=4), Metrics(), clock=lambda: now)
    here = Origin(TUNNEL, "web01")
    admit(connections, here, 4)
    waiting = admit(connections, here, 13)
    assert states(waiting) == ["refused"] + ["waits"] * 12, "the oldest makes room"
    connections.discard(waiting[1])
    now = 5.5
    connections.pump()
    assert states(waiting) == ["refused", "waits"] + ["refused"] * 11, "the second has left"
    connections.close()


async def test_without_a_token_all_addresses_share_64() -> None:
    connections = Connections(Limits(), Metrics(), clock=lambda: 0.0)
    busy = [admit(connections, Origin(ADDRESS, str(number)))[0] for number in range(64)]
    waiting = admit(connections, Origin(ADDRESS, "new"))
    assert (states(busy), states(waiting)) == (["open"] * 64, ["waits"])
    assert states(admit(connections, Origin(TUNNEL, "web01"))) == ["open"], "a host's tunnel has its own"
    assert connections.identify(busy[0], "one")
    assert states(waiting) == ["open"]
    connections.close()


async def test_a_connection_counts_for_its_last_token() -> None:
    connections = Connections(Limits(connections=1), Metrics(), clock=lambda: 0.0)
    [first] = admit(connections, Origin(TUNNEL, "web01"))
    [second] = admit(connections, Origin(TUNNEL, "web02"))
    assert connections.identify(first, "one")
    assert not connections.identify(second, "one")
    assert connections.identify(first, "two")
    assert connections.identify(second, "one")
    connections.close()


async def test_those_without_a_token_go_first() -> None:
    connections = Connections(Limits(connections=2), Metrics(), clock=lambda: 0.0)
    known, stranger = admit(connections, Origin(TUNNEL, "web01"), 2, is_idle=True)
    assert connections.identify(known, "one")
    assert states(admit(connections, Origin(TUNNEL, "web01"))) == ["open"]
    assert states([known, stranger]) == ["open", "dropped"]
    assert states(admit(connections, Origin(TUNNEL, "web01"))) == ["waits"], "for another without a token"
    connections.close()


def test_a_tunnels_channel_is_counted_for_its_host() -> None:
    transport = TunnelTransport(None, "web01")
    assert protocol._origin(transport) == Origin(TUNNEL, "web01")


# Settings.


def test_the_defaults() -> None:
    limits = chosen({})
    assert (limits.keys, limits.stored_bytes, limits.bytes_per_minute) == (10_000, 64 * MIB, 64 * MIB)
    assert (limits.header_seconds, limits.connections, limits.connections_without_token) == (5.0, 32, 64)


@pytest.mark.parametrize("field", NAMES)
def test_each_limit_is_set_by_option_and_environment(field: str) -> None:
    name = environment_name(field)
    assert getattr(chosen({name: "7"}), field) == 7
    assert getattr(chosen({name: "7"}, {field: 8}), field) == 8
    assert getattr(chosen({name: "7"}, {field: None}), field) == 7
    for wrong in ("0", "-1", "many", "nan", "inf"):
        with pytest.raises(ControllerError, match=f"{name}.*no number above 0"):
            chosen({name: wrong})


def test_the_service_takes_them_from_its_environment(platform: Platform) -> None:
    platform.environment["CRONIUM_API_MAX_KEYS"] = "1"
    platform.serve()
    with platform.client("one") as client:
        assert client.write("PUT", "variables/a", {"value": 1}).status == 200
        assert error(client.write("PUT", "variables/b", {"value": 1})) == (413, "quota_exceeded")
    platform.environment["CRONIUM_API_MAX_KEYS"] = "none"
    assert "CRONIUM_API_MAX_KEYS: 'none' is no number above 0" in platform.api("serve", "--port", "0", status=125)


def test_refusals_are_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    times = iter(range(100))  # asked twice for each line
    connections = Connections(Limits(), Metrics(), clock=lambda: next(times))
    with caplog.at_level("WARNING", "cronium.api"):
        for _ in range(3):
            connections.note_refusal("slow_header", "a")
    assert [record.__dict__["count"] for record in caplog.records] == [1, 1, 1]


async def test_many_refusals_in_a_second_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    connections = Connections(Limits(), Metrics(), clock=lambda: 0.0)
    with caplog.at_level("WARNING", "cronium.api"):
        for _ in range(100):
            connections.note_refusal("slow_header", "a")
        connections.close()
    assert [record.__dict__["count"] for record in caplog.records] == [1, 99]


def test_threads_that_write_at_once_share_one_quota(platform: Platform) -> None:
    platform.serve("--port", "0", "--max-keys", "10")
    token = platform.token("one")
    statuses: list[int] = []

    def write(number: int) -> None:
        with Client(platform.address, token, "one") as client:
            statuses.extend(client.write("PUT", f"variables/{number}-{n}", {"value": 1}).status for n in range(5))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 10 + [413] * 10
