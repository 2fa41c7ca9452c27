"""Raw commands against real OpenSSH servers: seeds 000 to 003, each example and each case."""

import ast
import asyncio
import builtins
import functools
import gc
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import cronium_controller
from cronium_controller import (
    AuthenticationError,
    CommandTimeoutError,
    ConfigurationError,
    ConnectionError,
    SSHClient,
    SSHConfig,
    SSHExecutor,
    SSHResult,
    close_all_clients,
    connections,
    errors,
    get_ssh_client,
    raw_command,
    run_ssh_command,
    run_ssh_command_async,
    run_ssh_command_sync,
    ssh_words,
    transport,
)
from cronium_controller.access import Access
from cronium_controller.errors import ControllerError, HostKeyChangedError, UnreachableError
from cronium_controller.executing import NotInTimeError
from cronium_controller.hosts import Host
from openssh import OpenSSHServer, sshd_path
from runner_process import ROOT, command_line, processes_with, wait_until

LONG = 30.0
"""Longer than anything here takes, shorter than a job's own end."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory on both sides: the real account's configuration must not play a part."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.delenv("CRONIUM_HOSTS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / ".config"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def serve(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., OpenSSHServer]]:
    """`serve(options=[…], environment={…})`: a server of the test's own."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    started: list[OpenSSHServer] = []

    def start(options: list[str] | None = None, environment: dict[str, str] | None = None) -> OpenSSHServer:
        folder = tmp_path / f"sshd{len(started)}"
        marked = {"HOME": str(home), "CRONIUM_TEST": str(folder), **(environment or {})}
        # Sessions begin in the account's own home, whatever $HOME says; files at least must not go there.
        sftp = [] if any("Subsystem" in line for line in options or []) else [f"Subsystem sftp internal-sftp -d {home}"]
        server = OpenSSHServer(folder, environment=marked, options=[*(options or []), *sftp])
        server.start()
        started.append(server)
        monkeypatch.setenv("CRONIUM_KNOWN_HOSTS", str(server.known_hosts))
        return server

    yield start
    for server in started:
        server.stop()
        for pid in processes_with(str(server.folder)):
            os.kill(pid, 9)


def settings(server: OpenSSHServer, **changes: Any) -> SSHConfig:
    return SSHConfig(**{"host": "127.0.0.1", "port": server.port, "key_path": str(server.identity), **changes})


@pytest.fixture
def server(serve: Callable[..., OpenSSHServer]) -> OpenSSHServer:
    return serve()


@pytest.fixture
async def client(server: OpenSSHServer) -> AsyncIterator[SSHClient]:
    async with SSHClient(settings(server), name="web01") as made:
        yield made


def leftovers(server: OpenSSHServer, text: str) -> list[int]:
    """Processes of the server's sessions whose command line has `text`."""
    return [pid for pid in processes_with(str(server.folder)) if text.encode() in command_line(pid)]


# -- commands --------------------------------------------------------------------------------------------------------


async def test_a_command_says_everything_about_its_end(client: SSHClient) -> None:
    good = await client.run_async("echo out; echo err >&2")
    assert good == SSHResult(
        True, 0, "out\n", "err\n", good.elapsed_ms, "echo out; echo err >&2", "web01", "direct", False, None
    )
    assert good.elapsed_ms > 0
    bad = await client.run_async("no-such-command-here")
    assert (bad.success, bad.returncode, bad.error) == (False, 127, None)
    assert "no-such-command-here" in bad.stderr
    assert (await client.run_async("exit 7")).returncode == 7
    assert (await client.run_async("kill -9 $$")).returncode == 128 + 9


async def test_the_first_command_and_later_ones_mean_the_same(client: SSHClient) -> None:
    command = "printf '%s|' \"it's\" 'a\\nb' '!x' $((1+1)) \"$A\"; printf '%s\n' $0 | sed 's,.*/,,'"
    results = [await client.run_async(command, env={"A": "x\ny'"})]
    await asyncio.gather(*client._commands.chores)
    assert client._commands.is_posix, "the login shell is one, and must have been recognised by now"
    results.append(await client.run_async(command, env={"A": "x\ny'"}))
    assert {result.stdout for result in results} == {results[0].stdout}
    assert results[0].stdout.startswith("it's|a\\nb|!x|2|x\ny'|")


async def test_bytes_that_are_no_text_and_much_output(client: SSHClient) -> None:
    odd = await client.run_async("printf 'a\\377b'")
    assert odd.stdout == "a�b"
    much = await client.run_async("head -c 20000000 /dev/zero | tr '\\0' x; echo end >&2")
    assert (len(much.stdout), much.stderr, much.truncated) == (raw_command.MOST_KEPT, "end\n", True)


async def test_standard_input_is_empty(client: SSHClient) -> None:
    assert (await client.run_async("cat; echo done", timeout=LONG)).stdout == "done\n"


