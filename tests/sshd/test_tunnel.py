"""The tunnel alone, without a runner: what listens on the host leads to the service of the process that opened it.

The clients play what a supervisor does on the host; they run in threads, as the service runs in this event loop.
"""

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest

from api_process import Answer, Client
from cronium_controller.access import Access
from cronium_controller.connections import Connections
from cronium_controller.errors import TunnelError
from cronium_controller.hosts import OPENSSH, SSH, Host, parse_host
from cronium_controller.job import Job
from cronium_controller.live import Live
from cronium_controller.memory import Memory
from cronium_controller.openssh_connection import OpenSSHConnection
from cronium_controller.payloads import load
from cronium_controller.sessions import Connection
from cronium_controller.tunnel import Tunnels
from openssh import OpenSSHServer, sshd_path
from remote_host import resident_memory_growth
from runner_process import PATIENCE, wait_until

CLIENT = Path(__file__).resolve().parents[1] / "api" / "contract_client.mjs"
pytestmark = [
    pytest.mark.sshd,
    pytest.mark.skipif(sshd_path() is None, reason="there is no sshd; install openssh-server"),
]


of_each_kind = pytest.mark.parametrize("kind", [SSH, OPENSSH])


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A short folder, as an agent names it; open to all, so that the socket has to keep others out by itself."""
    with tempfile.TemporaryDirectory(prefix="ct-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


class Way:
    """A connection to a server, and a live service behind it."""

    def __init__(self, connection: Connection, live: Live, sockets: object, folder: Path, warnings: list[str]) -> None:
        self.connection = connection
        self.warnings = warnings
        self.live = live
        self.script = folder / "script.sh"
        self.script.write_text("#!/bin/sh\n")
        self.exposing = folder / "exposing"
        self.exposing.mkdir(exist_ok=True)
        (self.exposing / "manifest.yaml").write_text("version: v1\nentrypoint: s.sh\nexpose_api: true\n")
        (self.exposing / "s.sh").write_text("true\n")
        agent = SimpleNamespace(
            agent={"knows": ["api", "scriptEndpoint"], "sockets": sockets}, host_name=connection.host.name
        )
        self.reached: Any = SimpleNamespace(connection=connection, agent=agent)

    async def script_endpoint(self, job: Path) -> str | None:
        """What a script of this job is told, beside the endpoint of its runner."""
        endpoint = await self.live.endpoint(self.reached)
        return await self.live.script_endpoint(self.reached, load(job), endpoint)

    async def client(self, execution: str, **job: Any) -> Client:
        """A client on the host, with the token of an execution."""
        endpoint = await self.live.endpoint(self.reached)
        admitted = await self.live.admit(execution, Job(load(self.script), **job), self.connection.host, endpoint)
        return Client(admitted.endpoint, admitted.token, execution)

    def audit(self, execution: str) -> list[dict[str, Any]]:
        """What the audit log says of an execution."""
        assert self.live._service is not None
        return [entry.to_json() for entry in self.live._service.store.audit(100_000, execution)]


@contextlib.asynccontextmanager
async def way(
    folder: Path,
    sockets: object,
    *,
    allow_tcp_tunnel: bool = False,
    options: list[str] | None = None,
    kind: str = SSH,
    environment: dict[str, str] | None = None,
) -> AsyncIterator[Way]:
    """Through a server with these options; `environment` has limits of the runtime API."""
    with OpenSSHServer(folder / "sshd", options=options) as server:
        host = replace(parse_host(server.target, identity=str(server.identity)), connection=kind)
        connections = Connections(Access(known_hosts=str(server.known_hosts)), Memory())
        connection = await connections.open(host)
        warnings: list[str] = []
        limits = environment or {}
        live = Live(folder / "controller", allow_tcp_tunnel=allow_tcp_tunnel, environment=limits, warn=warnings.append)
        try:
            yield Way(connection, live, sockets, folder, warnings)
        finally:
            await connection.close()
            await live.close()


async def ask(client: Client, call: Callable[..., Answer], *words: Any) -> tuple[int, Any]:
    answer = await asyncio.to_thread(call, *words)
    return answer.status, answer.json()


@of_each_kind
async def test_reads_and_writes_arrive_and_the_log_names_the_host(tmp_path: Path, sockets: Path, kind: str) -> None:
    async with way(tmp_path, str(sockets), kind=kind) as through:
        with await through.client("one", input={"n": 1}, variables={"HANDED": "over"}) as client:
            assert await ask(client, client.get, "input") == (200, {"success": True, "data": {"n": 1}})
            told = await ask(client, client.get, "variables/HANDED")
            assert told == (200, {"success": True, "data": {"key": "HANDED", "value": "over"}})
            assert (await ask(client, client.write, "PUT", "variables/RATE", {"value": 2}, 1))[0] == 200
        written = through.audit("one")
        name = through.connection.host.name
        assert [entry["action"] for entry in written] == ["execution.registered", "token.issued", "variable.set"]
        assert [(entry["host"], entry["peer"]) for entry in written] == [(name, None), (None, None), (name, name)]


async def test_one_tunnel_serves_all_and_each_sees_its_own_execution_only(tmp_path: Path, sockets: Path) -> None:
    async with way(tmp_path, str(sockets)) as through:
        clients = await asyncio.gather(*[through.client(f"e{number}", input=number) for number in range(5)])
        assert len(os.listdir(sockets)) == 1
        [made] = sockets.iterdir()
        assert len(made.name) == len("01234567.api")
        for number, client in enumerate(clients):
            with client:
                assert await ask(client, client.get, "input") == (200, {"success": True, "data": number})
                for method, what in (("GET", "input"), ("GET", "variables/x"), ("PUT", "variables/x")):
                    body = None if method == "GET" else '{"value": 1}'
                    other = f"/executions/e{(number + 1) % 5}/{what}"
                    assert (await ask(client, client.send, method, other, body))[0] == 403


@of_each_kind
async def test_hundred_parallel_writers_lose_nothing(tmp_path: Path, sockets: Path, kind: str) -> None:
    async with way(tmp_path, str(sockets), kind=kind) as through:
        with await through.client("many") as first:
            endpoint = await through.live.endpoint(through.reached)

            def write(number: int) -> int:
                with Client(endpoint, first.token, "many") as client:
                    return client.write("PUT", f"variables/k{number}", {"value": number}).status

            assert await asyncio.gather(*[asyncio.to_thread(write, number) for number in range(100)]) == [200] * 100
            for number in range(100):
                _, told = await ask(first, first.get, f"variables/k{number}")
                assert told["data"]["value"] == number
        assert [entry["action"] for entry in through.audit("many")].count("variable.set") == 100


_CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


async def test_another_local_user_cannot_connect(tmp_path: Path, sockets: Path, as_root: None) -> None:
    async with way(tmp_path, str(sockets)) as through:
        endpoint = await through.live.endpoint(through.reached)
        nobody = pwd.getpwnam("nobody")

        def attempt(**who: Any) -> "subprocess.CompletedProcess[str]":
            words = ["python3", "-c", _CONNECT, endpoint.removeprefix("unix://")]
            environment = {"PATH": "/usr/bin:/bin"}
            return subprocess.run(words, cwd="/", env=environment, capture_output=True, text=True, check=False, **who)

        refused = await asyncio.to_thread(attempt, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[])
        assert "Permission denied" in refused.stderr
        assert (await asyncio.to_thread(attempt)).returncode == 0


@pytest.mark.parametrize("options", [["AllowStreamLocalForwarding no"], ["DisableForwarding yes"]])
async def test_a_server_that_forwards_no_socket(tmp_path: Path, sockets: Path, options: list[str]) -> None:
    async with way(tmp_path, str(sockets), options=options) as through:
        with pytest.raises(TunnelError) as error:
            await through.live.endpoint(through.reached)
        assert error.value.code == "api.tunnel_refused"
        assert "--allow-tcp-tunnel" in error.value.message
        assert list(sockets.iterdir()) == []


async def test_another_account_cannot_use_the_socket(tmp_path: Path, sockets: Path) -> None:
    async with way(tmp_path, str(sockets)) as through:
        with pytest.raises(TunnelError) as error:
            await through.live.endpoint(through.reached, is_other_account=True)
        assert error.value.code == "api.tunnel_account"
    async with way(tmp_path, str(sockets), allow_tcp_tunnel=True) as through:
        endpoint = await through.live.endpoint(through.reached, is_other_account=True)
        assert endpoint.startswith("http://127.0.0.1:")
        assert (await through.live.endpoint(through.reached)).startswith("unix://")  # those who can still have it


@of_each_kind
async def test_a_script_that_is_to_see_the_api_gets_a_port(tmp_path: Path, sockets: Path, kind: str) -> None:
    async with way(tmp_path, str(sockets), kind=kind, allow_tcp_tunnel=True) as through:
        assert await through.script_endpoint(through.script) is None
        assert through.live._tunnels is not None
        assert not through.live._tunnels._by_port, "no port without need"
        port = await through.script_endpoint(through.exposing)
        assert port is not None
        assert port.startswith("http://127.0.0.1:")
        assert await through.script_endpoint(through.exposing) == port
        assert ["every account there can connect to it" in each for each in through.warnings] == [True]
        with await through.client("one", input=1) as client, Client(port, client.token, "one") as script:
            assert (await through.live.endpoint(through.reached)).startswith("unix://"), "the runner's stays the socket"
            assert (await ask(script, script.get, "input"))[1]["data"] == 1
            script.token = None
            assert (await ask(script, script.get, "input"))[0] == 401
    async with way(tmp_path, str(sockets), kind=kind) as through:
        assert (await through.script_endpoint(through.exposing), through.warnings) == (None, [])


@pytest.mark.parametrize(
    ("options", "knows", "said"),
    [
        (["PermitListen none"], ["api", "scriptEndpoint"], "sshd there forwards no port"),
        ([], ["api"], "the runner there is older"),
    ],
)
async def test_where_a_script_can_have_no_port(
    tmp_path: Path, sockets: Path, options: list[str], knows: list[str], said: str
) -> None:
    async with way(tmp_path, str(sockets), allow_tcp_tunnel=True, options=options) as through:
        through.reached.agent.agent["knows"] = knows
        assert await through.script_endpoint(through.exposing) is None
        [warning] = through.warnings
        assert "the script finds the runtime API at a socket, not at a port" in warning
        assert said in warning


async def test_a_port_for_all_is_warned_of_too(tmp_path: Path, sockets: Path) -> None:
    options = ["AllowStreamLocalForwarding no"]
    async with way(tmp_path, str(sockets), allow_tcp_tunnel=True, options=options) as through:
        assert await through.script_endpoint(through.exposing) is None, "it is the runner's"
        assert len(through.warnings) == 1


@pytest.mark.parametrize("folder", [None, "relative", "/" + "x" * 100])
async def test_a_folder_that_cannot_be_used(tmp_path: Path, folder: str | None) -> None:
    async with way(tmp_path, folder) as through:
        with pytest.raises(TunnelError, match="folder for the tunnel's socket"):
            await through.live.endpoint(through.reached)


async def test_an_older_runner(tmp_path: Path, sockets: Path) -> None:
    async with way(tmp_path, str(sockets)) as through:
        through.reached.agent.agent = {"knows": ["gc"]}
        with pytest.raises(TunnelError, match="no API mode") as error:
            await through.live.endpoint(through.reached)
        assert error.value.code == "channel.version"


@of_each_kind
async def test_where_no_port_is_forwarded_either(tmp_path: Path, sockets: Path, kind: str) -> None:
    async with way(
        tmp_path, str(sockets), kind=kind, allow_tcp_tunnel=True, options=["DisableForwarding yes"]
    ) as through:
        with pytest.raises(TunnelError, match="neither a socket nor a port") as error:
            await through.live.endpoint(through.reached)
        assert error.value.code == "api.tunnel_refused"


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed, so its client was not tried")
async def test_a_client_that_knows_only_the_contract_by_a_port(tmp_path: Path, sockets: Path) -> None:
    """A port is all that Node's fetch can use, so here sockets are refused and a port is allowed."""
    options = ["AllowStreamLocalForwarding no"]
    patient = {"CRONIUM_API_HEADER_TIMEOUT": "60"}  # its hundred requests at once wait for each other
    async with way(tmp_path, str(sockets), allow_tcp_tunnel=True, options=options, environment=patient) as through:
        client = await through.client("exec_one", input={"n": 1}, event={"id": "7"})
        endpoint = await through.live.endpoint(through.reached)

        def run() -> "subprocess.CompletedProcess[str]":
            words = ["node", str(CLIENT), endpoint, "exec_one", "exec_other"]
            return subprocess.run(words, input=client.token, capture_output=True, text=True, check=False, timeout=60)

        done = await asyncio.to_thread(run)
        assert (done.returncode, done.stderr) == (0, "")
        seen = json.loads(done.stdout)
        assert seen["input"]["body"]["data"] == {"n": 1}
        assert seen["context"]["body"]["data"]["eventId"] == "7"
        assert (seen["foreign"]["status"], seen["parallel"], seen["values"]) == (403, [200] * 100, list(range(100)))


