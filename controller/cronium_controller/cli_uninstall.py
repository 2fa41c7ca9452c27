"""`cronium uninstall`: the runner off hosts again, and with it, when asked, what they keep of executions."""

from typing import TYPE_CHECKING, Any

import click

from .cli_each import ask_hosts
from .cli_hosts import some_hosts
from .cli_reaching import HELP, reaching, run_on_many

if TYPE_CHECKING:
    from .dispatch import Controller
    from .hosts import BadTarget, Host


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