async def test_folder_variables_and_environment_apply_to_a_compound_command(server: OpenSSHServer, home: Path) -> None:
    folder = home / "it's a folder"
    (folder / "venv").mkdir(parents=True)
    (folder / "venv/activate").write_text("VIRTUAL=on; export VIRTUAL; B=overwritten; export B\n")
    command = "echo first; pwd; echo $A; echo $VIRTUAL $B | cat"
    wanted = f"first\n{folder}\n$HOME `id` \"q\" 'q'\non b\n"
    given = {"A": "$HOME `id` \"q\" 'q'", "B": "b"}
    for venv in ("venv/activate", "source venv/activate"):
        config = settings(server, work_dir="~/it's a folder", venv_activate=venv)
        async with SSHClient(config) as client:
            for _ in range(3):
                assert (await client.run_async(command, env=given)).stdout == wanted
            refused = await client.run_async("pwd", cwd="/")
            assert (refused.returncode, refused.error_code) == (255, "host.config")
            assert "cannot read venv/activate there, which venv_activate names" in (refused.error or "")


async def test_a_folder_that_is_not_there_keeps_the_command_from_running(client: SSHClient) -> None:
    for _ in range(3):
        result = await client.run_async("echo ran", cwd="/no/such/folder")
        assert (result.success, result.returncode, result.stdout) == (False, 1, "")
        assert "/no/such/folder" in result.stderr


@pytest.mark.parametrize(
    ("command", "how", "said"),
    [
        ("", {}, "Command cannot be empty"),
        (" \n", {}, "Command cannot be empty"),
        ("echo a\0b", {}, "a NUL byte"),
        ("true", {"cwd": "a\0b"}, "a NUL byte"),
        ("true", {"env": {"A": "a\0b"}}, "variable A has a NUL byte"),
        ("true", {"env": {"A;id": "x"}}, "'A;id' is not a variable's name"),
    ],
)
async def test_what_no_shell_could_be_told_is_refused_before_a_byte_is_sent(
    server: OpenSSHServer, client: SSHClient, command: str, how: dict[str, Any], said: str
) -> None:
    result = await client.run_async(command, **how)
    assert (result.success, result.returncode, result.transport_used) == (False, 255, None)
    assert said in (result.error or "")
    assert server.count_in_log("Connection from") == 1, "only the probe of the fixture"


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "csh", "tcsh"])
async def test_every_login_shell_gets_the_same(serve: Callable[..., OpenSSHServer], shell: str, home: Path) -> None:
    """sshd runs commands with the account's shell; a forced command that does just that stands in for other shells."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    server = serve(options=[f'ForceCommand exec {found} -c "$SSH_ORIGINAL_COMMAND"'], environment={"SHELL": found})
    (home / "x y").mkdir()
    command = "printenv A; pwd; echo 'a  b' | cat"
    async with SSHClient(settings(server)) as client:
        for _ in range(3):
            result = await client.run_async(command, cwd="~/x y", env={"A": "it's \\n !1"})
            assert result.stdout == f"it's \\n !1\n{home}/x y\na  b\n", (client._commands.is_posix, result)
            await asyncio.wait_for(asyncio.gather(*client._commands.chores), LONG)
        assert client._commands.is_posix == (shell not in ("fish", "csh", "tcsh"))


# -- timeouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "echo partial; echo words >&2; sleep 4711",
        "echo partial; echo words >&2; (sleep 4711 &) ; sleep 4711 | cat",
        "echo partial; echo words >&2; trap '' TERM; while :; do sleep 4711; done",
        "echo partial; echo words >&2; exec >/dev/null 2>&1; while :; do sleep 4711; done; true",
    ],
)
@pytest.mark.parametrize("is_posix", [False, True])
async def test_a_timeout_returns_in_time_with_what_was_written_and_leaves_nothing(
    server: OpenSSHServer, client: SSHClient, command: str, is_posix: bool, caplog: pytest.LogCaptureFixture
) -> None:
    client._commands.is_posix = is_posix
    began = time.monotonic()
    result = await client.run_async(command, timeout=3)
    assert (result.success, result.returncode, result.timed_out) == (False, -1, True)
    assert (result.stdout, result.stderr[:30]) == ("partial\n", "words\nCommand timed out after ")
    assert "was ended" in (result.error or "")
    assert time.monotonic() - began < LONG
    assert not leftovers(server, "4711")
    [record] = [record for record in caplog.records if record.message.startswith("command_timeout host=web01 ")]
    assert (record.host, record.was_ended) == ("web01", True)  # type: ignore[attr-defined]
    assert (await client.run_async("echo still")).stdout == "still\n"


_BACKGROUND = (
    ("nohup sleep {0} >/dev/null 2>&1 &", True),
    ("setsid sleep {0} &", True),
    ("nohup sh -c 'sleep {0}; true' >log 2>&1 &", True),  # with what it has started
    ("sleep {0} >/dev/null 2>&1 &", False),  # a hang-up ends it
    ("nohup sleep {0} &", False),  # it holds the command's output
)


async def test_what_was_put_into_the_background_outlives_a_timeout(
    server: OpenSSHServer, client: SSHClient, home: Path
) -> None:
    for is_posix in (False, True):
        client._commands.is_posix = is_posix
        started = " ".join(text.format(5000 + number) for number, (text, _) in enumerate(_BACKGROUND))
        for kill in ("command", "tree"):
            result = await client.run_async(f"{started} echo up; sleep 5099", timeout=3, cwd="~", kill=kill)
            assert (result.stdout, result.timed_out) == ("up\n", True)
            assert "was ended" in (result.error or "")
            assert not leftovers(server, "5099")
            left = [bool(leftovers(server, str(5000 + number))) for number in range(len(_BACKGROUND))]
            assert left == [goes_on and kill == "command" for _, goes_on in _BACKGROUND], (is_posix, kill)
            for number in range(len(_BACKGROUND)):
                for pid in leftovers(server, str(5000 + number)):
                    os.kill(pid, 9)
    refused = await client.run_async("true", kill="all")
    assert refused.error_code == "usage.invalid"


async def test_a_timeout_bounds_connecting_too(home: Path) -> None:
    """A server that takes connections and says nothing: three attempts of ten seconds, were there time."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        config = SSHConfig(f"127.0.0.1:{listening.getsockname()[1]}")
        async with SSHClient(config, name="web01", access=Access(known_hosts=str(home / "known"))) as client:
            for result in (
                await client.run_async("true", timeout=0.3),
                await client.scp_from_async("/etc/hostname", "x", timeout=0.3),
            ):
                assert (result.success, result.returncode, result.timed_out) == (False, -1, True)
                assert "timed out" in result.stderr
        async with SSHExecutor(timeout=0.3) as executor:
            with pytest.raises(ConnectionError, match=r"no connection to 127\.0\.0\.1 within 0\.3 s"):
                await executor.execute(config, "true")


