"""Executions from any later process: `cronium attach|wait|status|logs|cancel|history`, and `ps` and `gc` for what a
host keeps of them.

Which host an execution is on is known from when it was submitted; `ps` and `gc` ask a host that is named.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

import click

from cronium_runner.wire.results import Outcome, Result, exit_status

from .cli_hosts import one_host
from .cli_reaching import HELP, finish, reaching, recorded_all, run_known, run_on, tunnelling, with_controller
from .errors import ControllerError
from .schedule import FORKS

if TYPE_CHECKING:
    from .dispatch import Controller
    from .hosts import Host
    from .store import Record


@click.command(context_settings=HELP)
@click.argument("execution_id", metavar="ID")
@reaching
@tunnelling
@click.option(
    "--offset",
    "offsets",
    type=(click.IntRange(min=0), click.IntRange(min=0)),
    default=(0, 0),
    help="Bytes of stdout and stderr seen already.",
)
@click.option("--json", "as_json", is_flag=True, help="Print only the result, as one JSON object.")
def attach(execution_id: str, offsets: tuple[int, int], as_json: bool, **options: Any) -> None:
    """Follow an execution from any later process, to its end. An interrupt leaves it running.

    \b
    Example:
      cronium attach exec_20260102_030405_0123456789ab
    """
    from . import show

    async def follow(controller: "Controller", where: "Host") -> int:
        execution = await controller.attach(execution_id, where, offsets=offsets)
        return await show.follow(execution, as_json=as_json, can_cancel=False)

    run_known(execution_id, options, follow, as_json=as_json)


@click.command(context_settings=HELP)
@click.argument("execution_id", metavar="ID")
@reaching
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(execution_id: str, as_json: bool, **options: Any) -> None:
    """Ask the host how an execution stands.

    \b
    Example:
      cronium status exec_20260102_030405_0123456789ab --json
    """
    from . import show

    async def ask(controller: "Controller", where: "Host") -> int:
        found = await controller.status(execution_id, where)
        if as_json:
            show.print_json(found)
        else:
            show.print_status(found, where)
        return 0

    run_known(execution_id, options, ask, as_json=as_json)


@click.command(context_settings=HELP)
@click.argument("execution_id", metavar="ID")
@reaching
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this one; both by default.")
@click.option("--offset", type=click.IntRange(min=0), default=0, show_default=True, help="Begin at this byte.")
@click.option("--raw", is_flag=True, help="Every byte as the script wrote it; else invalid UTF-8 is made visible.")
def logs(execution_id: str, stream: str | None, offset: int, raw: bool, **options: Any) -> None:
    """Print what an execution has written so far, and return.

    \b
    Example:
      cronium logs exec_20260102_030405_0123456789ab --stream stdout --raw > report.bin
    """
    from . import show

    async def print_logs(controller: "Controller", where: "Host") -> int:
        execution = await controller.attach(execution_id, where, offsets=(offset, offset), follow=False)
        return await show.print_pieces(execution, only=stream, raw=raw)

    run_known(execution_id, options, print_logs, as_json=False)


@click.command(context_settings=HELP)
@click.argument("execution_id", metavar="ID")
@reaching
@tunnelling
def cancel(execution_id: str, **options: Any) -> None:
    """End an execution: SIGTERM, five seconds, SIGKILL. Returns when nothing of it is left.

    The id of a run on many hosts stands for all of them.

    \b
    Example:
      cronium cancel exec_20260102_030405_0123456789ab
    """

    async def end_all(controller: "Controller", records: "list[Record]") -> int:
        room = asyncio.Semaphore(FORKS)
        return max(await asyncio.gather(*(_cancelled(controller, record, room) for record in records)))

    finish(with_controller(lambda: recorded_all(execution_id), options, end_all), False, execution_id)


async def _cancelled(controller: "Controller", record: "Record", room: asyncio.Semaphore) -> int:
    """Ends one execution and says how it stands; the exit status for that."""
    try:
        async with room:
            result = await _end(controller, record)
    except ControllerError as error:
        click.echo(f"cronium: {error.message} [{error.code}]", err=True)
        return error.exit_status
    if result.state is Outcome.UNKNOWN:
        click.echo(f"cronium: {result.error_message} [{result.error_code}]", err=True)
        return exit_status(result)
    click.echo(f"{record.id}: {result.state}", err=True)
    return 0


async def _end(controller: "Controller", record: "Record") -> Result:
    found = await controller.status(record.id, record.host)
    seen = (found["stdout"]["bytes"], found["stderr"]["bytes"])  # nobody reads the output here
    execution = await controller.attach(record.id, record.host, offsets=seen)
    if execution.is_running:
        execution.cancel()
    return await execution.result()


@click.command(context_settings=HELP)
@click.option("-n", "count", type=click.IntRange(min=1), default=20, show_default=True, help="How many at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def history(count: int, as_json: bool) -> None:
    """List the executions that were submitted from here, newest first. It asks no host.

    \b
    Example:
      cronium history -n 5
    """
    from . import show
    from .store import Store

    store = Store()
    records = store.recent(count)
    store.close()
    if not as_json:
        show.print_history(records)
        return
    for record in records:
        result = None if record.result is None else record.result.to_json()
        show.print_json({"executionId": record.id, "host": record.host.name, "state": record.state, "result": result})


_run_as = click.option("--run-as", metavar="USER", help="The executions of this account of the host.")


@click.command(context_settings=HELP)
@click.argument("execution_ids", metavar="ID...", nargs=-1, required=True)
@reaching
@tunnelling
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object for each as it ends, and a last one for several."
)
def wait(execution_ids: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Wait until executions have ended, on whichever hosts, and fetch their results. An interrupt leaves them running.

    The id of a run on many hosts stands for all of them.

    A line for each as it ends. One: its exit status is ours; several: 0 when all succeeded, 100 + failures when some
    did, else the largest.

    \b
    Example:
      cronium wait nightly-web01 nightly-web02
    """
    ids = list(dict.fromkeys(execution_ids))

    async def wait_for_all(controller: "Controller", records: "list[Record]") -> int:
        from . import show
        from .schedule import Tally

        tally = Tally()
        room = asyncio.Semaphore(FORKS)
        for ended in asyncio.as_completed([_ended(controller, record, room) for record in records]):
            result = await ended
            tally.add(result)
            if as_json:
                show.print_json(result.to_json())
            else:
                show.print_ending(result)
        if len(records) == 1:
            return exit_status(result)
        if as_json:
            show.print_json({"verdict": tally.verdict.value, "states": tally.states})
        return tally.exit_status

    def known() -> "list[Record]":
        found = [record for execution_id in ids for record in recorded_all(execution_id)]
        return list({record.id: record for record in found}.values())

    finish(
        with_controller(known, options, wait_for_all),
        as_json,
        ids[0] if len(ids) == 1 else "",
        interrupted="the executions go on; wait again for those that are not told of",
    )


