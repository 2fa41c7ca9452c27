"""What the source documents promise of an SSH client, row by row: `PROOFS` names the test of each.

Seed 002 is an executor with its edge cases and test scenarios; seed 000 lists seven features; seed 001 is a reference
whose every example is run here as it stands, but for imports and names of hosts and files. What `test_client` has not
got is below.
"""

import ast
import asyncio
import builtins
import dataclasses
import functools
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

import cronium_controller
from controller.test_client import Machine, home, leftovers, machine, serve, server, settings  # noqa: F401 - fixtures
from cronium_controller import (
    ConnectionError,
    SSHClient,
    SSHConfig,
    SSHExecutor,
    SSHHealth,
    close_all_clients,
    connections,
    transport,
)
from cronium_controller.access import Access
from cronium_controller.executor import COMMAND_SECONDS, IDLE_SECONDS
from cronium_controller.hosts import Host
from cronium_controller.transport import routes
from openssh import OpenSSHServer
from runner_process import wait_until

FOLDER = Path(__file__).parent

PROOFS = {
    "002, edge cases": {
        "Connection timeout": "test_seeds.py::test_a_connection_that_times_out_is_tried_three_times",
        "Authentication failure": "test_client.py::test_a_refused_login_is_one_attempt_and_a_clear_error",
        "Command timeout (30s)": "test_client.py::test_a_command_that_takes_too_long_is_a_timeout_with_partial_output",
        "Connection dropped mid-command": (
            "test_client.py::test_a_dropped_command_is_run_once_more_where_that_was_asked_for"
        ),
        "Invalid hostname": "test_seeds.py::test_an_invalid_hostname_is_in_the_message",
        "Pool connection expired": "test_client.py::test_an_expired_connection_is_replaced",
        "SSH key not found": "test_client.py::test_a_key_that_is_not_there_is_a_configuration_error",
        "Machine has no tailscale_hostname": (
            "test_client.py::test_an_empty_command_and_a_machine_without_a_name_are_value_errors"
        ),
        "Empty command string": "test_client.py::test_an_empty_command_and_a_machine_without_a_name_are_value_errors",
        "Network unreachable": "test_seeds.py::test_an_unreachable_network_is_told_with_its_details",
    },
    "002, test scenarios": {
        "Valid command returns success with stdout": (
            "test_client.py::test_a_valid_command_gives_status_output_and_duration"
        ),
        "Invalid command returns exit code 1 with stderr": (
            "test_seeds.py::test_an_invalid_command_has_status_and_stderr"
        ),
        "Connection timeout triggers retry logic (3 attempts)": (
            "test_seeds.py::test_a_connection_that_times_out_is_tried_three_times"
        ),
        "Command timeout (30s) returns timeout error": "test_seeds.py::test_the_defaults_are_those_of_the_document",
        "Authentication failure returns clear error message": (
            "test_client.py::test_a_refused_login_is_one_attempt_and_a_clear_error"
        ),
        "Connection pooling reuses existing connection within 5 minutes": (
            "test_client.py::test_commands_within_five_minutes_share_a_connection"
        ),
        "Pool expiry (>5 min) creates new connection": "test_client.py::test_an_expired_connection_is_replaced",
        "Multiple concurrent commands to same server work": (
            "test_client.py::test_commands_within_five_minutes_share_a_connection"
        ),
        "SSH key not found raises ConfigurationError": (
            "test_client.py::test_a_key_that_is_not_there_is_a_configuration_error"
        ),
        "Machine without tailscale_hostname raises ValueError": (
            "test_client.py::test_an_empty_command_and_a_machine_without_a_name_are_value_errors"
        ),
        "Empty command raises ValueError": (
            "test_client.py::test_an_empty_command_and_a_machine_without_a_name_are_value_errors"
        ),
        "Exponential backoff timing verified (1s, 2s, 4s)": (
            "test_seeds.py::test_the_pauses_between_attempts_are_one_two_and_four_seconds"
        ),
        "Execution logging (AC4)": "test_seeds.py::test_every_execution_is_logged",
    },
    "000": {
        "SSHHealth": "test_health.py::test_three_failures_in_a_row_are_unhealthy_and_one_success_mends",
        "Cloudflare config": "test_seeds.py::test_the_cloudflare_fields",
        "from_host_config()": "test_seeds.py::test_from_host_config_takes_every_field",
        "Cloudflare proxy command": (
            "test_transport.py::test_cloudflare_is_carried_by_cloudflared_and_the_token_is_in_no_argument"
        ),
        "Health tracking": "test_client.py::test_health_counts_every_path",
        "run_background() method exists and executes": (
            "test_client.py::test_a_compound_background_command_returns_at_once_and_logs_as_a_whole"
        ),
        "get_process_memory() works": "test_seeds.py::test_the_memory_of_a_process",
        "All exports available": "test_seeds.py::test_exports_fields_and_methods",
    },
    "001": {"every code example": "test_seeds.py::test_every_example_of_the_reference"},
}


