"""Servers that forbid something, and what the host's own processes owe to the connection that started them: nothing.

More of the same, rc files and forced commands above all, is in tests/sshd/test_unusual_servers.py; login shells and
servers without SFTP are in tests/sshd/test_deploying.py.
"""

import asyncio
import contextlib
import os
import pty
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from cronium_controller.errors import ControllerError
from cronium_controller.job import Job
from cronium_controller.payloads import load
from faults.figures import record
from faults.killing import supervisors_below
from remote_host import RemoteHost, collect
from runner_process import Host, is_running
from sshd.conftest import _nothing_unheard  # noqa: F401 - a fixture: nothing is only logged

NewHost = Callable[..., RemoteHost]
NO_SFTP = "Subsystem nothing internal-sftp"
AS_ASKED = 'ForceCommand exec sh -c "$SSH_ORIGINAL_COMMAND"'

COMMAND = "scripts/test --faults tests/faults/test_servers.py"
SHOWN: list[str] = []
"""Configurations whose test has passed."""


def sampled(configurations: Mapping[str, object], *ordinary: int) -> list[ParameterSet]:
    """Each configuration's name; all but the `ordinary` ones are tested in full runs only."""
    names = enumerate(configurations)
    return [pytest.param(name, marks=() if number in ordinary else pytest.mark.full) for number, name in names]


WORKING = {
    "one session": ["MaxSessions 1"],
    "one session, no SFTP": ["MaxSessions 1", NO_SFTP],
    "no SFTP and a forced command": [NO_SFTP, AS_ASKED],
    "no forwarding of any kind": ["DisableForwarding yes"],
    "no TCP forwarding, no stream forwarding": ["AllowTcpForwarding no", "AllowStreamLocalForwarding no"],
    "no terminal": ["PermitTTY no"],
    "no rc file, no environment": ["PermitUserRC no", "PermitUserEnvironment no"],
    "one login at a time": ["MaxStartups 1"],
    "compression and early rekeying": ["Compression yes", "RekeyLimit 64K"],
    "all of it": ["MaxSessions 1", NO_SFTP, AS_ASKED, "DisableForwarding yes", "PermitTTY no", "RekeyLimit 256K"],
}


@pytest.mark.sshd
@pytest.mark.frozen
@pytest.mark.parametrize("name", sampled(WORKING, 0, 2, 9))
async def test_it_works_all_the_same(new_host: NewHost, tmp_path: Path, name: str) -> None:
    """Output on both streams, the exit status, a cancel from a second controller; deployed where SFTP isn't the way."""
    host = new_host(root=tmp_path / "root" if NO_SFTP in WORKING[name] else None, options=WORKING[name])
    async with host.controller() as controller:
        text = "head -c 400000 /dev/zero; echo aside >&2; cronium.output done yes; exit 3"
        execution = await controller.submit(host.host, Job(load(host.script(text))))
        assert await collect(execution) == {"stdout": bytes(400_000), "stderr": b"aside\n"}
        result = await execution.result()
        assert (result.exit_code, result.output) == (3, {"done": "yes"})
        waiting = await controller.submit(host.host, Job(load(host.script("echo up; sleep 600")), execution_id="long"))
    async with host.controller() as controller:
        again = await controller.attach(waiting.id, host.host)
        again.cancel()
        assert (await again.result()).state == "cancelled"
    SHOWN.append(name)


@pytest.mark.sshd
@pytest.mark.frozen
async def test_fifty_jobs_in_flight_over_the_one_session_that_is_allowed(new_host: NewHost) -> None:
    host = new_host(options=["MaxSessions 1"])
    async with host.controller() as controller:
        job = Job(load(host.script("echo $CRONIUM_EXECUTION_ID; sleep 0.5")))
        executions = await asyncio.gather(*[controller.submit(host.host, job) for _ in range(50)])
        printed = await asyncio.gather(*[collect(execution) for execution in executions])
        assert [each["stdout"] for each in printed] == [execution.id.encode() + b"\n" for execution in executions]
        assert controller.connections_opened == 1


