"""Executions from any later process: `cronium attach|wait|status|logs|cancel|history`, for one id or several.

Which hosts they are on is known from when they were submitted. The id of a run on many hosts stands for all of them.
What hosts keep, whoever submitted it, is `cli_kept`'s.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from cronium_runner.wire.results import EXIT_RUNNER_FAILED, Outcome, Result, exit_status

from . import completing
from .cli_reaching import HELP, finish, reaching, recorded_hosts, tunnelling, with_controller
from .errors import ControllerError
from .schedule import STOPPED

if TYPE_CHECKING:
    from .dispatch import Controller
    from .execution import Execution
    from .runs import RunHost
    from .schedule import Tally
    from .store import Record

_ids = click.argument(
    "execution_ids", metavar="ID...", nargs=-1, required=True, shell_complete=completing.execution_ids
)
MOST_LISTED: Final = 1_000_000
"""Far more than anybody reads, far less than a database can count to."""
_GOES_ON: Final = "the executions go on; ask again for those that are not told of"


def _run(ids: Sequence[str], options: dict[str, Any], work: Any, *, as_json: bool, interrupted: str = _GOES_ON) -> None:
    """Runs `work` with a controller and the records of the ids, and ends with its exit status."""
    only = ids[0] if len(set(ids)) == 1 else ""
    finish(
        with_controller(lambda: recorded_hosts(ids), options, work),
        as_json,
        only,
        interrupted=interrupted,
        submits=False,
    )


@click.command(context_settings=HELP)
@_ids
@reaching
@tunnelling
@click.option(
    "--offset",
    "offsets",
    type=(click.IntRange(min=0), click.IntRange(min=0)),
    default=(0, 0),
    help="Bytes of stdout and stderr seen already; for one execution.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print only the result, as one JSON object; one a line for several."
)
def attach(execution_ids: tuple[str, ...], offsets: tuple[int, int], as_json: bool, **options: Any) -> None:
    """Follow executions from any later process, to their end. An interrupt leaves them running.

    Of several, each line has the host in front.

    \b
    Example:
      cronium attach exec_20260102_030405_0123456789ab
    """

    async def follow(controller: "Controller", hosts: "list[RunHost]") -> int:
        from . import show
        from .attached import Attached, wait_begun
        from .runs import Runs

        if len(hosts) == 1:
            (host,) = [await wait_begun(Runs(controller.store), hosts[0])]
            if host.record is None:
                return _print_unstarted(host, as_json=as_json)
            execution = await controller.attach(host.record.id, host.record.host, offsets=offsets)
            with show.interrupts(execution, can_cancel=False):
                return await show.follow(execution, as_json=as_json, is_own=False)
        if any(offsets):
            raise ControllerError("usage.invalid", "--offset is for one execution; name one")
        from .show_many import JSON, PREFIX, follow_attached

        style = JSON if as_json else PREFIX
        return await follow_attached(Attached(controller, hosts), hosts, style, _common(execution_ids))

    _run(execution_ids, options, follow, as_json=as_json)


@click.command(context_settings=HELP)
@_ids
@reaching
@tunnelling
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object for each as it ends, and a last one for several."
)
def wait(execution_ids: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Wait until executions have ended, on whichever hosts, and fetch their results. An interrupt leaves them running.

    The id of a run on many hosts stands for all of them, also for those on which nothing was started: they failed.
    It starts nothing. Hosts that were not begun are skipped once the process that ran it has ended.

    A line for each as it ends. One: its exit status is ours; several: a table of all at the end, and 0 when all
    succeeded, 100 + failures when some did, else the largest.

    \b
    Example:
      cronium wait nightly-web01 nightly-web02
    """

    async def wait_for_all(controller: "Controller", hosts: "list[RunHost]") -> int:
        from . import show
        from .attached import Attached
        from .show_many import ENDINGS, JSON_ENDINGS, follow_attached

        many = Attached(controller, hosts)
        if len(hosts) > 1:
            return await follow_attached(many, hosts, JSON_ENDINGS if as_json else ENDINGS, _common(execution_ids))
        status = 0
        async for result in many:
            status = exit_status(result)
            if as_json:
                show.print_json(result.hidden().to_json())
            else:
                show.print_ending(result)
        return status

    interrupted = "the executions go on; wait again for those that are not told of"
    _run(execution_ids, options, wait_for_all, as_json=as_json, interrupted=interrupted)


def _common(execution_ids: Sequence[str]) -> str | None:
    """The one id that all go by."""
    return execution_ids[0] if len(set(execution_ids)) == 1 else None


def _print_unstarted(host: "RunHost", *, as_json: bool) -> int:
    """Says why nothing was started on a host; the exit status."""
    from . import show

    assert host.result is not None
    if as_json:
        show.print_result(host.result, {})
    click.echo(f"cronium: {host.result.error_message} [{host.result.error_code}]", err=True)
    return exit_status(host.result)


async def _ask_each(hosts: "list[RunHost]", ask: Any) -> "Tally":
    """Calls `ask` for each, many at once, and counts the exit status, result or error that comes of it; None counts
    as nothing.
    """
    from .each import answers
    from .open_files import make_room
    from .schedule import Tally

    make_room(len({host.record.host for host in hosts if host.record is not None}))  # kept until all have been asked
    tally = Tally()
    tally.is_interrupted = any(host.is_interrupted for host in hosts)
    async for _, answer in answers(hosts, ask):
        if answer is None:
            continue
        if isinstance(answer, Result):
            tally.add(answer)
            continue
        if isinstance(answer, ControllerError):
            click.echo(f"cronium: {answer.message} [{answer.code}]", err=True)
        status = answer.exit_status if isinstance(answer, ControllerError) else answer
        tally.note(status, ok=status == 0)
    return tally


