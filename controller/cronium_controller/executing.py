"""Raw commands on one host: over whichever of its connections lives, and ended there when their time is up.

Raises for what has no exit status; what a caller is told of that is `client`'s and `executor`'s. What is sent is
`remote_shell`'s text, one command on one connection `raw_command`'s.
"""

import asyncio
import contextlib
import math
import os
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from . import raw_command, remote_shell
from .connections import REFUSALS, Connections, asked_for
from .errors import ControllerError, UnreachableError, reason
from .hosts import Host, SSHConfig
from .logs import logger
from .pool import MAX_CONNECTIONS, Lease
from .raw_command import Completed, NotStartedError, Output
from .remote_shell import Folder, Variables
from .sessions import Connection
from .ssh_library import asyncssh
from .transport import routes

CHECK_SECONDS: Final = 10.0
"""For a question that any living host answers at once."""
_SHOWN: Final = 200
"""Characters of a command in the log."""
_log = logger("cronium.client")


COMMAND: Final = "command"
TREE: Final = "tree"
"""What is ended at a time-out: the command without what it has put into the background, or all of its processes."""


class NotInTimeError(UnreachableError):
    """The time was up before the command was started."""


@dataclass(frozen=True, slots=True)
class Executed:
    """A command's end, the route that it took, and the seconds all of it took."""

    done: Completed
    transport: str
    duration: float