async def test_this_machine_needs_no_tunnel(tmp_path: Path, sockets: Path) -> None:
    live = Live(tmp_path / "controller", allow_tcp_tunnel=True, environment={}, warn=lambda _: None)
    local = SimpleNamespace(host=Host("localhost", "localhost", is_local=True))
    through = Way(local, live, str(sockets), tmp_path, [])  # type: ignore[arg-type]
    first, second = await asyncio.gather(through.client("one", input=1), through.client("two", input=2))
    [made] = sockets.iterdir()
    assert made.stat().st_mode & 0o777 == 0o600
    for client, value in ((first, 1), (second, 2)):
        with client:
            assert (await ask(client, client.get, "input"))[1]["data"] == value
            port = await through.script_endpoint(through.exposing)
            assert port is not None
            with Client(port, client.token, client.execution) as script:
                assert (await ask(script, script.get, "input"))[1]["data"] == value
    await live.close()
    assert list(sockets.iterdir()) == []


async def test_what_is_no_http_and_who_leaves_in_the_middle_end_their_own_channel_only(
    tmp_path: Path, sockets: Path
) -> None:
    async with way(tmp_path, str(sockets)) as through:
        with await through.client("one", input=1) as client:
            path = (await through.live.endpoint(through.reached)).removeprefix("unix://")

            def say(words: bytes, *, is_answered: bool) -> bytes:
                with socket.socket(socket.AF_UNIX) as rude:
                    rude.settimeout(20)
                    rude.connect(path)
                    rude.sendall(words)
                    return rude.recv(100) if is_answered else b""

            assert b" 400 " in await asyncio.to_thread(say, b"\x00\x01 nonsense\r\n\r\n", is_answered=True)
            head = b"POST /executions/one/output HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
            await asyncio.to_thread(say, head, is_answered=False)
            assert (await ask(client, client.get, "input"))[0] == 200


