"""Explaining a host from the controller's side: the route, the server's limits, and what the host's own runner says.

Puts the runner there, as any job would. Every question is asked once and bounded in time; what fails is a finding, not
an error, and the rest is asked all the same. The host's half is the runner's `doctor`.
"""

import asyncio
import os
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple

from cronium_runner.wire import exactjson
from cronium_runner.wire.text import LONGEST_WORDS, clean, clean_values, last_words

from .connection import SSHConnection
from .deploy.installed_forms import version_of
from .deploy.update_policy import UpdatePolicy, in_use, may_update
from .errors import ControllerError, LoginShellError, reason
from .install import Site, deploy, look
from .runners import MACHINES, Runners
from .sessions import Connection
from .ssh_library import asyncssh
from .starting import update_refused

ASK_SECONDS: Final = 15.0
MANY_SESSIONS: Final = 11
"""One more than OpenSSH's default MaxSessions: whether there is a limit that anybody will meet."""
SLOW_SHELL_SECONDS: Final = 0.05
"""A login shell that takes longer does something at every start (the measured case was one that set up pyenv)."""
CLOCK_SKEW_SECONDS: Final = 60.0
"""The leeway that tokens have; beyond it, times of results are misleading."""

OK: Final = "ok"
NOTE: Final = "note"
BAD: Final = "bad"


class Finding(NamedTuple):
    """One thing that was looked at: `level` is ok, note or bad; `advice` says what to do, if anything."""

    name: str
    level: str
    seen: str
    advice: str = ""


async def examine(connection: Connection, runners: Runners) -> AsyncIterator[Finding]:
    """Findings as they come; the last ones are the host's own. Raises LoginShellError, as it lets nothing be asked."""
    if connection.host.is_local:
        from .local_connection import described

        yield Finding("connection", OK, described())
    else:
        async for finding in _server(connection):
            yield finding
    async for finding in _runner(connection, runners):
        yield finding


async def _server(connection: Connection) -> AsyncIterator[Finding]:
    """What SSH and the account's shell there let us do."""
    checks: list[Callable[[Any], Awaitable[Finding]]] = [_login_shell, _file_transfer, _sessions, _forwarding]
    if isinstance(connection, SSHConnection):
        version = clean(connection.ssh.get_extra_info("server_version", "an unknown server"), LONGEST_WORDS)
        seen = f"{version} as {connection.ssh.get_extra_info('username')}"
    else:
        seen = "by OpenSSH's own program"
    yield Finding("connection", OK, f"{seen}, route {connection.transport}")
    for check in checks:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                yield await check(connection)
        except LoginShellError:
            raise  # it would say the same to each further question
        except (TimeoutError, asyncssh.Error, OSError, ControllerError) as error:
            yield Finding(check.__name__.strip("_").replace("_", " "), NOTE, f"no answer: {reason(error)}")


async def _login_shell(connection: Connection) -> Finding:
    began = time.monotonic()
    done = await connection.run("echo cronium", timeout=ASK_SECONDS)
    took = time.monotonic() - began
    if done.stdout.strip() != b"cronium" or done.stderr:
        printed = last_words((done.stdout + done.stderr).replace(b"cronium", b""))
        return Finding("login shell", NOTE, f"prints by itself: '{printed}'", "jobs don't mind; raw commands do")
    if took > SLOW_SHELL_SECONDS:
        return Finding(
            "login shell", NOTE, f"{took * 1000:.0f} ms", "its rc files are slow; jobs pay that once, not each"
        )
    return Finding("login shell", OK, f"{took * 1000:.0f} ms")


async def _file_transfer(connection: Connection) -> Finding:
    try:
        sftp = await connection.open_session(connection.start_sftp)
    except (asyncssh.ChannelOpenError, asyncssh.SFTPError):
        return Finding("file transfer", NOTE, "no SFTP", "files go through the shell instead")
    version = sftp.version
    sftp.exit()
    return Finding("file transfer", OK, f"SFTP, version {version}")