async def test_values_that_are_not_text_are_taken(client: SSHClient, home: Path) -> None:
    given = {"A": 1, "B": True, "C": Path("/x"), "D": 2.5, "E": None}
    result = await client.run_async("pwd; echo $A $B $C $D ${E-unset}", cwd=home, env=given)
    assert result
    assert result.output == f"{home}\n1 True /x 2.5 unset"
    assert not await client.run_async("false")
    assert (await client.scp_to_async(Path("/etc/hostname"), home / "there")).success


async def test_a_timeout_where_the_server_allows_one_session(serve: Callable[..., OpenSSHServer]) -> None:
    server = serve(options=["MaxSessions 1"])
    async with SSHClient(settings(server)) as client:
        result = await client.run_async("echo partial; sleep 4712", timeout=3)
        assert (result.stdout, result.timed_out) == ("partial\n", True)
        assert "was ended" in (result.error or "")
    assert not leftovers(server, "4712")


async def test_a_call_that_is_cancelled_ends_its_command(server: OpenSSHServer, client: SSHClient) -> None:
    call = asyncio.ensure_future(client.run_async("sleep 4713", timeout=LONG))
    async with asyncio.timeout(LONG):
        while not leftovers(server, "4713"):
            await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while leftovers(server, "4713"):
            await asyncio.sleep(0.02)


# -- the background --------------------------------------------------------------------------------------------------


async def test_a_compound_background_command_returns_at_once_and_logs_as_a_whole(
    server: OpenSSHServer, client: SSHClient, home: Path
) -> None:
    gate = home / "gate"
    command = (
        f'echo one; echo "two\'s $A" >&2; while [ ! -e {shlex.quote(str(gate))} ]; do sleep 0.05; done; '
        'echo "${CRONIUM_COMMAND_ID-unset}"; pwd'
    )
    result = await client.run_background(command, log_file="~/logs/new folder/train.log", cwd="~", env={"A": "a"})
    assert result.success, result
    pid = int(result.stdout.strip())
    log = home / "logs/new folder/train.log"
    wait_until(lambda: log.read_text() == "one\ntwo's a\n", "the log")
    memory = await client.get_process_memory(pid)
    assert memory is not None
    assert memory[0] >= 0
    assert "sh" in memory[1]
    await client.close()  # it goes on without any connection
    gate.touch()
    wait_until(lambda: log.read_text() == f"one\ntwo's a\nunset\n{home}\n", "the log's end")
    async with asyncio.timeout(LONG):
        while await client.get_process_memory(pid) is not None:
            await asyncio.sleep(0.05)


async def test_a_background_command_whose_log_cannot_be_written_is_not_started(client: SSHClient, home: Path) -> None:
    result = await client.run_background(f"touch {home}/ran", log_file="/proc/nope/log")
    assert not result.success
    assert result.stderr
    assert not (home / "ran").exists()


# -- connections -----------------------------------------------------------------------------------------------------