@of_each_kind
async def test_megabytes_both_ways_also_for_a_slow_reader(tmp_path: Path, sockets: Path, kind: str) -> None:
    async with way(tmp_path, str(sockets), kind=kind) as through:
        text = "x" * 4_000_000
        with await through.client("large", input=text) as client:
            assert (await ask(client, client.write, "POST", "output", {"data": text}))[0] == 200
            path = (await through.live.endpoint(through.reached)).removeprefix("unix://")
            request = f"GET /executions/large/input HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n\r\n"

            def begin() -> socket.socket:
                slow = socket.socket(socket.AF_UNIX)
                slow.settimeout(20)
                slow.connect(path)
                slow.sendall(request.encode())
                return slow

            def rest(slow: socket.socket) -> int:
                count = 0
                with slow:
                    while count < len(text):
                        count += len(slow.recv(1 << 16))
                return count

            slow = await asyncio.to_thread(begin)
            assert (await ask(client, client.get, "input"))[1]["data"] == text  # nobody waits for the slow one
            assert await asyncio.to_thread(rest, slow) >= len(text)


class Halting(asyncio.Protocol):
    """Takes one piece and then no more until it is told to; or answers without end, as long as it may."""

    def __init__(self, sends: int = 0) -> None:
        self.received = 0
        self.sent = 0
        self.pauses = 0
        self._left = sends
        self._may_write = asyncio.Event()
        self._may_write.set()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._sending = asyncio.ensure_future(self._send())

    async def _send(self) -> None:
        while self.sent < self._left:
            await self._may_write.wait()
            self.transport.write(bytes(PIECE))
            self.sent += PIECE
            await asyncio.sleep(0)

    def data_received(self, data: bytes) -> None:
        if not self.received:
            self.transport.pause_reading()
        self.received += len(data)

    def pause_writing(self) -> None:
        self.pauses += 1
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()


