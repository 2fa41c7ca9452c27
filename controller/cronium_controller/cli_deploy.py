"""`cronium deploy`: the runner onto a host, back to an earlier one, and what was deployed so far."""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from cronium_runner.wire.sizes import readable

from .cli_each import ask_hosts
from .cli_executions import MOST_LISTED
from .cli_hosts import chosen_targets, some_hosts
from .cli_reaching import HELP, reaching, run_on_many
from .errors import ControllerError

if TYPE_CHECKING:
    from .deployments import Made
    from .dispatch import Controller
    from .hosts import BadTarget, Host


@click.command(context_settings=HELP)
@some_hosts
@reaching
@click.option("--rollback", is_flag=True, help="Have jobs there use the runner before the present one.")
@click.option("--version", metavar="VERSION", help="Have jobs there use this one: from the host, or from beside ours.")
@click.option(
    "--stage",
    metavar="STAGES",
    help="Onto the hosts in stages, like 1,10%,50%,100%, each checked; back to what was there when too many fail.",
)
@click.option("--soak", metavar="TIME", help="With --stage, wait so long after each and check again; 600, 10m or 2h.")
@click.option(
    "--max-failures", metavar="N|%", help="With --stage, stop and roll back when more hosts have failed.  [default: 0]"
)
@click.option("--verify", is_flag=True, help="Only compare the runners there with their builds; 0 when all agree.")
@click.option(
    "--history", is_flag=True, help="Only list what was deployed from here, newest first; of all without a host."
)
@click.option(
    "-n", "count", type=click.IntRange(1, MOST_LISTED), default=20, show_default=True, help="How many at most."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a host; with --history one a deployment.")
def deploy(
    hosts_given: tuple[str, ...],
    forks: int,
    rollback: bool,
    version: str | None,
    stage: str | None,
    soak: str | None,
    max_failures: str | None,
    verify: bool,
    history: bool,
    count: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Put our runner on hosts where it is not there whole, and have jobs use it. `run` does that by itself.

    \b
    Examples:
      cronium deploy --host deploy@web01
      cronium deploy --on web
      cronium deploy --host deploy@web01 --rollback
      cronium deploy --on web --verify
      cronium deploy --on web --stage 1,10%,50%,100% --soak 10m --max-failures 1
      cronium deploy --history
    """
    from . import show

    given = {
        "--rollback": rollback, "--version": version is not None, "--stage": stage is not None, "--verify": verify,
        "--history": history,
    }  # fmt: skip
    _refuse_both([option for option, is_given in given.items() if is_given])
    if stage is None and (soak is not None or max_failures is not None):
        raise click.UsageError(f"{'--max-failures' if soak is None else '--soak'} is for --stage only")
    if history:
        _show_history(hosts_given, options, count, as_json)
        return

    if stage is not None:
        from .cli_rollout import Wanted

        wanted = Wanted.parsed(stage, soak or "0", max_failures or "0", forks=forks, as_json=as_json)
        run_on_many(hosts_given, options, wanted.roll_out, as_json=as_json)
        return

    async def put(controller: "Controller", where: "Host") -> int:
        if verify:
            from .cli_verify import verify as verify_one

            return await verify_one(controller, where, as_json=as_json)
        if rollback or version is not None:
            done = await controller.roll_back(where, version)
        else:
            done = await controller.deploy(where)
        if as_json:
            told = {"path": done.path, "version": done.version, "uploadedBytes": done.uploaded_bytes}
            show.print_json({"host": where.name, **told, "attempts": done.attempts})
        elif done.uploaded_bytes:
            tries = "" if done.attempts == 1 else f", attempt {done.attempts}"
            click.echo(f"{where}: installed {done.path} ({readable(done.uploaded_bytes)} by {done.method}{tries})")
        else:
            click.echo(f"{where}: {done.path} is there{' and used from now on' if rollback or version else ''}")
        return 0

    async def put_on_all(controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        return await ask_hosts(controller, targets, forks, lambda where: put(controller, where), as_json=as_json)

    run_on_many(hosts_given, options, put_on_all, as_json=as_json)


def _refuse_both(given: list[str]) -> None:
    """Ends the command when more than one of the options that say what it is to do was given."""
    if len(given) > 1:
        raise click.UsageError(f"say either {given[0]} or {given[1]}, not both")


def _show_history(given: tuple[str, ...], options: dict[str, Any], count: int, as_json: bool) -> None:
    from . import show
    from .deployments import Deployments
    from .hosts import BadTarget
    from .store import Store

    try:
        targets = chosen_targets(given, options) if given or options["on"] else [None]
        hosts = [target for target in targets if not isinstance(target, BadTarget)]
        store = Store()
        try:
            found = [made for host in hosts for made in Deployments(store).history(count, host)]
        finally:
            store.close()
    except ControllerError as error:
        click.echo(f"cronium: {error.message} [{error.code}]", err=True)
        sys.exit(error.exit_status)
    for made in sorted(found, key=lambda made: made.deployed_at, reverse=True)[:count]:
        if as_json:
            show.print_json(made.to_json())
        else:
            click.echo(_line(made))


def _line(made: "Made") -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(made.deployed_at))
    what = f"{made.version or '?'}-{(made.sha256 or '?')[:12]}"
    tries = f"{made.attempts} attempt{'' if made.attempts == 1 else 's'}"
    cost = f"{made.duration_ms / 1000:.1f} s, {readable(made.uploaded_bytes)}, {tries}"
    return f"{when}  {made.host}  {what} {made.architecture or ''}  {made.outcome} ({cost}) {made.error or ''}".rstrip()
