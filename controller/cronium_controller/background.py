"""Commands that go on by themselves: as a job where the host has a runner, else with nohup.

One command on the host looks after the log file and either starts it or says that there is a runner. As a job it has
an id, so that `cronium logs`, `status` and `cancel` work from any process; everything that it has started ends with it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final, NamedTuple

from cronium_runner.wire.results import Outcome

from . import remote_shell
from .errors import ControllerError, RefusedError, UnreachableError
from .executing import Executed, HostCommands
from .hosts import Host
from .logs import logger

if TYPE_CHECKING:
    from .dispatch import Controller
    from .execution import Execution

_HAS_RUNNER: Final = "runner"
LONGEST_SECONDS: Final = 24 * 3600.0
"""What a job may take; with nohup there is no limit."""
_STARTING_SECONDS: Final = 60.0
"""From being accepted to running takes milliseconds, and where the disk stalls many seconds."""
_PAUSE: Final = 0.02
_log = logger("cronium.client")

_SCRIPT: Final = """\
# $1: sh for folder, environment and `log`; $2: the command, for the login shell. Its process is this one, so that
# whoever watches the process id watches the command; tee is beside it and ends with its output.
eval "$1" || exit 1
if [ -n "$log" ]; then
  mkfifo -m 600 "$CRONIUM_WORK_DIR/.log" || exit 1
  tee -- "$log" < "$CRONIUM_WORK_DIR/.log" &
  exec "${SHELL:-sh}" -c "$2" > "$CRONIUM_WORK_DIR/.log" 2>&1
fi
exec "${SHELL:-sh}" -c "$2"
"""


class Wanted(NamedTuple):
    """A command that is to go on by itself; `log_file` takes all that it prints."""

    command: str
    log_file: str | None
    cwd: str | None
    venv: str | None
    env: Mapping[str, str] | None


class Started(NamedTuple):
    """A command that goes on: its process id on the host, and its execution's id where it is a job."""

    pid: int
    execution_id: str | None = None


async def start(
    commands: HostCommands,
    host: Host,
    wanted: Wanted,
    runner_root: str | None,
    controller: Callable[[], AbstractAsyncContextManager["Controller"]],
) -> tuple[Executed, Started | None]:
    """Starts it, with the runner that is below `runner_root` on the host or else with nohup.

    None when the command that was to start it failed: then it says why. Raises ControllerError when the host is lost.
    """
    executed = await _execute(commands, wanted, runner_root)
    if executed.done.exit_status != 0:
        return executed, None
    if _last_word(executed) == _HAS_RUNNER:
        async with controller() as controlling:
            started = await _submit(controlling, host, wanted, expands=commands.expands)
        if started is not None:
            return executed, started
        executed = await _execute(commands, wanted, None)
        if executed.done.exit_status != 0:
            return executed, None
    word = _last_word(executed)
    if not word.isdigit():
        raise ControllerError("host.config", f"the host told no process id, but {word[-80:]!r}", host=host.name)
    return executed, Started(int(word))


async def _execute(commands: HostCommands, wanted: Wanted, runner_root: str | None) -> Executed:
    expands = commands.expands
    start = remote_shell.in_background(wanted.command, wanted.log_file, expands=expands)
    if runner_root is not None:
        root = remote_shell.path(runner_root)
        look = f'(cd; for r in {root}/*/cronium-runner; do test -x "$r" && exit 0; done; exit 1)'
        log = remote_shell.log_made(wanted.log_file, expands=expands)
        start = f"{log}if {look}; then echo {_HAS_RUNNER}; exit 0; fi; {start}"
    return await commands.execute(start, cwd=wanted.cwd, env=wanted.env, in_sh=True)


def _last_word(executed: Executed) -> str:
    """What was said, whatever rc files have printed before it."""
    words = executed.done.stdout.decode("utf-8", "replace").split()
    return words[-1] if words else ""


async def _submit(controller: "Controller", host: Host, wanted: Wanted, *, expands: bool) -> Started | None:
    """Starts a command as a job; None when the runner can't be used, and nothing was started."""
    from .job import Job
    from .payloads import of_text

    word = remote_shell.expanded if expands else remote_shell.path
    log = "log=" if wanted.log_file is None else f"log={word(wanted.log_file)}"
    before = remote_shell.prepared(wanted.cwd or "~", wanted.venv, wanted.env, None, expands=expands)
    payload = of_text("background.sh", _SCRIPT, {"interpreter": "sh"})
    job = Job(payload, args=(f"{before}; {log}", wanted.command), timeout=LONGEST_SECONDS)
    try:
        execution = await controller.submit(host, job, follow=False)
    except UnreachableError:
        raise
    except ControllerError as error:
        _log.warning("background_without_runner", extra={"host": host.name, "reason": error.message})
        return None
    finally:
        payload.close()
    try:
        return Started(await _pid(controller, host, execution), execution.id)
    finally:
        if execution.is_running:
            execution.detach()


async def _pid(controller: "Controller", host: Host, execution: "Execution") -> int:
    """The process id of its script. Raises ControllerError when it was not started, or nobody knows."""
    deadline = time.monotonic() + _STARTING_SECONDS
    while time.monotonic() < deadline:
        if not execution.is_running:
            result = await execution.result()
            if result.state in (Outcome.REJECTED, Outcome.UNKNOWN):
                code, sentence = result.error_code or "channel.lost", result.error_message or "it was not started"
                raise ControllerError(code, sentence)
        status = await controller.status(execution.id, host)
        if isinstance(status.get("pid"), int):
            return int(status["pid"])
        await asyncio.sleep(_PAUSE)
    raise RefusedError(
        "channel.version",
        f"'{execution.id}' runs, and the host does not tell its process id; is its runner older? "
        f"Look with: cronium status {execution.id}",
        host=host.name,
    )