PIECE = 1 << 16
WHOLE = 32 << 20
BUFFERED = 8 << 20
"""What SSH's windows (2 MiB) and the sockets on the way may hold; more of it would be held in our memory."""


@contextlib.asynccontextmanager
async def halting(folder: Path, sockets: Path, sends: int = 0) -> AsyncIterator[tuple[Halting, socket.socket]]:
    """A protocol at this end of a tunnel, and a connected socket at the host's."""
    async with way(folder, str(sockets)) as through:
        protocol = Halting(sends)
        endpoint = await Tunnels().endpoint(through.connection, str(sockets), lambda: protocol)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            await asyncio.to_thread(client.connect, endpoint.removeprefix("unix://"))
            yield protocol, client


async def stands_still(progress: Callable[[], int]) -> int:
    """What has come through once nothing more does."""
    last = -1
    while last != progress() or not last:
        last = progress()
        await asyncio.sleep(0.5)
    return last


async def test_a_service_that_reads_no_more_holds_up_its_client_and_takes_no_memory(
    tmp_path: Path, sockets: Path
) -> None:
    async with halting(tmp_path, sockets) as (protocol, client):
        sent = 0

        def send() -> None:
            nonlocal sent
            while sent < WHOLE:
                sent += client.send(bytes(PIECE))
            client.shutdown(socket.SHUT_WR)

        sending = asyncio.ensure_future(asyncio.to_thread(send))
        assert await stands_still(lambda: sent) < BUFFERED
        assert protocol.received <= PIECE
        protocol.transport.resume_reading()
        await sending
        await asyncio.to_thread(wait_until, lambda: protocol.received == WHOLE, "the rest")


