"""Raw commands on one host, and files to and from it: no runner is needed there (seeds 000 and 001).

Results are `SSHResult`, whatever happened: nothing here raises for a host that
is away or a command that fails. `executor` is the same with exceptions. Jobs, which survive a lost connection, are
`dispatch`'s.

Clients share connections (`sharing`). Asynchronous calls use those of the event loop that they are made in; synchronous
ones share a loop in a thread.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import background, copying, remote_shell, sharing, ssh_words
from .access import Access
from .connections import REFUSALS, Connections
from .errors import ControllerError, reason
from .executing import CHECK_SECONDS, COMMAND, Executed, HostCommands, NotInTimeError, timeout_sentence
from .health import SSHHealth
from .hosts import Host, SSHConfig
from .logs import logger
from .own_store import own_memory
from .raw_command import MOST_KEPT, Output
from .remote_shell import Folder, Variables
from .ssh_library import asyncssh
from .transport import routes

if TYPE_CHECKING:
    from .dispatch import Controller

COPY_SECONDS: Final = 300.0
FAILED: Final = 255
"""`returncode` when no exit status is known: nothing was started, or the connection was lost. `ssh` ends with it."""
TIMED_OUT: Final = -1
"""`returncode` when the time was up."""
_TIDYING_SECONDS: Final = 1.0
"""For a copy that was given up to remove what it has written; a server that hangs may never let it."""
_log = logger("cronium.client")
_T = TypeVar("_T")


@dataclass(slots=True)
class SSHResult:
    """What became of one call; true when it succeeded.

    When there is no exit status, `error` is a sentence, `stderr` ends with it and with what `ssh` says there, and
    `returncode` is 255, as `ssh` has it, or -1 when the time was up. `transport_used` is tailscale, direct, cloudflare
    or local; None when no connection was made. `elapsed_ms` includes making one. Bytes that aren't UTF-8 are replaced
    in `stdout` and `stderr`.
    """

    success: bool
    returncode: int
    stdout: str
    stderr: str
    elapsed_ms: float
    command: str
    host: str
    transport_used: str | None = None
    timed_out: bool = False
    error: str | None = None
    execution_id: str | None = None
    """Of a command in the background that is a job."""
    error_code: str | None = None
    """What `error` goes by in docs/errors.md."""
    truncated: bool = False
    """Whether a stream was longer than the client's `max_output`: `stdout` and `stderr` are then its beginning."""

    def __bool__(self) -> bool:
        return self.success

    @property
    def output(self) -> str:
        """Standard output, then standard error, without white space around them."""
        return f"{self.stdout}\n{self.stderr}".strip()


