"""Which address of a name is connected to: real sockets, one that answers, one that refuses, one that drops packets."""

import asyncio
import logging
import re
import socket
from collections.abc import Iterator

import pytest

from cronium_controller import addresses
from cronium_controller.addresses import Place, connected, in_turn
from openssh import free_port

INET, INET6 = socket.AF_INET, socket.AF_INET6


def place(host: str, port: int = 22) -> Place:
    family = INET6 if ":" in host else INET
    return Place(family, socket.SOCK_STREAM, 0, (host, port, 0, 0) if family == INET6 else (host, port))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["1.1.1.1", "1.1.1.2"], ["1.1.1.1", "1.1.1.2"]),
        (["::1", "::2", "::3", "1.1.1.1", "1.1.1.2"], ["::1", "1.1.1.1", "::2", "1.1.1.2", "::3"]),
        (["1.1.1.1", "1.1.1.2", "::1"], ["1.1.1.1", "::1", "1.1.1.2"]),
        (["1.1.1.1", "1.1.1.1", "::1"], ["1.1.1.1", "::1"]),
        ([], []),
    ],
)
def test_families_are_tried_in_turn(found: list[str], expected: list[str]) -> None:
    assert [each.sockaddr[0] for each in in_turn([place(host) for host in found])] == expected


class Network:
    """A name with the addresses that a test gives it."""

    def __init__(self) -> None:
        self.open: list[socket.socket] = []
        self.places: list[Place] = []

    def listening(self) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        self.open.append(server)
        return int(server.getsockname()[1])

    def silent(self) -> int:
        """A port whose queue is full: the kernel drops what asks for a connection."""
        server = socket.socket()
        self.open.append(server)
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = socket.socket()
            self.open.append(client)
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        return int(server.getsockname()[1])

    def has(self, *ports: int) -> None:
        self.places = [place("127.0.0.1", port) for port in ports]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    made = Network()

    async def places(_address: str, _port: int, _family: int) -> list[Place]:
        return made.places

    monkeypatch.setattr(addresses, "_places", places)
    yield made
    for each in made.open:
        each.close()


async def port_of(connecting: "asyncio.Future[socket.socket]") -> int:
    sock = await asyncio.wait_for(connecting, 30)
    with sock:
        return int(sock.getpeername()[1])


async def test_an_address_that_drops_packets_hides_no_other(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    silent, refusing, listening = network.silent(), free_port(), network.listening()
    network.has(silent, refusing, listening)
    caplog.set_level(logging.INFO, "cronium.connection")
    assert await port_of(asyncio.ensure_future(connected("web", "web.example", 22))) == listening
    told = [re.sub(" [0-9.]+ s$", "", line) for line in caplog.messages]
    assert told == [
        f"web: 127.0.0.1 port {refusing}: Connection refused after",
        f"web: 127.0.0.1 port {listening}: connected in",
        f"web: 127.0.0.1 port {silent}: given up after",
    ]


async def test_one_that_refuses_is_left_at_once(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "DELAY_SECONDS", 3600.0)
    listening = network.listening()
    network.has(free_port(), free_port(), listening)
    assert await port_of(asyncio.ensure_future(connected("web", "web.example", 22))) == listening


async def test_when_all_refuse_each_is_named(network: Network) -> None:
    ports = [free_port(), free_port()]
    network.has(*ports)
    with pytest.raises(OSError) as raised:
        await connected("web", "web.example", 22)
    told = "; ".join(f"127.0.0.1 port {port}: Connection refused" for port in ports)
    assert str(raised.value) == told


async def test_a_cancelled_race_leaves_nothing_open(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "DELAY_SECONDS", 0.01)
    network.has(network.silent(), network.silent())
    racing = asyncio.ensure_future(connected("web", "web.example", 22))
    await asyncio.sleep(0.05)
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_address_here_and_a_family_are_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with await connected("web", "localhost", port, family="inet", bind_address="127.0.0.2") as sock:
            assert sock.getsockname()[0] == "127.0.0.2"
        with pytest.raises(OSError):
            await connected("web", "127.0.0.1", port, family="inet6")