async def test_a_client_that_reads_no_more_holds_up_the_service(tmp_path: Path, sockets: Path) -> None:
    async with halting(tmp_path, sockets, WHOLE) as (protocol, client):
        assert await stands_still(lambda: protocol.sent) < BUFFERED
        assert protocol.pauses == 1

        def read() -> int:
            count = 0
            while count < WHOLE:
                count += len(client.recv(1 << 20))
            return count

        assert await asyncio.to_thread(read) == WHOLE


async def test_requests_whose_answers_nobody_reads_are_held_up(tmp_path: Path, sockets: Path) -> None:
    """A job that pipelines requests could fill the controller's memory: 1.4 GB in 12 s before this was bounded."""
    async with way(tmp_path, str(sockets)) as through:
        client = await through.client("one", input="x" * 1000)
        head = f"GET /executions/one/input HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.token}\r\n\r\n"
        path = (await through.live.endpoint(through.reached)).removeprefix("unix://")
        sent = 0

        def flood(rude: socket.socket) -> None:
            nonlocal sent
            block = head.encode() * 200
            with contextlib.suppress(OSError):
                while sent < WHOLE:
                    sent += rude.send(block)

        with socket.socket(socket.AF_UNIX) as rude, resident_memory_growth() as grown:
            rude.settimeout(PATIENCE)
            await asyncio.to_thread(rude.connect, path)
            flooding = asyncio.ensure_future(asyncio.to_thread(flood, rude))
            assert await stands_still(lambda: sent) < BUFFERED
            rude.shutdown(socket.SHUT_RDWR)
            await flooding
        assert grown[0] < 40 * 2**20
        with client:
            assert (await ask(client, client.get, "input"))[0] == 200