@pytest.mark.parametrize("seed", PROOFS)
def test_each_row_has_its_test(seed: str) -> None:
    for row, proof in PROOFS[seed].items():
        file, _, name = proof.partition("::")
        assert re.search(rf"def {name}\(", (FOLDER / file).read_text()), f"{row}: {proof}"


# -- seed 002 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, noted and not made."""
    noted: list[float] = []

    async def note(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(connections, "reach", functools.partial(transport.reach, pause=note))
    return noted


@pytest.fixture
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """An address where connections are taken and nothing is ever said; those that were taken."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        taken: list[socket.socket] = []
        yield f"127.0.0.1:{listening.getsockname()[1]}", taken
        while True:
            try:
                taken.append(listening.accept()[0])
            except BlockingIOError:
                break
        for one in taken:
            one.close()
        assert len(taken) == 3, "attempts"


async def test_a_connection_that_times_out_is_tried_three_times(
    home: Path,  # noqa: F811
    silent: tuple[str, list[socket.socket]],
    pauses: list[float],
) -> None:
    address, _ = silent
    async with SSHExecutor() as executor:
        with pytest.raises(ConnectionError, match=r"in time|[Tt]imeout|expired") as raised:
            await executor.execute(SSHConfig(address, connect_timeout=0.3), "true")
    assert isinstance(raised.value, builtins.ConnectionError)
    assert address.partition(":")[0] in raised.value.message
    assert pauses == [1.0, 2.0]


async def test_the_pauses_between_attempts_are_one_two_and_four_seconds(
    home: Path,  # noqa: F811
    pauses: list[float],
) -> None:
    access = Access(known_hosts=str(home / "known_hosts"), attempts=4)
    async with SSHExecutor(access=access) as executor:
        with pytest.raises(ConnectionError, match="Connection refused"):
            await executor.execute("127.0.0.1:1", "true")
    assert pauses == [1.0, 2.0, 4.0]


async def test_an_invalid_hostname_is_in_the_message(home: Path, pauses: list[float]) -> None:  # noqa: F811
    async with SSHExecutor() as executor:
        with pytest.raises(ConnectionError, match=r"no-such-host\.invalid"):
            await executor.execute(Machine("no-such-host.invalid"), "true")


async def test_an_unreachable_network_is_told_with_its_details(home: Path, pauses: list[float]) -> None:  # noqa: F811
    """TCP has no way to a multicast address on any Linux: ENETUNREACH without a packet."""
    async with SSHExecutor() as executor:
        with pytest.raises(ConnectionError, match=r"224\.0\.0\.1: Network is unreachable"):
            await executor.execute(Machine("224.0.0.1"), "true")
    assert pauses == [1.0, 2.0]


async def test_an_invalid_command_has_status_and_stderr(server: OpenSSHServer) -> None:  # noqa: F811
    async with SSHExecutor(key_path=str(server.identity)) as executor:
        for command, status in (("grep x /nope/file", 2), ("cat /nope", 1), ("no-such-command-here", 127)):
            result = await executor.execute(machine(server), command)
            assert (result.exit_code, result.stdout, result.success) == (status, "", False)
            assert result.stderr


async def test_the_defaults_are_those_of_the_document(server: OpenSSHServer) -> None:  # noqa: F811
    assert (COMMAND_SECONDS, IDLE_SECONDS) == (30, 300)
    async with SSHExecutor(key_path=str(server.identity)) as executor:
        executor._timeout = 1  # what stands for the 30 s, so that nobody has to wait for them
        with pytest.raises(TimeoutError) as raised:
            await executor.execute(machine(server), "echo partial; sleep 8711")
    assert raised.value.stdout == "partial\n"  # type: ignore[attr-defined]
    assert not leftovers(server, "8711")


async def test_every_execution_is_logged(server: OpenSSHServer, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    caplog.set_level(logging.INFO, "cronium")
    async with SSHExecutor(key_path=str(server.identity)) as executor:
        await executor.execute(machine(server), "exit 3")
    [record] = [record for record in caplog.records if record.message.startswith("command_executed ")]
    told = record.__dict__
    assert (told["command"], told["host"], told["exit_status"]) == ("exit 3", machine(server).tailscale_hostname, 3)
    assert told["duration"] > 0
    assert told["created"] > 0, "the time"


# -- seed 000 ----------------------------------------------------------------------------------------------------------


def test_the_cloudflare_fields() -> None:
    config = SSHConfig("internal.example.com")
    assert not config.use_cloudflare
    config = SSHConfig(
        host="internal.example.com",
        cloudflare_tunnel="ssh.example.com",
        cloudflare_service_token_id="token",
        cloudflare_service_token_secret="secret",
    )
    assert config.use_cloudflare
    assert "secret" not in repr(config)
    config.tailscale_ip = "100.64.0.1"
    assert [way.transport for way in routes(config.to_host())] == ["tailscale", "direct", "cloudflare"]


def test_from_host_config_takes_every_field() -> None:
    host_config = SimpleNamespace(
        name="node", ssh_host="192.0.2.1", ssh_port=2222, ssh_user="ubuntu", ssh_key="~/.ssh/id",
        tailscale_ip="100.64.0.1",
        cloudflare_tunnel="ssh.example.com", cloudflare_service_token_id="id", cloudflare_service_token_secret="secret",
        work_dir="~/work", venv_activate="source ~/venv/bin/activate", gpus=8,
    )  # fmt: skip
    config = SSHConfig.from_host_config(host_config)
    assert (config.host, config.port, config.user, config.key_path) == ("192.0.2.1", 2222, "ubuntu", "~/.ssh/id")
    assert (config.tailscale_ip, config.cloudflare_tunnel) == ("100.64.0.1", "ssh.example.com")
    assert (config.cloudflare_service_token_id, config.cloudflare_service_token_secret) == ("id", "secret")
    assert (config.work_dir, config.venv_activate) == ("~/work", "source ~/venv/bin/activate")
    assert SSHConfig.from_host_config(vars(host_config)) == config
    assert isinstance(config.to_host(), Host)


async def test_the_memory_of_a_process(server: OpenSSHServer) -> None:  # noqa: F811
    async with SSHClient(settings(server)) as client:
        mine = await client.get_process_memory(os.getpid())
        assert mine is not None
        resident = int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) // 1024
        assert abs(mine[0] - resident) <= 2 + resident // 4
        assert mine[1] == Path("/proc/self/comm").read_text().strip()
        assert await client.get_process_memory(2**22 + 1) is None


def test_exports_fields_and_methods() -> None:
    for name in ("SSHClient", "SSHConfig", "SSHHealth", "SSHResult", "SSHExecutor", "CommandResult", "get_ssh_client"):
        assert name in cronium_controller.__all__
    assert len(dataclasses.fields(SSHConfig)) == 16
    health = [field.name for field in dataclasses.fields(SSHHealth)]
    assert health == [
        "last_success", "last_failure", "consecutive_failures", "consecutive_successes", "total_successes",
        "total_failures",
    ]  # fmt: skip
    for name in (
        "run", "run_async", "run_async_with_retry", "run_background", "get_process_memory", "scp_to", "scp_from",
        "check_connectivity", "is_alive", "close", "health", "config",
    ):  # fmt: skip
        assert hasattr(SSHClient, name), name


# -- seed 001 ----------------------------------------------------------------------------------------------------------

EXAMPLES = r"""
# Basic Usage
from cronium_controller import get_ssh_client
client = get_ssh_client("runpod-h100")
result = await client.run_async("nvidia-smi")
print(result.stdout)
assert result.stdout == "GPU 0\n"
# Transport Fallback Chain
result = await client.run_async("hostname")
print(f"Connected via: {result.transport_used}")
assert result.transport_used == "direct"
# Health Tracking
if client.health.is_healthy:
    print(f"Success rate: {client.health.success_rate:.1%}")
else:
    print(f"Unhealthy: {client.health.consecutive_failures} failures")
assert client.health.is_healthy
# Background Jobs
result = await client.run_background(
    "python train.py --epochs 100",
    log_file="~/logs/training.log"
)
pid = int(result.stdout.strip())
memory_mb, cmd = await client.get_process_memory(pid)
print(f"{cmd} using {memory_mb}MB")
open_gate()
# From cluster_hosts.yaml
client = get_ssh_client("node-id")
assert client.config.tailscale_ip == TAILSCALE
# Manual Configuration
from cronium_controller import SSHClient, SSHConfig
config = SSHConfig(
    host=HOST,
    port=PORT,
    user=USER,
    key_path=KEY,
    tailscale_ip=TAILSCALE,
    cloudflare_tunnel="ssh.example.com",
    cloudflare_service_token_id="token",
    cloudflare_service_token_secret="secret"
)
client = SSHClient(config)
assert (await client.run_async("true")).transport_used == "tailscale"
await client.close()
# From HostConfig Object
from cronium_controller.inventory import load
nodes = {name: entry.config for name, entry in load().entries.items()}
host_config = nodes["runpod-h100"]
config = SSHConfig.from_host_config(host_config)
client = SSHClient(config)
# Retry on Failure
result = await client.run_async_with_retry(
    "hostname",
    max_retries=5,
    retry_delay=3.0,
)
assert result.success
# Custom Timeout
result = await client.run_async("long_command", timeout=300)
assert result.stdout == "long\n"
# Working Directory
result = await client.run_async(
    "git status",
    cwd=FOLDER + "/opt/ringrift/ai-service"
)
assert result.stdout == FOLDER + "/opt/ringrift/ai-service: clean\n"
# Environment Variables
result = await client.run_async(
    "python train.py",
    env={"CUDA_VISIBLE_DEVICES": "0,1"}
)
assert "devices 0,1" in result.stdout
# File Transfers
result = client.scp_to("local.txt", FOLDER + "/remote/path/file.txt")
assert result.success, result
result = client.scp_from(FOLDER + "/remote/path/file.txt", "back.txt")
assert result.success, result
# Connectivity Check
is_alive, message = await client.check_connectivity()
if is_alive:
    print(f"Connected: {message}")
assert is_alive
# Job Submission & Monitoring
result = await client.run_background(
    "python selfplay.py --games 1000",
    log_file="~/logs/selfplay.log"
)
pid = int(result.stdout.strip())
while True:
    mem_info = await client.get_process_memory(pid)
    if mem_info is None:
        print("Job finished")
        break
    memory_mb, _ = mem_info
    print(f"Job using {memory_mb}MB RAM")
    await asyncio.sleep(60)
await client.close()
# Health-Aware Scheduling
nodes = ["runpod-h100", "internal-server", "node-id"]
clients = [get_ssh_client(node) for node in nodes]
for client in clients:
    await client.run_async("echo test")
healthy = [c for c in clients if c.health.is_healthy]
best = max(healthy, key=lambda c: c.health.success_rate)
result = await best.run_async("start_training.sh")
assert result.stdout == "training\n"
# Cloudflare Zero Trust
client = get_ssh_client("internal-server")
result = await client.run_async("hostname")
assert result.transport_used == "cloudflare"
assert client.config.cloudflare_service_token_id == "the-id"
# SSHResult
assert result.success is True and result.returncode == 0 and result.stderr == "" and result.elapsed_ms > 0
assert result.timed_out is False and result.error is None
# SSHHealth
health = client.health
assert health.last_success and health.last_failure is None and health.total_failures == 0
# Connection Fails
print(f"Consecutive failures: {client.health.consecutive_failures}")
print(f"Last failure: {client.health.last_failure}")
is_alive, msg = await client.check_connectivity()
print(msg)
# Timeouts
config.connect_timeout = 30
config.command_timeout = 300
result = await client.run_async("slow_command", timeout=600)
assert result.stdout == "slow\n"
"""

_PROGRAMS = {
    "nvidia-smi": "echo GPU 0",
    "long_command": "echo long",
    "slow_command": "echo slow",
    "start_training.sh": "echo training",
    "git": 'echo "$PWD: clean"',
    "python": (
        'echo "$1 devices $CUDA_VISIBLE_DEVICES"; test "$2" || exit 0; while [ ! -e "$GATE" ]; do sleep 0.05; done'
    ),
}


async def test_every_example_of_the_reference(
    serve: Callable[..., OpenSSHServer],  # noqa: F811
    home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    programs, gate = tmp_path / "bin", tmp_path / "gate"
    programs.mkdir()
    server = serve(environment={"PATH": f"{programs}:/usr/bin:/bin", "GATE": str(gate)})  # noqa: F811
    for name, text in _PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o700)
    here = tmp_path / "here"
    here.mkdir()
    (here / "cloudflared").write_text(
        f"#!{sys.executable}\nimport asyncio, os, socket, sys, threading\n"
        f'there = socket.create_connection(("127.0.0.1", {server.port}))\n'
        "def carry():\n    while piece := os.read(0, 65536):\n        there.sendall(piece)\n"
        "    there.shutdown(socket.SHUT_WR)\n"
        "threading.Thread(target=carry, daemon=True).start()\n"
        "while piece := there.recv(65536):\n    os.write(1, piece)\n"
    )
    (here / "cloudflared").chmod(0o700)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    monkeypatch.setenv("CF_TOKEN_ID", "the-id")
    monkeypatch.setenv("CF_TOKEN_SECRET", "the-secret")
    where = f"ssh_port: {server.port}, ssh_key: {server.identity}"
    (home / "distributed_hosts.yaml").write_text(
        f"runpod-h100: {{ssh_host: 127.0.0.1, {where}}}\n"
        f"node-id: {{ssh_host: 127.0.0.1, tailscale_ip: '127.0.0.1:{server.port}', {where}}}\n"
        f"internal-server: {{ssh_host: 127.0.0.9, {where}, cloudflare_tunnel: ssh.example.com,\n"
        "  cloudflare_service_token_id: '${CF_TOKEN_ID}', cloudflare_service_token_secret: '${CF_TOKEN_SECRET}'}\n"
    )
    for folder in ("opt/ringrift/ai-service", "remote/path"):
        (home / folder).mkdir(parents=True)
    (home / "local.txt").write_text("words")

    async def sleep(seconds: float) -> None:
        assert seconds == 60
        gate.touch()
        await asyncio.sleep(0.05)

    def open_gate() -> None:
        gate.touch()
        wait_until(lambda: (home / "logs/training.log").read_text() == "train.py devices \n", "the training's log")
        gate.unlink()

    known: dict[str, Any] = {
        "HOST": "127.0.0.1", "TAILSCALE": f"127.0.0.1:{server.port}", "PORT": server.port, "USER": None,
        "KEY": str(server.identity), "FOLDER": str(home),
        "asyncio": SimpleNamespace(sleep=sleep), "open_gate": open_gate, "print": lambda *_: None,
    }  # fmt: skip
    try:
        code = compile(EXAMPLES, "seed 001", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        running = FunctionType(code, known)()
        assert running is not None
        await asyncio.wait_for(running, 120)
    finally:
        gate.touch()
        await close_all_clients()
        await known["client"].close()
    assert (home / "back.txt").read_text() == "words"
    assert (home / "logs/selfplay.log").read_text() == "selfplay.py devices \n"
    await asyncio.wait_for(asyncio.gather(*transport.Carried._watching), 30)  # cloudflared ends with its socket