async def test_parallel_first_calls_share_one_connection(
    client: SSHClient, server: OpenSSHServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cronium")
    calls = [client.run_async(("sleep 0.1; echo log", "false", "echo x")[number % 3]) for number in range(24)]
    results = await asyncio.gather(*calls)
    assert [result.returncode for result in results] == [0, 1, 0] * 8
    events = [getattr(record, "event", record.message) for record in caplog.records]
    assert events.count("command_executed") == 24
    assert server.count_in_log("Accepted publickey") == events.count("ssh_connection_established")
    assert events.count("ssh_connection_established") <= 3  # OpenSSH lets ten sessions on one connection
    assert events.count("reusing_ssh_connection") >= 24


async def test_twenty_clients_of_an_account_share(server: OpenSSHServer) -> None:
    clients = [SSHClient(settings(server), name=f"web{number}") for number in range(20)]
    for client in clients:
        assert (await client.run_async("true")).success
    assert server.count_in_log("Accepted publickey") == 1
    for client in clients[:-1]:
        await client.close()
    assert (await clients[-1].run_async("true")).success
    assert server.count_in_log("Accepted publickey") == 1, "one that another client uses was closed"
    await clients[-1].close()
    async with asyncio.timeout(LONG):
        while server.session_pids():
            await asyncio.sleep(0.02)


def test_event_loops_leave_no_descriptor_behind(server: OpenSSHServer) -> None:
    client = SSHClient(settings(server))
    client._commands.is_posix = True

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    assert asyncio.run(client.run_async("true")).success
    before = open_files()
    for _ in range(60):
        assert asyncio.run(client.run_async("true")).success
    assert open_files() <= before
    wait_until(lambda: not server.session_pids(), "the connections' end")
    loop = asyncio.new_event_loop()  # one that says nothing of its end
    assert loop.run_until_complete(client.run_async("true")).success
    loop.close()
    del loop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert asyncio.run(client.run_async("true")).success
        gc.collect()
    wait_until(lambda: not server.session_pids(), "the connections' end")


async def test_sequential_calls_reuse_one_connection(client: SSHClient, server: OpenSSHServer) -> None:
    for number in range(5):
        assert (await client.run_async(f"echo {number}")).stdout == f"{number}\n"
    assert server.count_in_log("Accepted publickey") == 1


async def test_twenty_parallel_commands_where_one_session_is_allowed(serve: Callable[..., OpenSSHServer]) -> None:
    server = serve(options=["MaxSessions 1", "MaxStartups 100"])
    async with SSHClient(settings(server)) as client:
        results = await asyncio.gather(*[client.run_async(f"echo {number}") for number in range(20)])
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(20)], results


async def test_copies_and_commands_where_one_session_is_allowed(
    serve: Callable[..., OpenSSHServer], home: Path
) -> None:
    server = serve(options=["MaxSessions 1", "MaxStartups 100"])
    (home / "source").write_bytes(b"x" * 100_000)
    async with SSHClient(settings(server)) as client:
        copies = [client.scp_to_async("source", f"~/copy{number}") for number in range(6)]
        commands = [client.run_async(f"echo {number}") for number in range(6)]
        results = await asyncio.gather(*copies, *commands)
    assert all(result.success for result in results), results
    assert all((home / f"copy{number}").stat().st_size == 100_000 for number in range(6))


async def test_a_copy_that_takes_too_long_is_given_up(serve: Callable[..., OpenSSHServer], home: Path) -> None:
    server = serve(options=["Subsystem sftp sleep 600"])
    async with SSHClient(settings(server)) as client:
        result = await client.scp_from_async("/etc/hostname", "copy", timeout=0.5)
        assert (result.success, result.timed_out) == (False, True)
        assert "took longer than 0.5 s" in (result.error or "")
        assert os.listdir(home) == [".ssh"]
        assert (await client.run_async("true")).success


async def test_without_control_master_each_call_has_its_own_connection(server: OpenSSHServer) -> None:
    async with SSHClient(settings(server, use_control_master=False)) as client:
        client._commands.is_posix = True
        for _ in range(3):
            assert (await client.run_async("true")).success
    assert server.count_in_log("Accepted publickey") == 3


async def test_connections_that_died_in_the_pool_are_replaced(client: SSHClient, server: OpenSSHServer) -> None:
    assert (await client.run_async("true")).success
    for pid in server.session_pids():
        os.kill(pid, 9)
    assert (await client.run_async("echo again")).stdout == "again\n"
    assert server.count_in_log("Accepted publickey") == 2


async def test_a_connection_that_answers_no_more_is_replaced(server: OpenSSHServer) -> None:
    async with SSHClient(settings(server, connect_timeout=1)) as client:
        assert (await client.run_async("true")).success
        await asyncio.gather(*client._commands.chores)
        stopped = server.session_pids()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert (await client.run_async("echo again")).stdout == "again\n"
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)


async def test_settings_of_the_configuration_reach_the_connection(server: OpenSSHServer) -> None:
    """A silent host is noticed after interval × (count + 1), and both are the configuration's."""
    async with SSHClient(settings(server, server_alive_interval=0.2, server_alive_count_max=1)) as client:
        call = asyncio.ensure_future(client.run_async("sleep 4718"))
        async with asyncio.timeout(LONG):
            while not leftovers(server, "4718"):
                await asyncio.sleep(0.02)
            stopped = server.session_pids()
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                result = await call
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
    assert "the connection ended while the command ran" in (result.error or "")


async def test_a_connection_lost_under_a_command_is_said_not_guessed(client: SSHClient, server: OpenSSHServer) -> None:
    call = asyncio.ensure_future(client.run_async("sleep 4714"))
    async with asyncio.timeout(LONG):
        while not leftovers(server, "4714"):
            await asyncio.sleep(0.02)
        for pid in server.session_pids():
            os.kill(pid, 9)
        result = await call
    assert (result.success, result.returncode, result.timed_out) == (False, 255, False)
    assert "the connection ended while the command ran" in (result.error or "")