async def test_tokens_that_open_nothing_through_the_tunnel(tmp_path: Path, sockets: Path) -> None:
    async with way(tmp_path, str(sockets)) as through:
        with await through.client("one", input=1) as client, await through.client("two") as two:
            path = (await through.live.endpoint(through.reached)).removeprefix("unix://")

            def huge() -> bytes:
                head = b"GET /executions/one/input HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                with socket.socket(socket.AF_UNIX) as rude:
                    rude.settimeout(20)
                    rude.connect(path)
                    rude.sendall(head + b"a" * 5_000_000 + b"\r\n\r\n")
                    return rude.recv(100)

            assert (await asyncio.to_thread(huge)).startswith(b"HTTP/1.1 431 ")
            claims = jwt.decode(client.token or "", options={"verify_signature": False})
            for token, status in {
                jwt.encode(claims, "", "none"): 401,
                jwt.encode(claims, b"w" * 32, "HS256"): 401,
                two.token or "": 403,
                f"{client.token}x": 401,
            }.items():
                with Client(f"unix://{path}", token, "one") as attacker:
                    assert (await ask(attacker, attacker.get, "input"))[0] == status
                    assert (await ask(attacker, attacker.write, "PUT", "variables/..%2F..", {"value": 1}))[0] == status
            assert (await ask(client, client.get, "variables/..%2F..%2Fetc"))[0] == 404
            assert (await ask(client, client.send, "GET", "/executions/two/../one/input"))[0] == 404
            assert (await ask(client, client.get, "input"))[0] == 200
        assert [entry["action"] for entry in through.audit("one")] == ["execution.registered", "token.issued"]


@of_each_kind
async def test_the_tunnel_ends_with_its_connection_and_the_token_with_its_execution(
    tmp_path: Path, sockets: Path, kind: str
) -> None:
    async with way(tmp_path, str(sockets), kind=kind) as through:
        with await through.client("one") as client:
            assert (await ask(client, client.get, "input"))[0] == 200
            from cronium_runner.wire.results import Outcome, Result

            await through.live.end(Result("one", Outcome.SUCCEEDED, undelivered=1))
            assert (await ask(client, client.get, "input"))[0] == 200
            await through.live.end(Result("one", Outcome.SUCCEEDED))
            assert (await ask(client, client.get, "input"))[0] == 401
        path = (await through.live.endpoint(through.reached)).removeprefix("unix://")
        await through.connection.close()

        def is_refused() -> bool:
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(path) != 0

        await asyncio.to_thread(wait_until, is_refused, "the tunnel to end")


@pytest.mark.parametrize("ending", ["abort", "close"])
async def test_what_a_master_has_connected_ends_with_the_connection(tmp_path: Path, sockets: Path, ending: str) -> None:
    """Also where the other side does not end it, as a master that is slow to die."""
    async with way(tmp_path, str(sockets), kind=OPENSSH) as through:
        await through.live.endpoint(through.reached)
        assert isinstance(through.connection, OpenSSHConnection)
        [path] = Path(through.connection.master.path).parent.glob("*.api")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readline()
        ended = getattr(through.connection, ending)()
        if ended is not None:
            await ended
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
        writer.close()