async def _ended(controller: "Controller", record: "Record", room: asyncio.Semaphore) -> Result:
    """How the execution ended; `unknown` where nobody could be asked, which keeps nobody else from being waited for.

    `room` bounds how many connections are made at once. They are kept while we wait, and not for hosts whose result is
    here already.
    """
    if record.is_acknowledged and record.result is not None and not record.may_write:
        return record.result
    try:
        async with room:
            await controller.reachable.reach(record.host, record.run_as)
        return await controller.wait(record.id, record.host)
    except ControllerError as error:
        state = Outcome.UNKNOWN
        return Result(record.id, state, host=record.host.name, error_code=error.code, error_message=error.message)


@click.command(context_settings=HELP)
@one_host
@reaching
@_run_as
@click.option("--all", "wants_all", is_flag=True, help="Also those of which only the ending is left.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def ps(host: str | None, run_as: str | None, wants_all: bool, as_json: bool, **options: Any) -> None:
    """List what runs on a host and what it keeps, whoever submitted it: id, state, age, bytes of output.

    \b
    Example:
      cronium ps --host deploy@web01
    """
    from . import show

    async def look(controller: "Controller", where: "Host") -> int:
        found = await controller.executions(where, run_as=run_as, wants_all=wants_all)
        if as_json:
            for one in found:
                show.print_json({"host": where.name, **one})
        else:
            show.print_executions(found)
        return 0

    run_on(host, options, look, as_json=as_json)


@click.command(context_settings=HELP)
@one_host
@reaching
@_run_as
@click.option("--older-than", type=float, metavar="DAYS", help="Instead of the host's own age, 7 days by default.")
@click.option("--budget", metavar="SIZE", help="Bytes or like 10GiB: instead of the host's own.")
@click.option(
    "--unacknowledged-older-than",
    type=float,
    metavar="DAYS",
    help="Also results that nobody fetched. By default never.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def gc(
    host: str | None,
    run_as: str | None,
    older_than: float | None,
    budget: str | None,
    unacknowledged_older_than: float | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Remove old records and payloads from a host now; it does so by itself each hour. Ids stay used for ever.

    \b
    Examples:
      cronium gc --host deploy@web01 --dry-run
      cronium gc --host deploy@web01 --older-than 1 --budget 500MiB
    """
    from . import show

    asked = {
        "olderThanDays": older_than,
        "budget": budget,
        "unacknowledgedOlderThanDays": unacknowledged_older_than,
        "dryRun": dry_run or None,
    }

    async def collect(controller: "Controller", where: "Host") -> int:
        wanted = {key: value for key, value in asked.items() if value is not None}
        done = await controller.collect(where, wanted, run_as=run_as)
        if as_json:
            show.print_json({"host": where.name, **done})
        else:
            show.print_collection(done)
        return 0

    run_on(host, options, collect, as_json=as_json)


COMMANDS: Final = (attach, wait, status, logs, cancel, history, ps, gc)