async def test_a_host_that_is_away_is_a_result(home: Path, serve: Callable[..., OpenSSHServer]) -> None:
    server = serve()
    server.stop()
    client = SSHClient(settings(server), name="web01")
    result = await client.run_async("true")
    assert (result.success, result.returncode, result.transport_used) == (False, 255, None)
    assert f"ssh: connect to host 127.0.0.1 port {server.port}: Connection refused" in result.stderr
    assert (result.error or "").startswith("web01: cannot connect to 127.0.0.1: Connection refused")
    alive, why = await client.check_connectivity()
    assert not alive
    assert "Connection refused" in why


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (HostKeyChangedError("it has another key"), "Host key verification failed."),
        (errors.AuthenticationError("host.auth_failed", "no"), "deploy@h: Permission denied (publickey)."),
        (UnreachableError("channel.lost", "the connection ended"), "Connection to h closed by remote host."),
        (NotInTimeError("host.unreachable", "no connection to h within 3 s"), "port 2222: Connection timed out"),
        (UnreachableError("host.unreachable", "no answer from h within 10 s"), "port 2222: Connection timed out"),
        (
            UnreachableError("host.unreachable", "cannot connect to h: Connection refused"),
            "h port 2222: Connection refused",
        ),
        (
            UnreachableError("host.unreachable", "cannot connect to h: No route to host"),
            "h port 2222: No route to host",
        ),
        (
            UnreachableError("host.unreachable", "cannot connect to h: Name or service not known"),
            "ssh: Could not resolve hostname h: Name or service not known",
        ),
        (UnreachableError("host.paused", "not tried"), None),
        (ControllerError("host.config", "it timed out"), None),
    ],
)
def test_an_error_is_told_in_the_words_of_ssh(error: ControllerError, words: str | None) -> None:
    said = ssh_words.words(error, Host("web01", "h", port=2222, user="deploy"))
    assert said is None if words is None else (said or "").endswith(words)


_CLOUDFLARED = """#!{python}
import os, socket, sys, threading
assert sys.argv[1:] == ["access", "ssh", "--hostname", "ssh.example.com"], sys.argv
assert os.environ["TUNNEL_SERVICE_TOKEN_SECRET"] == "the-secret"
there = socket.create_connection(("127.0.0.1", {port}))

def carry():
    while piece := os.read(0, 65536):
        there.sendall(piece)
    there.shutdown(socket.SHUT_WR)

threading.Thread(target=carry, daemon=True).start()
while piece := there.recv(65536):
    os.write(1, piece)
"""


@pytest.mark.parametrize(
    ("ways", "used"),
    [
        ({"tailscale_ip": "127.0.0.1:PORT"}, "tailscale"),
        ({"tailscale_ip": "127.0.0.9"}, "direct"),
        ({"tailscale_ip": "127.0.0.1:PORT", "host": "127.0.0.9"}, "tailscale"),
        ({"tailscale_ip": "127.0.0.9", "host": "127.0.0.9"}, "cloudflare"),
    ],
)
async def test_the_way_that_was_taken_is_told(
    server: OpenSSHServer, home: Path, monkeypatch: pytest.MonkeyPatch, ways: dict[str, str], used: str
) -> None:
    """Nothing listens on 127.0.0.9; what stands in for cloudflared really carries the bytes."""
    program = home / "bin/cloudflared"
    program.parent.mkdir()
    program.write_text(_CLOUDFLARED.format(python=sys.executable, port=server.port))
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    config = settings(
        server, **{key: value.replace("PORT", str(server.port)) for key, value in ways.items()},
        cloudflare_tunnel="ssh.example.com",
        cloudflare_service_token_id="the-id", cloudflare_service_token_secret="the-secret",
    )  # fmt: skip
    async with SSHClient(config) as client:
        for _ in range(2):
            result = await client.run_async("echo $((6*7))")
            assert (result.stdout, result.transport_used) == ("42\n", used), result
        assert await client.check_connectivity() == (True, f"Connected via {used}")
    await asyncio.wait_for(asyncio.gather(*transport.Carried._watching), LONG)  # cloudflared ends with its socket
    assert server.count_in_log("Accepted publickey") == 1


async def test_a_failure_names_the_address_that_was_dialled(home: Path) -> None:
    access = Access(known_hosts=str(home / "known"), attempts=1)
    config = SSHConfig("127.0.0.1", port=1, tailscale_ip="127.0.0.9:2", connect_timeout=5)
    async with SSHClient(config, name="web01", access=access) as client:
        result = await client.run_async("true")
    assert "tailscale: cannot connect to 127.0.0.9:2: Connection refused" in result.stderr
    assert "direct: cannot connect to 127.0.0.1: Connection refused" in result.stderr


