"""The runner's commands for executions that exist, and for what is kept of them.

`attach`, `wait`, `status`, `list`, `cancel`, `gc`; with `--run-as` all of them ask that account's own agent.
"""

import functools
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from .cli_show import print_json, print_json_text, say, with_text
from .wire import exactjson
from .wire.results import Result, exit_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from .account import Account

run_as_option = click.option(
    "--run-as",
    "run_as",
    metavar="USER",
    help="As this account, with its own executions: as root, or where `sudo -n` allows it.",
)


def chosen_account(run_as: str | None) -> "Account | None":
    """The account that --run-as names; None for our own."""
    if run_as is None:
        return None
    from . import account

    return account.other(run_as)


@click.command()
@click.argument("execution_id", metavar="ID")
@click.option(
    "--offset",
    "offsets",
    type=(click.IntRange(min=0), click.IntRange(min=0)),
    default=(0, 0),
    help="Bytes of stdout and stderr seen already.",
)
@run_as_option
@click.option("--json", "as_json", is_flag=True, help="Print only the result, as one JSON object.")
def attach(execution_id: str, offsets: tuple[int, int], run_as: str | None, as_json: bool) -> None:
    """Follow an execution to its end; its exit status becomes ours. An interrupt leaves it running."""
    target, tails = chosen_account(run_as), None
    if target is None:
        from . import foreground
        from .jobdir import StateDirectory

        execution = StateDirectory.open().execution(execution_id)
        result = foreground.attach(execution, offsets=offsets, show=not as_json)
    else:
        from . import as_other

        result, tails = as_other.attach(target, execution_id, offsets=offsets, show=not as_json)
    if as_json:
        print_json(with_text(result.hidden(), tails))
    elif result.error_message is not None:
        say(f"{result.error_message} [{result.error_code}]")
    sys.exit(exit_status(result))


@click.command()
@click.argument("execution_id", metavar="ID")
@run_as_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(execution_id: str, run_as: str | None, as_json: bool) -> None:
    """Say how an execution stands."""
    from . import report

    [found] = _statuses(run_as, execution_id)
    if as_json:
        print_json(_hidden_status(found))
    else:
        report.print_statuses([found])
        report.print_containment(found)
    if found.get("collected") and not as_json:
        say(f"{found['result']['error']['message']} [{found['result']['error']['code']}]")