async def _sessions(connection: Connection) -> Finding:
    """How many sessions one connection takes at once."""
    held = []
    try:
        for _ in range(MANY_SESSIONS):
            held.append(await connection.start("cat"))  # waits for the server to clean up after earlier sessions
    except asyncssh.ChannelOpenError:
        pass
    finally:
        for process in held:
            process.close()
    if not held:
        return Finding("sessions", BAD, "none", "let the server open sessions (MaxSessions above 0)")
    seen = f"{len(held)} at once on one connection"
    if len(held) == MANY_SESSIONS:
        return Finding("sessions", OK, f"at least {seen}")
    # All jobs share one session; only raw commands and transfers need more.
    return Finding("sessions", OK if len(held) > 1 else NOTE, f"{seen} (MaxSessions)")


async def _forwarding(connection: Connection) -> Finding:
    path = f"/tmp/cronium-doctor-{os.urandom(8).hex()}"  # noqa: S108 - removed at once, and what connects is let go
    try:
        await connection.forward(path, None, _Refusing)
        await connection.run(f"rm -f {shlex.quote(path)}", timeout=ASK_SECONDS)  # sshd leaves the socket there
        return Finding("forwarding", OK, "reverse forwarding of sockets")
    except asyncssh.ChannelListenError:
        pass
    try:
        await connection.forward("127.0.0.1", 0, _Refusing)
        return Finding("forwarding", NOTE, "reverse forwarding of TCP ports only (AllowStreamLocalForwarding)")
    except asyncssh.ChannelListenError:
        return Finding("forwarding", NOTE, "none", "bundled mode works; API mode needs AllowStreamLocalForwarding")


class _Refusing(asyncio.Protocol):
    """Closes every connection that arrives through the forwarding under test."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _told(printed: bytes) -> tuple[list[Finding], float]:
    """What the runner's doctor has found, and the time there. Raises ValueError for anything else than that."""
    try:
        told = clean_values(exactjson.loads(printed[printed.index(b"{") :]))
        keys = ("name", "level", "seen", "advice")
        return [Finding(*(str(one[key]) for key in keys)) for one in told["findings"]], float(told["time"])
    except (LookupError, TypeError, OverflowError) as error:
        raise ValueError(error) from None


async def _present_or_deployed(connection: Connection, runners: Runners) -> tuple[str, str]:
    """The path of the runner that a job would use, and a phrase about it; put there where a job would do that.

    Raises DeployError and UnreachableError.
    """
    policy = runners.update_policy(connection.host)
    if policy is not UpdatePolicy.ALWAYS:
        site = Site(connection, runners)
        machine, listing = await look(site)
        folders = [binary.folder for binary in site.runners.likely() if binary.machine == MACHINES.get(machine)]
        ours = folders[0] if folders else None
        if ours in listing:
            return site.path(str(ours)), f"{version_of(str(ours))} at {site.path(str(ours))}, was there"
        if not may_update(policy, in_use(listing, [], ours), None if ours is None else version_of(ours)):
            if not listing:
                raise update_refused(site, policy, {})
            return site.path(
                listing[0]
            ), f"{version_of(listing[0])} at {site.path(listing[0])}, kept by the update policy"
    deployment, binary = await deploy(connection, runners)
    how = f"uploaded now by {deployment.method}" if deployment.uploaded_bytes else "was there"
    return deployment.path, f"{binary.version} at {deployment.path}, {how}"


async def _runner(connection: Connection, runners: Runners) -> AsyncIterator[Finding]:
    try:
        path, seen = await _present_or_deployed(connection, runners)
        yield Finding("runner", OK, seen)
        asked = time.time()
        done = await connection.run(f"{shlex.quote(path)} doctor --json", timeout=ASK_SECONDS)
        between = (asked + time.time()) / 2
        found, time_there = _told(done.stdout)
    except ControllerError as error:
        yield Finding("runner", BAD, error.message, "see docs/errors.md for the code " + error.code)
        return
    except ValueError:
        yield Finding("runner", BAD, "its doctor says nothing that can be read", "update the runner: cronium deploy")
        return
    for finding in found:
        yield finding
    skew = time_there - between
    level = OK if abs(skew) < CLOCK_SKEW_SECONDS else NOTE
    yield Finding("clock against ours", level, f"{skew:+.1f} s", "" if level == OK else "set one of the clocks")
