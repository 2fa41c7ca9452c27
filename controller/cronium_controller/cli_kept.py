"""What hosts keep, from any controller: `cronium ps` and `gc` for executions, `uninstall` for the runner as well."""

from typing import TYPE_CHECKING, Any, Final

import click

from .arguments import Number
from .cli_each import ask_hosts
from .cli_hosts import some_hosts
from .cli_reaching import HELP, reaching, run_on_many

if TYPE_CHECKING:
    from .dispatch import Controller
    from .hosts import BadTarget, Host

_run_as = click.option("--run-as", metavar="USER", help="The executions of this account of the host.")


@click.command(context_settings=HELP)
@some_hosts
@reaching
@_run_as
@click.option("--all", "wants_all", is_flag=True, help="Also those of which only the ending is left.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def ps(
    hosts_given: tuple[str, ...], forks: int, run_as: str | None, wants_all: bool, as_json: bool, **options: Any
) -> None:
    """List what runs on hosts and what they keep, whoever submitted it: id, state, age, bytes of output.

    \b
    Example:
      cronium ps --host deploy@web01
    """
    from cronium_runner.wire.masks import hidden_status

    from . import show

    async def look(controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        is_one, has_head = len(targets) == 1, True

        async def ask(where: "Host") -> None:
            nonlocal has_head
            found = await controller.executions(where, run_as=run_as, wants_all=wants_all, is_brief=not as_json)
            for one in found if as_json else ():
                show.print_json({"host": where.name, **hidden_status(one)})
            if not as_json:
                show.print_executions(found, host=None if is_one else where.name, has_head=has_head)
                has_head = False

        return await ask_hosts(controller, targets, forks, ask)

    run_on_many(hosts_given, options, look, as_json=as_json)


@click.command(context_settings=HELP)
@some_hosts
@reaching
@_run_as
@click.option(
    "--older-than", type=Number(min=0), metavar="DAYS", help="Instead of the host's own age, 7 days by default."
)
@click.option("--budget", metavar="SIZE", help="Bytes or like 10GiB: instead of the host's own.")
@click.option(
    "--unacknowledged-older-than",
    type=Number(min=0),
    metavar="DAYS",
    help="Also results that nobody fetched. By default never.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a host.")
def gc(
    hosts_given: tuple[str, ...],
    forks: int,
    run_as: str | None,
    older_than: float | None,
    budget: str | None,
    unacknowledged_older_than: float | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Remove old records and payloads from hosts now; they do so by themselves each hour. Ids stay used for ever.

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

    async def collect(controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        wanted = {key: value for key, value in asked.items() if value is not None}

        async def ask(where: "Host") -> None:
            done = await controller.collect(where, wanted, run_as=run_as)
            if as_json:
                show.print_json({"host": where.name, **done})
            else:
                show.print_collection(done, None if len(targets) == 1 else where.name)

        return await ask_hosts(controller, targets, forks, ask, as_json=as_json)

    run_on_many(hosts_given, options, collect, as_json=as_json)


@click.command(context_settings=HELP)
@some_hosts
@reaching
@click.option("--records", "wants_records", is_flag=True, help="Also all executions there, with results and output.")
@click.option("--force", "is_forced", is_flag=True, help="Also what is in use; executions that run are ended first.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a host.")
def uninstall(
    hosts_given: tuple[str, ...],
    forks: int,
    wants_records: bool,
    is_forced: bool,
    is_dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Remove the runner from hosts: every version that is installed for the account that logs in.

    A version that a process runs from stays. With --records the executions go as well, and their ids may be used
    again; refused while one runs or its result was not fetched. Ends with 1 when something stays.

    \b
    Examples:
      cronium uninstall --host deploy@web01 --dry-run
      cronium uninstall --host deploy@web01
      cronium uninstall --on web --records
    """
    from . import show

    async def remove(controller: "Controller", where: "Host", *, is_one: bool) -> int:
        report = await controller.uninstall(
            where, wants_records=wants_records, is_forced=is_forced, is_dry_run=is_dry_run
        )
        if as_json:
            show.print_json({"host": where.name, **report})
        else:
            show.print_uninstalled(report, None if is_one else where.name)
        return int(bool(report["kept"]))

    async def remove_all(controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        is_one = len(targets) == 1
        return await ask_hosts(
            controller, targets, forks, lambda where: remove(controller, where, is_one=is_one), as_json=as_json
        )

    run_on_many(hosts_given, options, remove_all, as_json=as_json)


COMMANDS: Final = (ps, gc, uninstall)