class HostCommands:
    """The commands of one client. `host` and `connections` are asked for each call: both may change in between."""

    def __init__(
        self,
        name: str,
        config: SSHConfig,
        host: Callable[[], Host],
        connections: Callable[[], Connections],
        *,
        most: int = raw_command.MOST_KEPT,
        expands: bool = False,
    ) -> None:
        """`most` bytes of each stream are kept of a command whose output is not read as it comes.

        With `expands` folders, variables and the virtual environment are read as `remote_shell.expanded` says.
        """
        self._most = most
        self.expands = expands
        self._name = name
        self._config = config
        self._host = host
        self._connections = connections
        self.is_posix: bool | None = None
        """Whether the login shell reads POSIX sh; None until somebody has asked."""
        self.chores: set[asyncio.Task[Any]] = set()
        """What goes on after a call has returned: a command being ended, the shell being asked after."""

    async def execute(
        self,
        command: str,
        timeout: float | None = None,
        *,
        cwd: Folder | None = None,
        env: Variables | None = None,
        in_sh: bool = False,
        output: Output | None = None,
        kill: str = COMMAND,
    ) -> Executed:
        """Runs a command to its end, or to its timeout in seconds (None: the configuration's; `math.inf`: none).

        The timeout counts from this call on, with making a connection. With `in_sh` the command is POSIX sh whatever
        the login shell is. With `output` that is awaited with each piece of output, and nothing is kept. `kill` says
        what is ended at the timeout. Raises NotInTimeError when it was not started by then, and ControllerError when
        there is no exit status and no timeout.
        """
        if kill not in (COMMAND, TREE):
            raise ControllerError("usage.invalid", f"kill={str(kill)[:40]!r}: write {COMMAND!r} or {TREE!r}")
        with asked_for(self._host()):
            folder, variables = remote_shell.folder(cwd), remote_shell.variables(env)
            remote_shell.check(command, folder, variables)
            began = time.monotonic()
            command_id = secrets.token_hex(16)
            mark = "" if output is not None else f" [{command_id}]"
            before = remote_shell.prepared(
                folder or self._config.work_dir,
                self._config.venv_activate,
                variables,
                command_id,
                expands=self.expands,
                mark=mark,
            )
            limit = self._config.command_timeout if timeout is None else timeout
            lease, running = await self._started_within(limit, command_id, before, command, in_sh, output)
            connection = lease.connection
            try:
                done = await self._wait(connection, running, began + limit - time.monotonic(), command_id, kill)
                if done.exit_status is None and not done.timed_out:
                    lease.retire()
                    raise raw_command.dropped(connection, "no exit status came")
            finally:
                lease.give_back()
            duration = time.monotonic() - began
            _log_end(self._name, command, done, duration)
            if self.is_posix is None and not done.timed_out:
                self.is_posix = False  # until known; asked once
                self.later(self._learn_shell())
            if mark and done.exit_status == 1 and done.stderr.rstrip().endswith(mark.encode()):
                raise self._no_venv()
            return Executed(done, connection.transport, duration)

    def _no_venv(self) -> ControllerError:
        script = remote_shell.venv_script(self._config.venv_activate or "")
        sentence = f"cannot read {script} there, which venv_activate names; correct it, or make the virtual environment"
        return ControllerError("host.config", sentence, host=self._name)

    async def _started_within(
        self, limit: float, command_id: str, before: str, command: str, in_sh: bool, output: Output | None
    ) -> tuple[Lease[Connection], raw_command.RunningCommand]:
        """As `_start`; raises NotInTimeError after `limit` seconds."""
        try:
            async with asyncio.timeout(None if math.isinf(limit) else limit):
                return await self._start(command_id, before, command, in_sh, output)
        except TimeoutError:
            host = self._host()
            where = " or ".join(way.address for way in routes(host)) or host.address
            raise NotInTimeError(
                "host.unreachable", f"no connection to {where} within {limit:g} s", host=host.name
            ) from None

    def no_room(self, why: str) -> UnreachableError:
        """The server has room for no further session, also after having been asked on several connections."""
        return UnreachableError("host.unreachable", f"the server opens no session: {why}", host=self._name)

    def later(self, chore: Coroutine[Any, Any, Any]) -> None:
        """Something to be done meanwhile; `wait_chores` waits for it."""
        task = asyncio.ensure_future(chore)
        self.chores.add(task)
        task.add_done_callback(self.chores.discard)

    async def wait_chores(self) -> None:
        """Waits until nothing goes on any more, no longer than ending a command may take."""
        if self.chores:
            await asyncio.wait(list(self.chores), timeout=raw_command.ENDING_SECONDS + raw_command.LAST_WORDS_SECONDS)

    async def _wait(
        self, connection: Connection, running: raw_command.RunningCommand, limit: float, command_id: str, kill: str
    ) -> Completed:
        """A command's end. After its timeout, or when it is left early, it is ended on its host."""
        try:
            if await running.is_over(max(0.0, limit)):
                return await running.completed()
        except BaseException:
            self.later(self._leave(connection, running, command_id, kill))
            raise
        was_ended = await self._end_heard(connection, running, command_id, kill)
        return replace(await running.completed(), exit_status=None, timed_out=True, was_ended=was_ended)

    async def _leave(
        self, connection: Connection, running: raw_command.RunningCommand, command_id: str, kill: str
    ) -> None:
        """Ends a command that nobody waits for; an error of whoever listens was told to them or concerns nobody."""
        with contextlib.suppress(Exception):
            await self._end_heard(connection, running, command_id, kill)
            await running.completed()

    async def _end_heard(
        self, connection: Connection, running: raw_command.RunningCommand, command_id: str, kill: str
    ) -> bool:
        """Ends a command. What it had written, and what it says to that, is still heard."""
        try:
            was_ended = await self._end(connection, command_id, kill)
            await running.is_over(raw_command.LAST_WORDS_SECONDS if was_ended else 0)
            return was_ended
        finally:
            running.close()

    async def _start(
        self, command_id: str, before: str, command: str, in_sh: bool, output: Output | None
    ) -> tuple[Lease[Connection], raw_command.RunningCommand]:
        """The command, started on a connection; its lease is then the caller's.

        A connection that turns out to be dead is replaced, as long as nothing was sent on it.
        """
        text = remote_shell.composed(command, before, is_posix=bool(self.is_posix))
        if in_sh:
            text = remote_shell.in_sh(f"{before}; {command}")
        refused = dead = 0
        while True:
            lease = await self._connections().acquire(self._host())
            running = raw_command.RunningCommand(self._name, output, most=self._most)
            starting = partial(raw_command.start, lease.connection, running, text, self._config.connect_timeout)
            try:
                if not self._config.use_control_master:
                    lease.retire()
                await (lease.connection.open_session(starting) if refused else starting())
                return lease, running
            except asyncssh.ChannelOpenError as error:
                lease.note_refused()
                lease.give_back()
                refused += 1
                if refused == REFUSALS:
                    raise self.no_room(reason(error)) from None
            except NotStartedError as error:
                lease.suspect()
                lease.connection.abort()
                lease.give_back()
                dead += 1
                if dead > MAX_CONNECTIONS:
                    raise UnreachableError(
                        "host.unreachable", f"each connection ends at once: {error}", host=self._name
                    ) from None
            except BaseException as error:
                if isinstance(error, UnreachableError):
                    lease.retire()
                elif running.is_open:  # we were told to stop, and it may have been started
                    self.later(self._leave(lease.connection, running, command_id, COMMAND))
                else:
                    self.later(self._end(lease.connection, command_id, COMMAND))
                lease.give_back()
                raise

    async def _end(self, connection: Connection, command_id: str, kill: str) -> bool:
        """Ends a command's processes, over another connection where this one takes no further session."""
        try:
            async with asyncio.timeout(raw_command.ENDING_SECONDS):
                try:
                    return await raw_command.end(connection, command_id, tree=kill == TREE)
                except (asyncssh.Error, NotStartedError, UnreachableError):
                    other = await self._connections().open(self._host())
                try:
                    return await raw_command.end(other, command_id, tree=kill == TREE)
                finally:
                    await other.close()
        except (TimeoutError, asyncssh.Error, NotStartedError, ControllerError, OSError):
            return False

    async def _learn_shell(self) -> None:
        """Asks once whether the login shell reads sh, so that commands need no sh in front of it."""
        try:
            async with self._connections().lease(self._host()) as lease:
                done = await raw_command.asked(lease.connection, 'echo "$SHELL"', CHECK_SECONDS)
        except (asyncssh.Error, NotStartedError, ControllerError, OSError):
            return
        shell = done.stdout.decode("utf-8", "replace").strip()
        self.is_posix = done.exit_status == 0 and os.path.basename(shell) in remote_shell.POSIX_SHELLS


def timeout_sentence(done: Completed) -> str:
    """What is said of a command whose time was up."""
    if done.was_ended:
        return "the command took too long and was ended; what it had written is kept"
    return "the command took too long, and ending it could not be confirmed: it may still be running on the host"


def _log_end(host: str, command: str, done: Completed, duration: float) -> None:
    told = {"host": host, "command": command[:_SHOWN], "duration": round(duration, 3)}
    if done.timed_out:
        _log.error("command_timeout", extra={**told, "was_ended": done.was_ended})
    else:
        _log.info("command_executed", extra={**told, "exit_status": done.exit_status})