REFUSING = {
    "only SFTP": (["ForceCommand internal-sftp"], "deploy.failed"),
    "another account only": (["AllowUsers nobody-of-that-name"], "host.auth_failed"),
    "passwords only": (["PubkeyAuthentication no", "AuthenticationMethods any"], "host.auth_failed"),
    "a command that says no": (["ForceCommand echo closed on Mondays >&2; exit 9"], "deploy.failed"),
    "no session at all": (["MaxSessions 0"], "channel.lost"),
}


@pytest.mark.sshd
@pytest.mark.frozen
@pytest.mark.parametrize("name", sampled(REFUSING, 0, 2))
async def test_what_cannot_work_is_one_sentence(new_host: NewHost, tmp_path: Path, name: str) -> None:
    options, code = REFUSING[name]
    host = new_host(root=tmp_path / "root", options=options)
    with pytest.raises(ControllerError) as error:
        async with host.controller() as controller:
            await asyncio.wait_for(controller.submit(host.host, Job(load(host.script("true")))), 60)
    assert error.value.code == code
    assert error.value.message.startswith(f"{host.server.target}: ")
    assert "\n" not in error.value.message
    SHOWN.append(name)


@pytest.mark.full
def test_the_figure() -> None:
    """After the others: how many were shown."""
    assert len(SHOWN) == len(WORKING) + len(REFUSING)
    record("sshd configurations", f"{len(WORKING)} work, {len(REFUSING)} are one clear error", COMMAND)


# -- the supervisor and the login -----------------------------------------------------------------------------------


def start_on_terminal(host: Host, *words: object) -> tuple[int, int]:
    """Starts `cronium-runner WORDS` as the leader of a session on a real terminal; its pid and the other end."""
    argv = [*host.executable, *map(str, words)]
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(host.folder)
        os.execve(argv[0], argv, host.environment)
    return pid, master


def terminal_of(pid: int) -> int:
    """tty_nr of /proc/PID/stat (proc(5)); 0 is none."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[4])


@pytest.mark.parametrize("end", ["the terminal closes", "hang-up of the session", "hang-up of every process"])
def test_a_supervisor_owes_the_login_nothing(host: Host, end: str) -> None:
    """No controlling terminal, no descriptor of the login; it outlives a real terminal and the hang-up that follows."""
    gate = host.folder / "gate"
    text = f"echo up; while [ ! -e {gate} ]; do sleep 0.02; done; echo still here\n"
    foreground, master = start_on_terminal(host, "run", "--execution-id", "job", host.script(text))
    try:
        claim = host.wait_running("job", b"up")
        supervisor = claim["supervisor"]["pid"]
        script = next(line["script"]["pid"] for line in host.history("job") if "script" in line)
        assert terminal_of(foreground) != 0, "or the test shows nothing"
        assert supervisors_below(foreground) == [supervisor]
        for pid in (supervisor, script):
            assert terminal_of(pid) == 0
            assert os.getsid(pid) != os.getsid(foreground)
        standard = [os.readlink(f"/proc/{supervisor}/fd/{number}") for number in (0, 1, 2)]
        assert standard == ["/dev/null"] * 3
        links = [os.readlink(path) for path in Path(f"/proc/{supervisor}/fd").iterdir()]
        assert not [link for link in links if "pts" in link or "ptmx" in link], links
        match end:
            case "the terminal closes":
                os.close(master)
                master = -1
            case "hang-up of the session":
                os.killpg(foreground, signal.SIGHUP)
            case _:
                for pid in (foreground, supervisor):
                    os.kill(pid, signal.SIGHUP)
        assert is_running(supervisor)
        gate.touch()
        assert host.wait_result("job")["state"] == "succeeded"
        assert (host.execution("job") / "stdout").read_bytes() == b"up\nstill here\n"
    finally:
        gate.touch()
        drain_and_close(master)
        os.waitpid(foreground, 0)


def drain_and_close(master: int) -> None:
    """Lets whoever writes to the terminal end."""
    if master >= 0:
        with contextlib.suppress(OSError):
            while os.read(master, 65536):
                pass
        os.close(master)