@click.command(name="list")
@run_as_option
@click.option("--all", "wants_all", is_flag=True, help="Also those whose record was collected.")
@click.option("--running", "wants_running", is_flag=True, help="Only those that have not ended.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_executions(run_as: str | None, wants_all: bool, wants_running: bool, as_json: bool) -> None:
    """List the executions on this host, oldest first."""
    import json

    from . import report

    target = chosen_account(run_as)
    if target is None:
        from . import listing
        from .jobdir import StateDirectory

        told = listing.oldest_first(
            StateDirectory.open(), wants_all=wants_all, wants_running=wants_running, is_whole=as_json
        )
        if as_json:
            for text in told:
                print_json_text(_hidden_text(text))
        else:
            report.print_statuses(map(json.loads, told))
        return
    found = _statuses_of_another(target, wants_all=wants_all, wants_running=wants_running, as_json=as_json)
    if as_json:
        for one in found:
            print_json(_hidden_status(one))
    else:
        report.print_statuses(found)


def _hidden_status(status: dict[str, Any]) -> dict[str, Any]:
    from .wire import masks  # seldom needed: every command imports this module

    return masks.hidden_status(status)


def _hidden_text(text: bytes) -> bytes:
    """A status that is JSON already, with `***` in place of secrets that the script handed back."""
    return exactjson.encode(_hidden_status(exactjson.loads(text))) if b'"masked":' in text else text


def _statuses(run_as: str | None, execution_id: str) -> "list[dict[str, Any]]":
    """How one execution stands, once it is known what became of it should it have died."""
    target = chosen_account(run_as)
    if target is not None:
        from . import as_other

        return as_other.statuses(target, execution_id)
    from . import follow
    from .jobdir import StateDirectory

    return [follow.settled_status(StateDirectory.open().execution(execution_id))]


def _statuses_of_another(
    target: "Account", *, wants_all: bool, wants_running: bool, as_json: bool
) -> list[dict[str, Any]]:
    """How all executions of another account stand; with `as_json` more than a table shows."""
    from . import as_other
    from .listing import has_ended

    return [
        one
        for one in as_other.statuses(target, wants_all=wants_all, is_brief=not as_json)
        if (wants_all or not one.get("collected")) and not (wants_running and has_ended(one))
    ]


@click.command()
@click.argument("execution_id", metavar="ID")
@click.option(
    "--gone",
    "is_gone",
    is_flag=True,
    help="Its machine or container no longer exists: record it as lost. Refused while it is known to run.",
)
@run_as_option
def cancel(execution_id: str, is_gone: bool, run_as: str | None) -> None:
    """End an execution: SIGTERM, five seconds, SIGKILL. Returns when nothing of it is left."""
    if is_gone and run_as is not None:
        raise click.UsageError("--gone and --run-as exclude each other; use --gone as that account itself")
    target = chosen_account(run_as)
    if is_gone:
        from . import follow
        from .jobdir import StateDirectory

        did_end_it = follow.declare_gone(StateDirectory.open().execution(execution_id))
    elif target is None:
        from . import foreground
        from .jobdir import StateDirectory

        did_end_it = foreground.cancel(StateDirectory.open().execution(execution_id))
    else:
        from . import as_other

        did_end_it = as_other.cancel(target, execution_id)
    if not did_end_it:
        say(f"'{execution_id}' has ended already")


@click.command()
@click.argument("execution_ids", metavar="ID...", nargs=-1, required=True)
@run_as_option
def wait(execution_ids: tuple[str, ...], run_as: str | None) -> None:
    """Wait until executions have ended, and say how. An interrupt leaves them running.

    One: its exit status is ours; several: 0 when all succeeded, 100 + failures when some did, else the largest.
    """
    from . import report
    from .wire.results import exit_status_of_many

    statuses = []
    for seeing_through in _seeing_through(execution_ids, run_as):
        result = seeing_through()
        report.print_result_line(result)
        statuses.append(exit_status(result))
    sys.exit(statuses[0] if len(statuses) == 1 else exit_status_of_many(statuses))


def _seeing_through(execution_ids: tuple[str, ...], run_as: str | None) -> "list[Callable[[], Result]]":
    """What waits for each of the executions. One that there isn't is told of before anything is waited for."""
    target = chosen_account(run_as)
    if target is not None:
        from . import as_other

        return [functools.partial(as_other.wait, target, execution_id) for execution_id in execution_ids]
    from . import foreground
    from .jobdir import StateDirectory

    state = StateDirectory.open()
    executions = [state.execution(execution_id) for execution_id in execution_ids]
    return [functools.partial(foreground.attach, execution, show=False) for execution in executions]


@click.command()
@click.option("--older-than", "days", type=float, metavar="DAYS", help="Records that were fetched; 7 by default.")
@click.option("--budget", metavar="SIZE", help="What the state directory may take, like 2GiB; 10GiB by default.")
@click.option(
    "--unacknowledged-older-than",
    "unacknowledged_days",
    type=float,
    metavar="DAYS",
    help="Also records that nobody has fetched; they are kept for ever otherwise.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@run_as_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def gc(budget: str | None, dry_run: bool, run_as: str | None, as_json: bool, **ages: float | None) -> None:
    """Collect what is kept of executions that have ended, and payloads that nobody uses. Happens by itself every hour.

    An execution's id stays taken: how it ended is all that is left of it.
    """
    from . import report

    told = _collected(budget, dry_run, run_as, **ages)
    if as_json:
        print_json(told)
    else:
        report.print_collection(told)


def _collected(
    budget: str | None, dry_run: bool, run_as: str | None, *, days: float | None, unacknowledged_days: float | None
) -> dict[str, Any]:
    asked = {"olderThanDays": days, "budget": budget, "unacknowledgedOlderThanDays": unacknowledged_days}
    wanted: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    target = chosen_account(run_as)
    if target is not None:
        from . import as_other

        return as_other.collect(target, {**wanted, "dryRun": dry_run})
    from . import retention, settings
    from .jobdir import StateDirectory

    state = StateDirectory.open()
    chosen = settings.read(state, days=days, budget=budget, unacknowledged_days=unacknowledged_days)
    return retention.collect(state, chosen, is_dry_run=dry_run).to_json()


COMMANDS: Final = (attach, wait, status, list_executions, cancel, gc)