@click.command(context_settings=HELP)
@_ids
@reaching
@click.option("--json", "as_json", is_flag=True, help="One JSON object; one a line for several, and a summary.")
def status(execution_ids: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Ask the hosts how executions stand.

    The id of a run on many hosts stands for all of them, also for those on which nothing was started. The exit status
    is that of `cronium wait` for what has ended; what is under way counts as 0.

    \b
    Example:
      cronium status exec_20260102_030405_0123456789ab --json
    """

    async def ask_all(controller: "Controller", hosts: "list[RunHost]") -> int:
        from .standing import ask_standing, print_standings

        if len(hosts) == 1:
            answer = await ask_standing(controller, hosts[0], as_json=as_json)
            return 0 if answer is None else exit_status(answer)

        async def ask(host: "RunHost") -> "Result | None":
            return await ask_standing(controller, host, as_json=as_json)

        tally = await _ask_each(hosts, ask)
        print_standings(tally, len(hosts), _common(execution_ids), as_json=as_json)
        return tally.exit_status

    _run(execution_ids, options, ask_all, as_json=as_json)


@click.command(context_settings=HELP)
@_ids
@reaching
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this one; both by default.")
@click.option("--offset", type=click.IntRange(min=0), default=0, show_default=True, help="Begin at this byte.")
@click.option("--raw", is_flag=True, help="Every byte as the script wrote it; else invalid UTF-8 is made visible.")
def logs(execution_ids: tuple[str, ...], stream: str | None, offset: int, raw: bool, **options: Any) -> None:
    """Print what executions have written so far, and return. Of several, each line has the host in front.

    \b
    Example:
      cronium logs exec_20260102_030405_0123456789ab --stream stdout --raw > report.bin
    """
    from . import show

    async def print_all(controller: "Controller", hosts: "list[RunHost]") -> int:
        async def read(record: "Record") -> "Execution":
            return await controller.attach(record.id, record.host, offsets=(offset, offset), follow=False)

        if len(hosts) == 1:
            if (record := hosts[0].record) is None:
                return _print_no_output(hosts[0])
            return await show.print_pieces(await read(record), only=stream, raw=raw)
        from .attached import labels
        from .lines import PrefixedLines

        lines, called, turns = PrefixedLines(), labels(hosts), show.Turns()

        async def print_one(host: "RunHost") -> int:
            label = called[host.execution_id, host.name]

            async def put(number: int, data: bytes) -> None:
                if whole := lines.feed(label, number, data):
                    await turns.write(number, whole)

            if host.record is None:
                return _print_no_output(host)
            told = await show.print_pieces(await read(host.record), only=stream, raw=raw, put=put)
            for number, rest in lines.end(label):
                await turns.write(number, rest)
            return told

        return (await _ask_each(hosts, print_one)).exit_status

    _run(execution_ids, options, print_all, as_json=False)


def _print_no_output(host: "RunHost") -> int:
    """Says that a host has written nothing, because nothing was started there; the exit status."""
    if host.result is not None:
        return _print_unstarted(host, as_json=False)
    click.echo(f"cronium: {host.name}: not begun yet, so there is no output [{STOPPED}]", err=True)
    return EXIT_RUNNER_FAILED


@click.command(context_settings=HELP)
@_ids
@reaching
@tunnelling
def cancel(execution_ids: tuple[str, ...], **options: Any) -> None:
    """End executions: SIGTERM, five seconds, SIGKILL. Returns when nothing of them is left.

    The id of a run on many hosts stands for all of them.

    \b
    Example:
      cronium cancel exec_20260102_030405_0123456789ab
    """

    async def end_all(controller: "Controller", hosts: "list[RunHost]") -> int:
        async def end(host: "RunHost") -> int:
            if host.is_waiting:
                sentence = f"{host.name}: not begun yet; the process that runs it begins it: interrupt that one"
                click.echo(f"cronium: {sentence} [{STOPPED}]", err=True)
                return EXIT_RUNNER_FAILED
            result = host.result if host.record is None else await _end(controller, host.record)
            assert result is not None
            if result.state is Outcome.UNKNOWN:
                click.echo(f"cronium: {result.error_message} [{result.error_code}]", err=True)
                return exit_status(result)
            click.echo(f"{host.execution_id or host.name}: {result.state}", err=True)
            return 0

        return (await _ask_each(hosts, end)).exit_status

    _run(execution_ids, options, end_all, as_json=False)


async def _end(controller: "Controller", record: "Record") -> Result:
    found = await controller.status(record.id, record.host)
    seen = (found["stdout"]["bytes"], found["stderr"]["bytes"])  # nobody reads the output here
    execution = await controller.attach(record.id, record.host, offsets=seen)
    if execution.is_running:
        execution.cancel()
    return await execution.result()


@click.command(context_settings=HELP)
@click.option(
    "-n", "count", type=click.IntRange(1, MOST_LISTED), default=20, show_default=True, help="How many at most."
)
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
        result = None if record.result is None else record.result.hidden().to_json()
        show.print_json({"executionId": record.id, "host": record.host.name, "state": record.state, "result": result})


COMMANDS: Final = (attach, wait, status, logs, cancel, history)
