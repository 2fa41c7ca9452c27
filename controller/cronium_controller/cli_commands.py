"""`cronium exec`: a raw command on one host or many, where no runner is needed."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

import click

from cronium_runner.wire.names import STREAM_NAMES
from cronium_runner.wire.results import EXIT_CANCELLED, TEXT_TAIL, exit_status

from . import progress
from .arguments import Number
from .cli_hosts import many_hosts
from .cli_reaching import HELP, reaching, run_on_many
from .errors import ControllerError
from .interrupts import Interrupts

if TYPE_CHECKING:
    from .dispatch import Controller
    from .hosts import BadTarget, Host
    from .many_commands import Command

COMMAND_SECONDS: Final = 30.0
"""Seconds: the timeout of a raw command unless told otherwise."""


@click.command("exec", context_settings={**HELP, "allow_interspersed_args": False})
@click.argument("words", metavar="-- COMMAND…", nargs=-1, required=True, type=click.UNPROCESSED)
@many_hosts
@reaching
@click.option(
    "--timeout",
    type=Number(min=0),
    default=COMMAND_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Then it is ended on the host; 0 is none.",
)
@click.option(
    "--kill",
    type=click.Choice(["command", "tree"]),
    default="command",
    show_default=True,
    help="At the timeout: tree ends what it has put into the background, too.",
)
@click.option("--cwd", metavar="FOLDER", help="Where it runs, instead of the home directory; ~/ is that.")
@click.option(
    "--env", "variables", multiple=True, metavar="NAME=VALUE", help="A variable; repeatable. Not for secrets."
)
@click.option(
    "--prefix", "style", flag_value="prefix", default=True, help="Several hosts: lines with the host in front; default."
)
@click.option("--fold", "style", flag_value="fold", help="Several hosts: equal outputs once, at the end.")
@click.option("-q", "--quiet", "style", flag_value="quiet", help="Several hosts: nothing but the failures.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; one a line for several hosts, and a summary.")
def execute(
    hosts_given: tuple[str, ...],
    words: tuple[str, ...],
    timeout: float,
    kill: str,
    cwd: str | None,
    variables: tuple[str, ...],
    style: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a command on one host or many, as `ssh HOST COMMAND` does; no runner is needed there.

    The words are joined by spaces and read by the account's login shell, so quote what that shell is to see as one
    word. Output comes byte for byte on its own stream, and the command's exit status becomes ours: 124 after a timeout,
    255 when the host was not reached. Standard input is empty. Several hosts: as with `cronium run`.

    \b
    Examples:
      cronium exec --host web01 -- uname -r
      cronium exec --host web01 --cwd /srv/app -- 'git log -1 | cat'
      cronium exec --on web --fold -- cat /etc/os-release
    """
    from .hosts import Host
    from .many_commands import Command

    async def on_all(controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        command = Command(" ".join(words), timeout or math.inf, cwd, _read_variables(variables), kill)
        if len(targets) == 1 and isinstance(targets[0], Host):
            return await interruptible(_on_one(controller, targets[0], command, as_json))
        limits = {name: options[name] for name in ("forks", "serial", "max_failures", "stop_on_failure")}
        return await _on_many(controller, targets, command, "json" if as_json else style, limits)

    run_on_many(hosts_given, options, on_all, as_json=as_json)


async def _on_one(controller: "Controller", host: "Host", command: "Command", as_json: bool) -> int:
    from . import many_commands, show

    tails = {stream: bytearray() for stream in STREAM_NAMES}

    async def keep(stream: int, data: bytes) -> None:
        tails[stream] += data
        del tails[stream][:-TEXT_TAIL]

    result = await many_commands.run_command(controller, host, command, keep if as_json else show.write)
    if as_json:
        show.print_result(result, tails)
    if result.error_message is not None:
        click.echo(f"cronium: {result.error_message} [{result.error_code}]", err=True)
    return exit_status(result)


async def _on_many(
    controller: "Controller",
    targets: "list[Host | BadTarget]",
    command: "Command",
    style: str,
    limits: dict[str, Any],
) -> int:
    from .execution import Piece
    from .many_commands import ManyCommands
    from .open_files import make_room
    from .schedule import counted
    from .show_many import QUIET, ManyHosts

    make_room(min(limits["forks"], len(targets)))
    shown = ManyHosts(style, targets)

    async def hear(host: str, stream: int, data: bytes) -> None:
        await shown.hear(host, Piece(stream, 0, data))

    many = ManyCommands(controller, targets, command, output=None if style == QUIET else hear, **limits)

    def cancel() -> None:
        running = counted(many.running)
        progress.say(f"cronium: interrupted; ending it on {running}; interrupt again not to wait for that")
        many.cancel()

    async def follow() -> int:
        await shown.show(many, None)
        return many.tally.exit_status

    return await interruptible(follow(), cancel=cancel)


async def interruptible(
    work: Coroutine[Any, Any, int],
    said: str = "what ran was told to end on its host",
    *,
    cancel: Callable[[], object] | None = None,
) -> int:
    """What `work` returns, which SIGINT or SIGTERM ends in good order; `said` is what is said then.

    With `cancel`, the first one calls that, and only the next one ends the work.
    """
    from . import show

    working = asyncio.ensure_future(work)

    def leave() -> None:
        show.leave()
        working.cancel()

    with Interrupts(leave, cancel):
        try:
            return await working
        except asyncio.CancelledError:
            progress.say(f"cronium: interrupted; {said}")
            return EXIT_CANCELLED


def _read_variables(given: tuple[str, ...]) -> dict[str, str]:
    """Raises ControllerError for what has no `=`."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ControllerError("usage.invalid", f"--env {name[:40]!r}: write NAME=VALUE")
        found[name] = value
    return found