class SSHClient:
    """Commands and files on one host. Use one for each host (`get_ssh_client`), from as many tasks as you like."""

    _expands = False
    """Whether folders, variables and the virtual environment are read as `remote_shell.expanded` says."""

    def __init__(
        self,
        config: SSHConfig,
        *,
        name: str | None = None,
        access: Access | None = None,
        controller: "Controller | None" = None,
        host: Host | None = None,
        max_age: float | None = None,
        max_output: int = MOST_KEPT,
    ) -> None:
        """`name` is what the host is called in logs and known_hosts, its address by default. `access` has the rest:
        host keys, and who is asked for a passphrase; its timeouts are the configuration's. With `controller` its
        connections to `host` are used, in one event loop, and left open (`Controller.client`). A connection older than
        `max_age` seconds gets no further call, and is closed when the last one on it has ended. `max_output` is how
        many bytes of each stream a result holds; what comes behind is dropped, and the result is `truncated`."""
        self._config = config
        self._name = name or config.host
        self._access = access or default_access()
        self._controller = controller
        self._shared_host = host
        self._max_age = max_age
        self._known_host: tuple[SSHConfig, Host] | None = None
        """What the settings were when they were read last, and the host that they make."""
        self._memory = own_memory() if controller is None else controller.memory
        self._alone = object()
        """Owns the connections of a client that shares none."""
        self._commands = HostCommands(
            self._name, config, lambda: self._host, self._connections, most=max_output, expands=self._expands
        )

    def __repr__(self) -> str:
        return f"<SSHClient {self._name} {'healthy' if self.health.is_healthy else 'unhealthy'}>"

    @property
    def config(self) -> SSHConfig:
        """The settings. Changed ones count from the next call, or the next connection, on."""
        return self._config

    @property
    def name(self) -> str:
        """What the host is called."""
        return self._name

    @property
    def health(self) -> SSHHealth:
        """How its calls went; every path counts."""
        return self._memory.of(self._host).calls

    # -- commands ----------------------------------------------------------------------------------------------------

    async def run_async(
        self,
        command: str,
        timeout: float | None = None,
        cwd: Folder | None = None,
        env: Variables | None = None,
        *,
        kill: str = COMMAND,
    ) -> SSHResult:
        """Runs a command in the account's login shell and waits for its end. `timeout` in seconds, with connecting.

        `cwd` and `env` are put in front of it (after the configuration's `work_dir` and `venv_activate`). They are part
        of a command line, which everybody on the host can see: no place for secrets. After a timeout the command is
        ended on the host, and what it had written is in the result. What it has put into the background goes on, as
        after `ssh`: processes in another session, and those that ignore SIGHUP and hold none of its streams; with
        `kill="tree"` they end, too. Of each stream the result holds the first 16 MiB (`max_output` of the client), and
        says `truncated` where there was more; for all of it see `execute`.
        """
        return await self._told(command, timeout, self.execute(command, timeout, cwd=cwd, env=env, kill=kill))

    def run(
        self,
        command: str,
        timeout: float | None = None,
        cwd: Folder | None = None,
        env: Variables | None = None,
        *,
        kill: str = COMMAND,
    ) -> SSHResult:
        """`run_async` for programs without an event loop; blocks."""
        return _wait_for(self.run_async(command, timeout, cwd, env, kill=kill))

    async def run_async_with_retry(
        self,
        command: str,
        timeout: float | None = None,
        max_retries: int = 3,
        retry_delay: float = 2.0,
        cwd: Folder | None = None,
        env: Variables | None = None,
    ) -> SSHResult:
        """Runs a command until it succeeds, at most `max_retries` times, waiting `retry_delay` seconds in between.

        For commands that may run twice: a failed attempt may have done something.
        """
        result = await self.run_async(command, timeout, cwd, env)
        for _ in range(max_retries - 1):
            if result.success:
                break
            await asyncio.sleep(retry_delay)
            result = await self.run_async(command, timeout, cwd, env)
        return result

    async def run_background(
        self,
        command: str,
        log_file: Folder | None = None,
        cwd: Folder | None = None,
        env: Variables | None = None,
        *,
        with_runner: bool = True,
    ) -> SSHResult:
        """Starts a command that goes on by itself; `stdout` is its process id. Returns as soon as it was started.

        All it prints goes to `log_file`, whose folder is made. Where the host has a runner it is a job, for 24 hours at
        most: `execution_id` is what `cronium logs`, `status` and `cancel` take, and what it has left running ends with
        it. Elsewhere, and without `with_runner`, it is started with nohup.
        """
        folder, variables = remote_shell.folder(cwd), remote_shell.variables(env)
        began = time.monotonic()
        try:
            remote_shell.check(command, folder, variables)
            wanted = background.Wanted(
                command,
                remote_shell.folder(log_file),
                folder or self._config.work_dir,
                self._config.venv_activate,
                variables,
            )
            root = self._runner_root() if with_runner else None
            executed, started = await background.start(self._commands, self._host, wanted, root, self._controlling)
        except ControllerError as error:
            return self._failure(command, error, time.monotonic() - began)
        result = self._result(command, executed, self._config.command_timeout)
        if started is not None:
            result.stdout, result.execution_id = f"{started.pid}\n", started.execution_id
        return result

    async def get_process_memory(self, pid: int) -> tuple[int, str] | None:
        """Resident memory in MB and the name of a process on the host; None when there is no such process."""
        result = await self.run_async(f"cat /proc/{int(pid)}/status")
        told = dict(line.partition(":")[::2] for line in result.stdout.splitlines())
        if not result.success or "VmRSS" not in told:
            return None
        return int(told["VmRSS"].split()[0]) // 1024, told.get("Name", "").strip()

    async def check_connectivity(self) -> tuple[bool, str]:
        """Whether the host runs a command now, and by which route, or why not."""
        self._memory.of(self._host).breaker.allow()  # whoever asks this wants to know now
        connecting = len(routes(self._host)) * self._config.connect_timeout
        result = await self.run_async("echo ok", CHECK_SECONDS + connecting)
        if result.success and "ok" in result.stdout:
            return True, f"Connected via {result.transport_used}"
        return False, result.error or result.stderr.strip() or f"exit status {result.returncode}"

    def is_alive(self) -> bool:
        """Whether the host runs a command now; blocks."""
        alive, _ = _wait_for(self.check_connectivity())
        return alive

    # -- files -------------------------------------------------------------------------------------------------------

    async def scp_to_async(self, local_path: Folder, remote_path: Folder, timeout: float = COPY_SECONDS) -> SSHResult:
        """Copies a file to the host, by SFTP or through the shell where there is none. `~/` is the home there.

        It appears whole or not at all.
        """
        return await self._copied(
            copying.upload, local_path, remote_path, f"scp {local_path} -> {remote_path}", timeout
        )

    async def scp_from_async(self, remote_path: Folder, local_path: Folder, timeout: float = COPY_SECONDS) -> SSHResult:
        """Copies a file from the host, likewise."""
        return await self._copied(
            copying.download, remote_path, local_path, f"scp {remote_path} -> {local_path}", timeout
        )

    def scp_to(self, local_path: Folder, remote_path: Folder, timeout: float = COPY_SECONDS) -> SSHResult:
        """`scp_to_async`; blocks."""
        return _wait_for(self.scp_to_async(local_path, remote_path, timeout))

    def scp_from(self, remote_path: Folder, local_path: Folder, timeout: float = COPY_SECONDS) -> SSHResult:
        """`scp_from_async`; blocks."""
        return _wait_for(self.scp_from_async(remote_path, local_path, timeout))

    # -- connections -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Closes its connections, those that other clients share excepted. The next call opens one again."""
        await self._commands.wait_chores()
        if self._controller is None:
            await sharing.leave(self)

    async def __aenter__(self) -> "SSHClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

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
        """Runs a command as `run_async` does. Raises ControllerError when there is no exit status and no timeout.

        With `in_sh` the command is POSIX sh whatever the login shell is. With `output` that is awaited with each piece
        of output (stream 1 or 2, bytes) as it comes, and nothing is kept; a timeout of `math.inf` is none. Cancelled,
        it has the command ended, and `output` awaited with what that still says, until `close` returns.
        """
        return await self._commands.execute(command, timeout, cwd=cwd, env=env, in_sh=in_sh, output=output, kill=kill)

    @property
    def _host(self) -> Host:
        """The host as it is configured now."""
        if self._shared_host is not None:
            return self._shared_host
        if self._known_host is None or self._known_host[0] != self._config:
            host = replace(self._config.to_host(self._name), max_age=self._max_age)
            self._known_host = replace(self._config), host
        return self._known_host[1]

    def _connections(self) -> Connections:
        if self._controller is not None:
            return self._controller.connections
        owner = None if self._config.use_control_master else self._alone
        return sharing.connections_for(self, self._host, self._access, self._memory, owner=owner)

    def _controlling(self) -> "contextlib.AbstractAsyncContextManager[Controller]":
        """A controller over these connections."""
        from .dispatch import Controller

        if self._controller is not None:
            return contextlib.nullcontext(self._controller)
        return Controller(access=self._access, connections=self._connections())

    def _runner_root(self) -> str:
        from .runners import Runners

        return Runners().root if self._controller is None else self._controller.runner_root

    # -- results -----------------------------------------------------------------------------------------------------

    async def _told(self, command: str, timeout: float | None, executing: Coroutine[Any, Any, Executed]) -> SSHResult:
        began = time.monotonic()
        try:
            executed = await executing
        except ControllerError as error:
            return self._failure(command, error, time.monotonic() - began)
        return self._result(command, executed, self._config.command_timeout if timeout is None else timeout)

    def _result(self, command: str, executed: Executed, timeout: float) -> SSHResult:
        done = executed.done
        is_good = done.exit_status == 0 and not done.timed_out
        self._count(
            None if is_good else timeout_sentence(done) if done.timed_out else f"exit status {done.exit_status}"
        )
        stderr = done.stderr.decode("utf-8", "replace")
        if done.timed_out:
            stderr = _ended_with(stderr, f"Command timed out after {timeout:g}s: {timeout_sentence(done)}")
        return SSHResult(
            success=is_good,
            returncode=TIMED_OUT if done.exit_status is None else done.exit_status,
            stdout=done.stdout.decode("utf-8", "replace"),
            stderr=stderr,
            elapsed_ms=executed.duration * 1000,
            command=command,
            host=self._name,
            transport_used=executed.transport,
            timed_out=done.timed_out,
            error=timeout_sentence(done) if done.timed_out else None,
            error_code="command.timeout" if done.timed_out else None,
            truncated=done.truncated,
        )

    def _failure(self, command: str, error: ControllerError, duration: float) -> SSHResult:
        self._count(error.message)
        _log.warning(
            "command_failed", extra={"host": self._name, "duration": round(duration, 3), "reason": error.message}
        )
        timed_out = isinstance(error, NotInTimeError)
        return SSHResult(
            success=False,
            returncode=TIMED_OUT if timed_out else FAILED,
            stdout="",
            stderr=_ended_with(error.message, self._words(error)),
            elapsed_ms=duration * 1000,
            command=command,
            host=self._name,
            timed_out=timed_out,
            error=error.message,
            error_code=error.code,
        )

    def _words(self, error: ControllerError) -> str | None:
        with contextlib.suppress(ControllerError):  # settings that make no host
            return ssh_words.words(error, self._host)
        return None

    async def _copied(
        self, copy: copying.Copy, source: Folder, target: Folder, command: str, timeout: float
    ) -> SSHResult:
        began = time.monotonic()
        try:
            transport, is_done = await self._copy(copy, os.fspath(source), os.fspath(target), timeout)
        except ControllerError as error:
            return self._failure(command, error, time.monotonic() - began)
        self._count(None if is_done else "a copy took too long")
        took = (time.monotonic() - began) * 1000
        if is_done:
            return SSHResult(True, 0, "", "", took, command, self._name, transport)
        sentence = f"{self._name}: the copy took longer than {timeout:g} s and was given up; nothing was replaced"
        return SSHResult(
            success=False,
            returncode=TIMED_OUT,
            stdout="",
            stderr=f"{sentence}\nSCP timed out after {timeout:g}s\n",
            elapsed_ms=took,
            command=command,
            host=self._name,
            transport_used=transport,
            timed_out=True,
            error=sentence,
            error_code="command.timeout",
        )

    async def _copy(self, copy: copying.Copy, source: str, target: str, timeout: float) -> tuple[str | None, bool]:
        """The route, None when there was no time to find one, and whether it was done in time."""
        ends_at = time.monotonic() + timeout
        for _ in range(REFUSALS):
            try:
                async with asyncio.timeout(max(0.0, ends_at - time.monotonic())):
                    lease = await self._connections().acquire(self._host)
            except TimeoutError:
                return None, False
            try:
                copying_it = asyncio.ensure_future(copy(lease.connection, source, target))
                try:
                    await asyncio.wait([copying_it], timeout=max(0.0, ends_at - time.monotonic()))
                    if not copying_it.done():
                        lease.retire()  # it may hang for as long as the server does
                        return lease.connection.transport, False
                    await copying_it
                    return lease.connection.transport, True
                except asyncssh.ChannelOpenError as error:
                    lease.note_refused()
                    why = reason(error)
                finally:
                    if not copying_it.done():
                        copying_it.cancel()
                        self._commands.later(_settled(copying_it))
                        await asyncio.wait([copying_it], timeout=_TIDYING_SECONDS)
            finally:
                lease.give_back()
        raise self._commands.no_room(why)

    def _count(self, error: str | None) -> None:
        with contextlib.suppress(ControllerError):  # settings that make no host have no health either
            self._memory.note_call(self._host, error)


def _ended_with(text: str, line: str | None) -> str:
    """A text with one more line at its end."""
    text = text if not text or text.endswith("\n") else f"{text}\n"
    return text if line is None else f"{text}{line}\n"


async def _settled(task: "asyncio.Task[None]") -> None:
    """Waits for a task that was cancelled; whatever it still says is nobody's."""
    await asyncio.gather(task, return_exceptions=True)


def default_access() -> Access:
    return Access(known_hosts=os.environ.get("CRONIUM_KNOWN_HOSTS") or None)


# -- without an event loop ---------------------------------------------------------------------------------------------

_loop: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()


def _wait_for(work: Coroutine[Any, Any, _T]) -> _T:
    """Runs it in the thread that all synchronous calls share, and waits."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="cronium-ssh", daemon=True).start()
    future = asyncio.run_coroutine_threadsafe(work, _loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