@pytest.mark.parametrize("options", [[], ["Subsystem sftp /bin/false"]], ids=["sftp", "shell"])
async def test_patterns_stand_for_files_on_both_sides(
    serve: Callable[..., OpenSSHServer], home: Path, options: list[str]
) -> None:
    for name, mode in (("a 1.txt", 0o640), ("b[2].txt", 0o755), ("c.log", 0o600), (".hidden.txt", 0o600)):
        (home / name).write_text(name)
        (home / name).chmod(mode)
    (home / "there").mkdir()
    async with SSHClient(settings(serve(options=options))) as client:
        assert (await client.scp_to_async("*.txt", "~/there")).success
        assert sorted(os.listdir(home / "there")) == ["a 1.txt", "b[2].txt"]
        assert (await client.scp_to_async("b[2].txt", "~/there/one")).success, "a file of that name is no pattern"
        assert (await client.scp_from_async("~/there/*[tx]", "back")).success
        assert {name: (home / "back" / name).stat().st_mode & 0o777 for name in os.listdir(home / "back")} == {
            "a 1.txt": 0o640,
            "b[2].txt": 0o755,
        }
        assert (await client.scp_from_async("~/there/b[2].txt", "one")).success
        assert (home / "one").read_text() == "b[2].txt"
        for copying, said in (
            (client.scp_to_async("*.nope", "~/there"), "No such file"),
            (client.scp_from_async("~/there/*.nope", "x"), "No such file"),
            (client.scp_from_async("~/*/a", "x"), "No such file"),
            (client.scp_from_async("~/*/a*", "x"), "only its last part"),
        ):
            result = await copying
            assert not result.success
            assert said in result.stderr
        (home / "links").mkdir()
        (home / "links/a 1.txt").symlink_to(home / "c.log")
        refused = await client.scp_from_async("~/there/a*", "links/")
        assert "it is a link" in refused.stderr
        assert (home / "c.log").read_text() == "c.log"


async def test_health_counts_every_path(client: SSHClient, server: OpenSSHServer, home: Path) -> None:
    def is_healthy() -> bool:
        return client.health.is_healthy

    assert client.health.success_rate == 0.0
    await client.run_async("true")
    await client.scp_to_async("/etc/hostname", "copy")
    assert (client.health.total_successes, client.health.consecutive_successes) == (2, 2)
    await client.run_async("false")
    await client.scp_from_async("no-such-file", "x")
    assert is_healthy()
    await client.run_async("sleep 4715", timeout=0.2)
    assert not is_healthy()
    assert (client.health.consecutive_failures, client.health.success_rate) == (3, 0.4)
    assert "unhealthy" in repr(client)
    await client.run_async("true")
    assert is_healthy()


async def test_retrying_until_it_succeeds(client: SSHClient, home: Path) -> None:
    command = "echo x >> tries; test $(wc -l < tries) -ge 3"
    result = await client.run_async_with_retry(command, max_retries=5, retry_delay=0.01, cwd="~")
    assert result.success
    assert (home / "tries").read_text() == "x\n" * 3
    result = await client.run_async_with_retry("echo x >> never; false", max_retries=2, retry_delay=0.01, cwd="~")
    assert not result.success
    assert (home / "never").read_text() == "x\n" * 2


# -- without an event loop -------------------------------------------------------------------------------------------


def test_synchronous_calls_share_a_connection(server: OpenSSHServer, home: Path) -> None:
    client = SSHClient(settings(server))
    assert client.is_alive()
    assert client.run("cat copy || echo none", cwd="~").stdout == "none\n"
    (home / "local.txt").write_text("words")
    assert client.scp_to("local.txt", "~/copy").success
    assert client.run("cat copy", cwd="~", env={"A": "b"}).stdout == "words"
    assert client.scp_from("~/copy", "back.txt").success
    assert (home / "back.txt").read_text() == "words"
    assert server.count_in_log("Accepted publickey") == 1
    asyncio.run(client.close())
    wait_until(lambda: not server.session_pids(), "the connection's end")
    assert client.run("exit 3").returncode == 3
    asyncio.run(client.close())


def test_importing_the_package_is_light() -> None:
    heavy = "{'asyncssh', 'sqlalchemy', 'yaml', 'asyncio'}"
    program = f"import cronium_controller, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    for name in cronium_controller.__all__:
        assert getattr(cronium_controller, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        cronium_controller.nope  # noqa: B018


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["Subsystem sftp /bin/false"]], ids=["sftp", "shell"])
async def test_files_go_there_and_back(serve: Callable[..., OpenSSHServer], home: Path, options: list[str]) -> None:
    server = serve(options=options)
    content = os.urandom(3_000_000)
    (home / "local file").write_bytes(content)
    os.chmod(home / "local file", 0o750)
    (home / "folder").mkdir()
    async with SSHClient(settings(server)) as client:
        for target in ("~/it's there", f"{home}/folder", f"{home}/absolute"):
            result = await client.scp_to_async("local file", target)
            assert result.success, result
            assert result.transport_used == "direct"
        for name in ("it's there", "folder/local file", "absolute"):
            assert (home / name).read_bytes() == content
            assert (home / name).stat().st_mode & 0o777 == 0o750
            assert (await client.scp_from_async(f"~/{name}", "back")).success
            assert (home / "back").read_bytes() == content
        assert (await client.scp_from_async("/proc/version", "version")).success
        assert (home / "version").read_text().startswith("Linux")
        names = sorted(os.listdir(home))
        for source, destination, said in (
            ("no-such-file", "x", "No such file"),
            ("local file", "/proc/nope/x", "cannot copy /proc/nope/x"),
        ):
            result = await client.scp_to_async(source, destination)
            assert not result.success
            assert said in (result.error or "")
        result = await client.scp_from_async("~/no-such-file", "x")
        assert "No such file" in (result.error or "")
        assert sorted(os.listdir(home)) == names, "nothing half-copied is left"


