"""One question to each of several hosts: what answers, what keeps one from answering, and the exit status of all.

For commands that start no job: `ps`, `gc`, `deploy`, `doctor`. A run on many hosts is `show_many`'s.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from .errors import ControllerError

if TYPE_CHECKING:
    from .dispatch import Controller
    from .hosts import BadTarget, Host


async def ask_hosts(
    controller: "Controller",
    targets: "list[Host | BadTarget]",
    forks: int,
    ask: "Callable[[Host], Awaitable[int | None]]",
    *,
    as_json: bool = False,
) -> int:
    """Calls `ask` for each host, `forks` at once; the exit status, as of a run on them.

    `ask` may return the host's own. What kept a host from answering is told, with `as_json` also as an object.
    """
    from .each import answers
    from .hosts import BadTarget, Host
    from .open_files import make_room
    from .schedule import Tally

    if len(targets) == 1 and isinstance(targets[0], Host):
        return await ask(targets[0]) or 0
    make_room(min(forks, len(targets)))

    async def asked(target: "Host | BadTarget") -> int:
        if isinstance(target, BadTarget):
            raise target.error
        try:
            with controller.connections.hurried(target):
                return await ask(target) or 0
        finally:
            await controller.reachable.leave(target)

    tally = Tally()
    async for target, answer in answers(targets, asked, forks=forks):
        if isinstance(answer, ControllerError):
            _tell(target.name, answer, as_json=as_json)
        status = answer.exit_status if isinstance(answer, ControllerError) else answer
        tally.note(status, ok=status == 0)
    return tally.exit_status


def _tell(host: str, error: ControllerError, *, as_json: bool) -> None:
    from . import show

    if as_json:
        show.print_json({"host": host, "error": {"code": error.code, "message": error.message}})
    click.echo(f"cronium: {error.message} [{error.code}]", err=True)
