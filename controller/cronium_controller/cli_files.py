"""`cronium put` and `get`: files to and from hosts, gone on with after a lost connection, and verified."""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from cronium_runner.wire.sizes import readable

from . import completing, progress
from .cli_commands import interruptible
from .cli_hosts import some_hosts
from .cli_reaching import HELP, reaching, run_on_many
from .errors import ControllerError
from .schedule import Tally

if TYPE_CHECKING:
    from .dispatch import Controller
    from .hosts import BadTarget, Host
    from .transfer import Copied

Copy = Callable[["Host", Callable[[int], None]], Awaitable["Copied"]]
_INTERRUPTED = "nothing was replaced; the same command again goes on from what has arrived"


@click.command(context_settings=HELP)
@click.argument("source", metavar="SRC", shell_complete=completing.files)
@click.argument("target", metavar="DST")
@some_hosts
@reaching
@click.option("--json", "as_json", is_flag=True, help="One JSON object a host.")
def put(hosts_given: tuple[str, ...], source: str, target: str, as_json: bool, **options: Any) -> None:
    """Copy a file to one host or many, with its permissions. DST is a file or a folder there; ~/ is the home directory.

    By SFTP, else through the shell. It is verified by its SHA-256 before it takes DST's place. After a lost connection
    it goes on where it was, by itself or when the same command is run again; what is there already is not sent.

    \b
    Examples:
      cronium put --host web01 ./site.tar.gz /srv/site.tar.gz
      cronium put --on web ./app.conf ~/conf/
    """

    async def on_all(controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        from . import transfer

        with transfer.Source(source) as opened:

            async def copy(host: "Host", tell: Callable[[int], None]) -> "Copied":
                return await transfer.put(controller.connections, controller.store, host, opened, target, tell)

            shown = _Shown(targets, source, as_json=as_json, size=opened.size)
            return await interruptible(shown.follow(controller, copy, options["forks"]), _INTERRUPTED)

    run_on_many(hosts_given, options, on_all, as_json=as_json)


@click.command(context_settings=HELP)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", shell_complete=completing.files)
@some_hosts
@reaching
@click.option("--json", "as_json", is_flag=True, help="One JSON object a host.")
def get(hosts_given: tuple[str, ...], source: str, target: str, as_json: bool, **options: Any) -> None:
    """Copy a file from one host or many. DST is a file or a folder here; from several hosts it is DST/HOST/NAME.

    Verified and gone on with as with `cronium put`.

    \b
    Examples:
      cronium get --host web01 /var/log/syslog ./
      cronium get --on web /etc/os-release ./releases
    """

    async def on_all(controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        from . import transfer

        async def copy(host: "Host", tell: Callable[[int], None]) -> "Copied":
            below = None if len(targets) == 1 else host.name
            return await transfer.get(controller.connections, controller.store, host, source, target, tell, below=below)

        shown = _Shown(targets, source, as_json=as_json, size=None)
        return await interruptible(shown.follow(controller, copy, options["forks"]), _INTERRUPTED)

    run_on_many(hosts_given, options, on_all, as_json=as_json)


class _Shown:
    """Copies of one file, shown as they end, with how far they are meanwhile."""

    def __init__(self, targets: "Sequence[Host | BadTarget]", source: str, *, as_json: bool, size: int | None) -> None:
        self._targets = targets
        self._source = source
        self._as_json = as_json
        self._size = size
        self._there: dict[str, int] = {}
        self._tally = Tally()
        self._progress = progress.Progress(self._standing, is_wanted=not as_json)

    async def follow(self, controller: "Controller", copy: Copy, forks: int) -> int:
        """Copies on all hosts; the exit status."""
        from .each import answers
        from .hosts import BadTarget

        async def on(target: "Host | BadTarget") -> "Copied":
            if isinstance(target, BadTarget):
                raise target.error
            is_single = len(self._targets) == 1
            with contextlib.nullcontext() if is_single else controller.connections.hurried(target):
                try:
                    return await copy(target, lambda count: self._there.__setitem__(target.name, count))
                finally:
                    if not is_single:
                        await controller.connections.leave(target)

        async with self._progress:
            async for target, found in answers(self._targets, on, forks=forks):
                self._show(target.name, found)
        return self._tally.exit_status

    def _show(self, host: str, found: "Copied | ControllerError") -> None:
        status = found.exit_status if isinstance(found, ControllerError) else 0
        self._tally.note(status, ok=status == 0)
        with self._progress.aside():
            if self._as_json:
                self._print_json(host, found)
            if isinstance(found, ControllerError):
                click.echo(f"cronium: {found.message} [{found.code}]", err=True)
            elif not self._as_json:
                click.echo(_line(host, self._source, found))

    def _print_json(self, host: str, found: "Copied | ControllerError") -> None:
        from . import show

        if isinstance(found, ControllerError):
            error = {"code": found.code, "message": found.message}
            show.print_json({"host": host, "source": self._source, "error": error})
            return
        told = {"path": found.path, "bytes": found.bytes, "sentBytes": found.sent, "sha256": found.sha256}
        how = {"method": found.method, "attempts": found.attempts, "verified": found.is_verified}
        show.print_json({"host": host, "source": self._source, **told, **how, "error": None})

    def _standing(self) -> str:
        there = sum(self._there.values())
        done = self._tally.succeeded + self._tally.failed
        hosts = "" if len(self._targets) == 1 else f"{done}/{len(self._targets)} hosts · "
        of = "" if self._size is None else f" of {readable(self._size * len(self._targets))}"
        return f"{hosts}{readable(there)}{of}"


def _line(host: str, source: str, copied: "Copied") -> str:
    from cronium_runner.wire.text import clean

    size, path = readable(copied.bytes), clean(copied.path)
    if copied.sent == 0 and copied.bytes:
        return f"{host}: {path} is there already ({size})"
    sent = "" if copied.sent == copied.bytes else f", {readable(copied.sent)} of it now"
    warned = "" if copied.is_verified else "; NOT verified, as the host computes no SHA-256"
    return f"{host}: {source} -> {path} ({size}{sent}, by {copied.method}){warned}"