# -- one client for each name ----------------------------------------------------------------------------------------


async def test_a_client_comes_by_its_name_in_the_hosts_file(
    server: OpenSSHServer, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "cluster_hosts.yaml").write_text(
        f"runpod-h100: {{ssh_host: 127.0.0.1, ssh_port: {server.port}, ssh_key: {server.identity}}}\n"
    )
    (home / ".ssh/config").write_text("Host alias\n  HostName 127.0.0.1\n")
    client = get_ssh_client("runpod-h100")
    try:
        assert get_ssh_client("runpod-h100") is client
        assert (await client.run_async("echo hello")).host == "runpod-h100"
        assert get_ssh_client("alias").config == SSHConfig("alias")
        assert get_ssh_client("runpod-h10").config == SSHConfig("runpod-h10")
        assert "did you mean 'runpod-h100'? Taken as a host name" in caplog.text
        with pytest.raises(ControllerError, match="'all' is not the name of one host") as refused:
            get_ssh_client("all")
        assert refused.value.code == "hosts.not_found"
    finally:
        await close_all_clients()
    assert get_ssh_client("runpod-h100") is not client
    await close_all_clients()


async def test_another_row_that_is_wrong_refuses_no_host(home: Path) -> None:
    (home / "hosts.yaml").write_text("hosts:\n  bad: {user: '${UNSET_4711}'}\n  odd: {prot: 2}\n  good: {port: 2200}\n")
    try:
        assert get_ssh_client("good").config == SSHConfig("good", port=2200)
        with pytest.raises(ControllerError, match="UNSET_4711 is not set"):
            get_ssh_client("bad")
        with pytest.raises(ControllerError, match="did you mean 'port'"):
            get_ssh_client("odd")
    finally:
        await close_all_clients()


async def test_commands_by_name_need_no_client(server: OpenSSHServer, home: Path) -> None:
    (home / "hosts.yaml").write_text(f"web01: {{host: {server.target}, key_path: {server.identity}}}\n")
    try:
        assert (await run_ssh_command("web01", "echo hello", timeout=LONG)).output == "hello"
        tried = await run_ssh_command_async(
            "web01", "cd; echo x >> tries; test -s nope", max_retries=2, retry_delay=0.01
        )
        assert (tried.success, (home / "tries").read_text()) == (False, "x\nx\n")
        here = await asyncio.to_thread(
            run_ssh_command_sync, "127.0.0.1", "echo $A", port=server.port, key_path=str(server.identity), env={"A": 1}
        )
        assert here.stdout == "1\n"
    finally:
        await close_all_clients()


# -- the executor (seed 002) -----------------------------------------------------------------------------------------


class Machine:
    def __init__(self, tailscale_hostname: str | None, id: str = "m1") -> None:
        self.id = id
        self.tailscale_hostname = tailscale_hostname


@pytest.fixture
async def executor(server: OpenSSHServer) -> AsyncIterator[SSHExecutor]:
    async with SSHExecutor(key_path=str(server.identity)) as made:
        yield made


def machine(server: OpenSSHServer) -> Machine:
    return Machine(f"127.0.0.1:{server.port}")


async def test_a_valid_command_gives_status_output_and_duration(executor: SSHExecutor, server: OpenSSHServer) -> None:
    result = await executor.execute(machine(server), "echo out; echo err >&2")
    assert (result.exit_code, result.stdout, result.stderr, result.success) == (0, "out\n", "err\n", True)
    assert result.duration_ms > 0
    assert (await executor.execute(machine(server), "ls /nope")).exit_code == 2
    assert (await executor.execute(settings(server), "echo y")).stdout == "y\n"
    assert (await executor.execute(machine(server), "pwd; echo $A", cwd="/", env={"A": "b"})).stdout == "/\nb\n"


async def test_commands_within_five_minutes_share_a_connection(executor: SSHExecutor, server: OpenSSHServer) -> None:
    await executor.execute(machine(server), "true")
    results = await asyncio.gather(*[executor.execute(machine(server), f"echo {n}") for n in range(5)])
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(5)]
    assert server.count_in_log("Accepted publickey") == 1


async def test_an_expired_connection_is_replaced(server: OpenSSHServer) -> None:
    async with SSHExecutor(key_path=str(server.identity), idle_seconds=0.2) as executor:
        await executor.execute(machine(server), "true")
        async with asyncio.timeout(LONG):
            while server.session_pids():
                await asyncio.sleep(0.05)
        await executor.execute(machine(server), "true")
    assert server.count_in_log("Accepted publickey") == 2


async def test_an_empty_command_and_a_machine_without_a_name_are_value_errors(executor: SSHExecutor) -> None:
    with pytest.raises(ValueError, match="Command cannot be empty"):
        await executor.execute(Machine("web01"), " ")
    for nameless in (Machine(None), Machine(""), object()):
        with pytest.raises(ValueError, match="has no tailscale_hostname"):
            await executor.execute(nameless, "true")


