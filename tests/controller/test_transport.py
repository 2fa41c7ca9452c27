"""Which way is tried when, and that each way really carries bytes.

Cloudflare's network cannot be had here, so `cloudflared` is a small program that takes the same arguments and
environment and carries bytes to a local port, as the real one does to a tunnel.
"""

import asyncio
import contextlib
import gc
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cronium_controller.errors import AuthenticationError, ControllerError, HostKeyChangedError, UnreachableError
from cronium_controller.ssh_settings import SSHSettings
from cronium_controller.transport import ATTEMPTS, PAUSES, Carried, Remembered, Route, opened, reach, routes, unhurried
from runner_process import is_running, wait_until


@dataclass(frozen=True)
class Somewhere:
    name: str = "web01"
    address: str = "10.0.0.1"
    tailscale_ip: str | None = "100.64.0.1"
    cloudflare_tunnel: str | None = "web01.example.org"
    cloudflare_service_token_id: str | None = None
    cloudflare_service_token_secret: str | None = None


class Ways:
    """What each way answers; keeps what was tried and how long was waited."""

    def __init__(self, **answers: Exception | None) -> None:
        self.answers = answers
        self.tried: list[str] = []
        self.pauses: list[float] = []

    async def attempt(self, way: Route) -> str:
        self.tried.append(way.transport)
        answer = self.answers[way.transport]
        if answer is not None:
            raise answer
        return way.transport

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def settings(port: int, **more: Any) -> SSHSettings:
    return SSHSettings("127.0.0.1", port, "me", **more)


def down(sentence: str = "no answer") -> UnreachableError:
    return UnreachableError("host.unreachable", sentence, host="web01")


def test_only_what_is_configured_is_a_way_and_tailscale_is_first() -> None:
    assert [way.transport for way in routes(Somewhere())] == ["tailscale", "direct", "cloudflare"]
    assert routes(Somewhere(tailscale_ip=None, cloudflare_tunnel="")) == [Route("direct", "10.0.0.1")]


async def test_the_next_way_is_tried_only_where_no_connection_was_made() -> None:
    ways = Ways(tailscale=down(), direct=None)
    assert await reach(Somewhere(), ways.attempt, Remembered(), pause=ways.pause) == "direct"
    assert (ways.tried, ways.pauses) == (["tailscale", "direct"], [])


@pytest.mark.parametrize(
    "final",
    [HostKeyChangedError("another key", host="web01"), AuthenticationError("host.auth_failed", "no", host="web01")],
)
async def test_a_refused_key_or_login_is_final(final: UnreachableError) -> None:
    ways = Ways(tailscale=final, direct=None)
    with pytest.raises(type(final)):
        await reach(Somewhere(), ways.attempt, Remembered(), pause=ways.pause)
    assert (ways.tried, ways.pauses) == (["tailscale"], [])


@pytest.mark.parametrize(("takes", "attempts"), [(0.0, 3), (4.0, 2), (9.5, 1), (10.0, 1)])
async def test_among_many_hosts_one_that_hangs_is_not_tried_again(takes: float, attempts: int) -> None:
    now = 0.0

    async def attempt(_way: Route) -> str:
        nonlocal now
        now += takes
        raise down()

    async def pause(seconds: float) -> None:
        nonlocal now
        now += seconds

    tried: list[float] = []

    async def noted(way: Route) -> str:
        tried.append(now)
        return await attempt(way)

    somewhere = Somewhere(tailscale_ip=None, cloudflare_tunnel=None)
    with pytest.raises(UnreachableError, match="no answer"):
        await reach(somewhere, noted, Remembered(), retry_seconds=10.0, pause=pause, clock=lambda: now)
    assert len(tried) == attempts
    assert tried[-1] <= 10.0


async def test_the_three_attempts_wrap_the_whole_chain_and_say_what_each_way_said() -> None:
    ways = Ways(tailscale=down("web01: timed out"), direct=down("refused"), cloudflare=down("no such tunnel"))
    with pytest.raises(UnreachableError) as error:
        await reach(Somewhere(), ways.attempt, Remembered(), pause=ways.pause)
    assert ways.tried == ["tailscale", "direct", "cloudflare"] * ATTEMPTS
    assert ways.pauses == list(PAUSES[: ATTEMPTS - 1]) == [1.0, 2.0]
    assert "direct: refused; cloudflare: no such tunnel" in error.value.message


