"""`cronium status`: the state of each host of a run, as the host says or as it is recorded here."""

from typing import TYPE_CHECKING, Any

import click

from cronium_runner.wire import masks
from cronium_runner.wire.results import Outcome, Result

from . import show
from .attached import wait_begun
from .errors import ControllerError, UnreachableError
from .runs import RunHost, Runs, status_of
from .schedule import Tally, counted
from .show_many import summary_json

if TYPE_CHECKING:
    from .dispatch import Controller


async def ask_standing(controller: "Controller", host: RunHost, *, as_json: bool) -> Result | None:
    """Prints the status of an execution and returns its result, None while there is none.

    Where the host can't be reached, a result that was fetched before is shown. Raises ControllerError.
    """
    if host.is_waiting and not Runs(controller.store).has_owner(host.run_id):
        host = await wait_begun(Runs(controller.store), host)
    if host.record is None:
        status: dict[str, Any] = status_of(host)
        _print(status, host, as_json=as_json)
        return host.result
    recorded = host.record.result if host.record.is_acknowledged else None
    try:
        status = await controller.status(host.record.id, host.record.host)
    except UnreachableError as error:
        if recorded is None:
            raise
        click.echo(f"cronium: {error.message} [{error.code}]; this is what was recorded here", err=True)
        status = {**status_of(host), "state": "finished", "result": recorded.to_json()}
        status.update({name: status["result"][name] for name in ("stdout", "stderr")})
    _print(status, host, as_json=as_json)
    if recorded is not None:
        return recorded
    if status.get("result") is not None:
        return _read(status["result"], host)
    return _unreadable(status["error"], host) if isinstance(status.get("error"), dict) else None


def print_standings(tally: Tally, total: int, run_id: str | None, *, as_json: bool) -> None:
    """Prints the summary of several hosts."""
    running = total - tally.succeeded - tally.failed
    if as_json:
        show.print_json({**summary_json(tally, run_id, None), "running": running})
        return
    verdict = "RUNNING" if running else tally.verdict.value
    told = [f"{tally.succeeded} succeeded", f"{tally.failed} failed", f"{running} under way"]
    shown = [words for words in told if not words.startswith("0 ")] or told[:1]
    click.echo(f"{verdict}: {', '.join(shown)} of {counted(total)}", err=True)


def _print(status: dict[str, Any], host: RunHost, *, as_json: bool) -> None:
    if as_json:
        show.print_json({**masks.hidden_status(status), "host": host.name})
    else:
        show.print_status(status, host.name if host.record is None else host.record.host)


def _unreadable(error: dict[str, Any], host: RunHost) -> Result:
    """The result of an execution whose record the host can't read."""
    code, message = str(error.get("code")), f"{host.name}: {error.get('message')}"
    return Result(host.execution_id, Outcome.UNKNOWN, host=host.name, error_code=code, error_message=message)


def _read(result: Any, host: RunHost) -> Result:
    """Reads a result. Raises ControllerError for what is none."""
    try:
        return Result.from_json(result)
    except ValueError as error:
        raise ControllerError("channel.lost", f"its result cannot be read: {error}", host=host.name) from None