async def test_a_key_that_is_not_there_is_a_configuration_error(server: OpenSSHServer) -> None:
    async with SSHExecutor(key_path="/nope/id_homelabcmd") as executor:
        with pytest.raises(ConfigurationError, match="/nope/id_homelabcmd") as raised:
            await executor.execute(machine(server), "true")
    assert isinstance(raised.value, ValueError)
    assert raised.value.code == "host.config"


async def test_a_refused_login_is_one_attempt_and_a_clear_error(server: OpenSSHServer) -> None:
    (server.folder / "authorized_keys").write_text("")
    async with SSHExecutor(key_path=str(server.identity)) as executor:
        with pytest.raises(AuthenticationError, match="refused our authentication") as raised:
            await executor.execute(machine(server), "true")
    assert isinstance(raised.value, PermissionError)
    assert server.count_in_log("Connection from") == 2, "the fixture's probe, and one attempt"


async def test_a_host_that_is_away_is_tried_three_times(server: OpenSSHServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stop()
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(connections, "reach", functools.partial(transport.reach, pause=note))
    async with SSHExecutor() as executor:
        with pytest.raises(ConnectionError, match="Connection refused") as raised:
            await executor.execute(machine(server), "true")
        with pytest.raises(builtins.ConnectionError, match=r"no-such-host\.invalid"):
            await executor.execute(Machine("no-such-host.invalid"), "true")
    assert raised.value.code == "host.unreachable"
    assert pauses == [1.0, 2.0] * 2


async def test_a_command_that_takes_too_long_is_a_timeout_with_partial_output(
    executor: SSHExecutor, server: OpenSSHServer
) -> None:
    with pytest.raises(CommandTimeoutError) as raised:
        await executor.execute(machine(server), "echo partial; echo words >&2; sleep 4716", timeout=3)
    assert isinstance(raised.value, TimeoutError)
    assert (raised.value.stdout, raised.value.stderr) == ("partial\n", "words\n")
    assert raised.value.duration_ms >= 3000
    assert raised.value.code == "command.timeout"
    assert not leftovers(server, "4716")


@pytest.mark.parametrize("retry", [True, False])
async def test_a_dropped_command_is_run_once_more_where_that_was_asked_for(
    server: OpenSSHServer, home: Path, retry: bool
) -> None:
    command = "cd; echo x >> runs; test $(wc -l < runs) -eq 2 || sleep 4717; echo second"
    async with SSHExecutor(key_path=str(server.identity), retry_on_drop=retry) as executor:
        call = asyncio.ensure_future(executor.execute(machine(server), command))
        async with asyncio.timeout(LONG):
            while not leftovers(server, "sleep"):
                await asyncio.sleep(0.02)
            for pid in server.session_pids():
                os.kill(pid, 9)
            if retry:
                assert (await call).stdout == "second\n"
            else:
                with pytest.raises(ConnectionError) as raised:
                    await call
                assert raised.value.code == "channel.lost"


async def test_a_batch_stops_at_the_first_failure(
    executor: SSHExecutor, server: OpenSSHServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cronium")
    results = await executor.execute_commands(machine(server), ["echo 1", "exit 3", "echo 3"])
    assert [result.exit_code for result in results] == [0, 3]
    [record] = [record for record in caplog.records if record.message.startswith("command_batch_completed ")]
    assert (record.commands, record.completed, record.success) == (3, 2, False)  # type: ignore[attr-defined]
    assert record.duration_seconds >= 0  # type: ignore[attr-defined]


async def test_secrets_of_a_configuration_are_in_no_log_and_no_error(
    server: OpenSSHServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.stop()
    access = Access(known_hosts=str(server.known_hosts))
    config = settings(server, cloudflare_tunnel="ssh.example.com", cloudflare_service_token_secret="the-secret")
    client = SSHClient(config, access=access)
    result = await client.run_async("true")
    assert "cloudflare" in (result.error or "")
    assert "the-secret" not in f"{result!r}{client!r}{caplog.text}"


# -- the documentation -----------------------------------------------------------------------------------------------


async def test_every_example_of_the_documentation_runs(server: OpenSSHServer, home: Path) -> None:
    (home / "hosts.yaml").write_text(f"web01: {{host: {server.target}, key_path: {server.identity}}}\n")
    (home / "project").mkdir()
    pages = [(ROOT / "docs" / name).read_text() for name in ("commands.md", "background-jobs.md", "files.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "asyncio.run" not in block  # a program of its own; test_documented_commands runs it
    ]
    assert len(blocks) == 7
    known: dict[str, Any] = {}
    for block in blocks:
        code = compile(block, "commands.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        running = FunctionType(code, known)()
        if running is not None:
            await running
        assert known["result"].success if isinstance(known.get("result"), SSHResult) else True, known["result"]
    assert (home / "back.txt").read_text() == "words"
    assert (home / "logs/train.log").read_text() == "started\n"
    assert known["message"] == "Connected via direct"
    assert [result.exit_code for result in known["results"]] == [0, 1]
    assert known["name"]
    await close_all_clients()