async def test_the_way_that_worked_is_tried_first_for_a_while() -> None:
    now = 0.0
    remembered = Remembered(lambda: now)
    ways = Ways(tailscale=down(), direct=None)
    for _ in range(3):
        await reach(Somewhere(), ways.attempt, remembered, pause=ways.pause)
        now += 250
    assert ways.tried == ["tailscale", "direct", "direct", "direct"]
    ways.tried.clear()
    await reach(Somewhere(), ways.attempt, remembered, pause=ways.pause)
    assert ways.tried == ["tailscale", "direct"], "the preferred way is looked at again after ten minutes"


async def test_a_host_without_any_address_is_told() -> None:
    ways = Ways()
    with pytest.raises(ControllerError, match="no address"):
        await reach(Somewhere(address="", tailscale_ip=None, cloudflare_tunnel=None), ways.attempt, Remembered())


CLOUDFLARED = """#!{python}
import os, socket, sys, threading
assert sys.argv[1:4] == ["access", "ssh", "--hostname"], sys.argv
open({seen!r}, "w").write(f"{{os.getpid()}} {{os.environ.get('TUNNEL_SERVICE_TOKEN_SECRET')}} {{' '.join(sys.argv)}}")
if {words!r}:
    sys.exit({words!r})
there = socket.create_connection(("127.0.0.1", {port}))
def carry():
    while piece := there.recv(65536):
        os.write(1, piece)
threading.Thread(target=carry, daemon=True).start()
while piece := os.read(0, 65536):
    there.sendall(piece)
"""


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as held:
        import threading

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connected, _ = server.accept()
                    held.callback(connected.close)
                    threading.Thread(target=answer, args=(connected,), daemon=True).start()

        def answer(connected: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while piece := connected.recv(65536):
                    connected.sendall(piece)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def install_cloudflared(folder: Path, monkeypatch: pytest.MonkeyPatch, port: int, words: str = "") -> Path:
    seen = folder / "seen"
    program = folder / "cloudflared"
    program.write_text(CLOUDFLARED.format(python=sys.executable, port=port, seen=str(seen), words=words))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return seen


async def exchange(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"hello")
    return await asyncio.wait_for(loop.sock_recv(sock, 100), 10)


async def test_tailscale_is_a_connection_to_its_address(echo: int) -> None:
    async with opened(Route("tailscale", f"127.0.0.1:{echo}"), Somewhere(), settings(22), 5) as sock:
        assert await exchange(sock) == b"hello"
    sock.close()


async def test_the_direct_way_goes_to_what_the_settings_say(echo: int) -> None:
    async with opened(Route("direct", "web01"), Somewhere(), settings(echo), 5) as sock:
        assert await exchange(sock) == b"hello"
    sock.close()


async def test_cloudflare_is_carried_by_cloudflared_and_the_token_is_in_no_argument(
    echo: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = install_cloudflared(tmp_path, monkeypatch, echo)
    host = Somewhere(cloudflare_service_token_id="id", cloudflare_service_token_secret="very-secret")
    async with opened(Route("cloudflare", "web01.example.org"), host, settings(22), 5) as sock:
        assert await exchange(sock) == b"hello"
    pid, secret, arguments = seen.read_text().split(" ", 2)
    assert secret == "very-secret"
    assert "very-secret" not in arguments
    sock.close()
    wait_until(lambda: not is_running(int(pid)), "cloudflared to end with its connection")


def test_an_event_loop_that_ends_ends_cloudflared_and_leaves_nothing_open(
    echo: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = install_cloudflared(tmp_path, monkeypatch, echo)

    async def leave_it_open() -> socket.socket:
        async with opened(Route("cloudflare", "web01.example.org"), Somewhere(), settings(22), 5) as sock:
            assert await exchange(sock) == b"hello"
            return sock

    with asyncio.run(leave_it_open()):
        pid = int(seen.read_text().split()[0])
        wait_until(lambda: not is_running(pid), "cloudflared to end with the event loop, its connection open")
    gc.collect()  # what was left open is warned about when it is forgotten, and a warning fails the test


async def test_what_cloudflared_said_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_cloudflared(tmp_path, monkeypatch, 1, words="\x1b]0;pwned\x07failed to find\r\nAccess application")

    async def speak() -> None:
        async with opened(Route("cloudflare", "web01.example.org"), Somewhere(), settings(22), 5) as sock:
            await asyncio.get_running_loop().sock_recv(sock, 1)
            raise down("the connection was closed")

    with pytest.raises(
        UnreachableError, match=r"cloudflared said: \\x1b\]0;pwned\\x07failed to find Access application$"
    ):
        await speak()


async def test_a_missing_cloudflared_and_a_refusing_port_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match="not installed"):
        async with opened(Route("cloudflare", "web01.example.org"), Somewhere(), settings(22), 5):
            pass
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        way = Route("tailscale", f"127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:\d+: .*refused"):
            async with opened(way, Somewhere(), settings(22), 5):
                pass


CARRY = """import os, socket, sys, threading
there = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def carry():
    while piece := there.recv(65536):
        os.write(1, piece)
    os._exit(0)
threading.Thread(target=carry, daemon=True).start()
while piece := os.read(0, 65536):
    there.sendall(piece)
"""


async def test_a_proxy_command_is_run_by_the_users_shell(
    echo: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "carry.py").write_text(CARRY)
    monkeypatch.setenv("SHELL", "/bin/sh")
    monkeypatch.setenv("THE_PORT", str(echo))
    command = f"{sys.executable} '{tmp_path}/carry.py' $THE_PORT 2>{tmp_path}/said # a comment"
    async with opened(Route("direct", "web01"), Somewhere(), settings(1, proxy_command=command), 5) as sock:
        assert await exchange(sock) == b"hello"
    sock.close()
    await asyncio.wait_for(asyncio.gather(*Carried._watching), 30)


@pytest.mark.parametrize(
    ("command", "told"),
    [("sh -c 'echo the gate is shut >&2; exit 3'", "the gate is shut"), ("/no/such/program", "/no/such/program")],
)
async def test_the_last_words_of_a_proxy_command_are_in_the_error(
    command: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")

    async def lose() -> None:
        async with opened(Route("direct", "web01"), Somewhere(), settings(1, proxy_command=command), 30) as sock:
            assert await asyncio.get_running_loop().sock_recv(sock, 100) == b""
            raise down("connection lost")

    with pytest.raises(UnreachableError, match=f"^web01: ProxyCommand said: .*{told}"):
        await lose()


async def test_other_routes_go_past_a_proxy_command(echo: int) -> None:
    shut = settings(echo, proxy_command="exit 3")
    async with opened(Route("tailscale", f"127.0.0.1:{echo}"), Somewhere(), shut, 5) as sock:
        assert await exchange(sock) == b"hello"
    sock.close()


async def test_one_attempt_over_all_routes_has_a_limit() -> None:
    tried: list[str] = []

    async def hang(way: Route) -> None:
        tried.append(way.transport)
        if way.transport == "tailscale":
            raise down("refused")
        await asyncio.Event().wait()

    ways = Ways()
    with pytest.raises(UnreachableError, match=r"tailscale: refused; direct: no connection within the 0.05 s"):
        await reach(Somewhere(), hang, Remembered(), attempts=2, attempt_seconds=0.05, pause=ways.pause)
    assert (tried, ways.pauses) == (["tailscale", "direct"] * 2, [1.0])


class Person(asyncio.SelectorEventLoop):
    """An event loop on which a person takes long to type."""

    typing = 0.0

    def time(self) -> float:
        return super().time() + self.typing


@pytest.mark.parametrize("is_unhurried", [True, False])
def test_the_time_of_a_prompt_counts_for_no_attempt(is_unhurried: bool) -> None:
    def ask(_path: str) -> str:
        loop.typing += 1000
        return "sesame"

    async def attempt(_way: Route) -> str:
        said = (unhurried(ask) if is_unhurried else ask)("key")
        await asyncio.sleep(0.01)
        return said

    with contextlib.closing(Person()) as loop:
        reached = reach(Somewhere(), attempt, Remembered(), attempts=1, attempt_seconds=100)
        if is_unhurried:
            assert loop.run_until_complete(reached) == "sesame"
        else:
            with pytest.raises(UnreachableError, match="within the 100 s"):
                loop.run_until_complete(reached)
