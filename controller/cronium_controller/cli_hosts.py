"""Hosts on the command line: the options that say which are meant, and `cronium hosts`, which lists them."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from . import completing
from .errors import ControllerError
from .schedule import FORKS, parse_share

if TYPE_CHECKING:
    from .deployments import Known
    from .health import HostHealth
    from .hosts import BadTarget, Host
    from .inventory import Inventory
    from .openssh_sockets import Standing
    from .transport import Route

_COLUMNS: Final = (
    "NAME", "ADDRESS", "USER", "PORT", "ROUTES", "GROUPS", "RUNNER", "HEALTH", "USED", "SUCCESS", "LAST ERROR",
)  # fmt: skip

_SHOWN: Final = 60
"""Characters of an error in a table; --json has all of it."""


_on = click.option(
    "--on",
    multiple=True,
    metavar="NAME|GROUP|SET",
    shell_complete=completing.host_names,
    help="Where, by the hosts file, like web01 or web[01-20].",
)


def some_hosts(function: Any) -> Any:
    """The options that say on which hosts a command works, and on how many of them at once."""
    options: list[Any] = [
        click.option(
            "--host",
            "hosts_given",
            multiple=True,
            metavar="[USER@]ADDR[:PORT]",
            shell_complete=completing.ssh_aliases,
            help="Where; an alias of ~/.ssh/config, or local: for here. Repeatable.",
        ),
        _on,
        _hosts_file,
        click.option(
            "--forks",
            type=click.IntRange(min=1),
            metavar="N",
            default=FORKS,
            show_default=True,
            help="Hosts at once.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def many_hosts(function: Any) -> Any:
    """The same for a run on them: in batches, and until too many have failed."""
    options: list[Any] = [
        some_hosts,
        click.option(
            "--serial", metavar="N|%", help="In batches of so many hosts; the next begins when one has ended."
        ),
        click.option("--max-failures", metavar="N|%", help="With more failures, begin with no further host."),
        click.option("--stop-on-failure", is_flag=True, help="The same as --max-failures 0."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def chosen_targets(given: Sequence[str], options: dict[str, Any]) -> "list[Host | BadTarget]":
    """The hosts of --host and --on. A malformed one is a failed result among several.

    Raises ControllerError when there is none, and when the only one is malformed.
    """
    from .hosts import BadTarget, distinct, parse_host

    _check_shares(options)
    on: Sequence[str] = options["on"]
    if not given and not on:
        raise ControllerError("usage.invalid", "say where: --host [user@]address[:port], or --on name")
    found: list[Host | BadTarget] = []
    for text in dict.fromkeys(given):
        try:
            found.append(parse_host(text, identity=options["identity"]))
        except ControllerError as error:
            found.append(BadTarget(text, error))
    if on:
        for target in _load(options["hosts_file"], on).select_each(on):
            if options["identity"] is None or isinstance(target, BadTarget):
                found.append(target)
            else:
                found.append(replace(target, identity=options["identity"]))
    found = distinct(found)
    if len(found) == 1 and isinstance(found[0], BadTarget):
        raise found[0].error
    return found


def _check_shares(options: dict[str, Any]) -> None:
    """What is refused is named as it was typed. Raises ControllerError."""
    for name, lowest in (("serial", 1), ("max_failures", 0)):
        if options.get(name) is not None:
            parse_share(options[name], f"--{name.replace('_', '-')}", lowest=lowest)


def _hosts_file(function: Any) -> Any:
    return click.option(
        "--hosts",
        "hosts_file",
        metavar="FILE",
        shell_complete=completing.files,
        help="Instead of hosts.yaml here or in ~/.config/cronium.",
    )(function)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--on", multiple=True, metavar="NAME|GROUP|SET", shell_complete=completing.host_names, help="Only these.")
@_hosts_file
@click.option("--reset", is_flag=True, help="Forget how they stood: a host that is left alone is tried again.")
@click.option("--connections", is_flag=True, help="List the connections that `ssh` holds for us, and until when.")
@click.option(
    "--disconnect",
    is_flag=False,
    flag_value="",
    metavar="[HOST]",
    shell_complete=completing.host_names,
    help="End those that no command uses: to HOST, or all.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def hosts(
    on: Sequence[str], hosts_file: str | None, reset: bool, connections: bool, disconnect: str | None, as_json: bool
) -> None:
    """List the hosts of the hosts file, and which runner they had and how they stood when they were last reached.

    It asks no host.

    \b
    Examples:
      cronium hosts --on web
      cronium hosts --on web01 --reset
      cronium hosts --connections
      cronium hosts --disconnect web01
    """
    if connections or disconnect is not None:
        _show_connections(disconnect, as_json=as_json)
        return
    from . import show
    from .hosts import BadTarget, Host

    try:
        inventory = _load(hosts_file, on)
        rows = inventory.select_each(on or inventory.entries) if inventory.entries else []
        selected = [row for row in rows if isinstance(row, Host)]
        known, seen = _remembered(selected, reset=reset)
    except ControllerError as error:
        click.echo(f"cronium: {error.message} [{error.code}]", err=True)
        sys.exit(error.exit_status)
    if as_json:
        for host in selected:
            runner = seen[host.name].to_json() if host.name in seen else None
            health = _health_json(known.get(host.name))
            show.print_json({**_as_json(host, inventory), "runner": runner, "health": health})
    elif rows:
        _print_table(
            [
                _COLUMNS,
                *(
                    (*_row(host, inventory), _runner_cell(seen.get(host.name)), *_health_row(known.get(host.name)))
                    for host in selected
                ),
            ]
        )
    else:
        click.echo(f"cronium: {inventory.path} names no host", err=True)
    mistakes = [row.error for row in rows if isinstance(row, BadTarget)]
    for mistake in mistakes:
        click.echo(f"cronium: {mistake.message} [{mistake.code}]", err=True)
    if mistakes:
        sys.exit(mistakes[0].exit_status)


def _show_connections(disconnect: str | None, *, as_json: bool) -> None:
    """Lists what OpenSSH's program holds; with `disconnect`, which names a host or is empty, ends it instead."""
    import asyncio

    from . import show
    from .openssh_sockets import disconnected, living

    try:
        found = living()
    except ControllerError as error:
        click.echo(f"cronium: {error.message} [{error.code}]", err=True)
        sys.exit(error.exit_status)
    if disconnect is not None:
        chosen = [one for one in found if disconnect in ("", one.host)]
        for one in chosen:
            if one.is_used:
                click.echo(f"cronium: {one.host}: left, as a command uses it", err=True)
        found = asyncio.run(disconnected([one for one in chosen if not one.is_used]))
        if not chosen:
            click.echo(f"cronium: no connection{f' to {disconnect}' if disconnect else ''} is held", err=True)
    if as_json:
        for one in found:
            show.print_json(one.to_json())
    elif found:
        rows = [("HOST", "ADDRESS", "ROUTE", "SINCE", "UNTIL")]
        rows += [
            (one.host, f"{one.user}@{one.address}:{one.port}", one.transport, _clock(one.since), _end(one))
            for one in found
        ]
        _print_table(rows if disconnect is None else [row[:-1] for row in rows])
    elif disconnect is None:
        click.echo("cronium: no connection is held", err=True)


def _end(one: "Standing") -> str:
    if one.is_used:
        return "in use"
    return "it is ended" if one.until is None else _clock(one.until)


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))


def _load(hosts_file: str | None, targets: Sequence[str]) -> "Inventory":
    from . import inventory

    loaded = inventory.load_for(targets, hosts_file) if targets else inventory.load(hosts_file, keeps_bad_rows=True)
    for sentence in loaded.warnings:
        click.echo(f"cronium: warning: {sentence}", err=True)
    return loaded


def _remembered(selected: "Sequence[Host]", *, reset: bool) -> "tuple[dict[str, HostHealth], dict[str, Known]]":
    """How hosts stood, and the runners that they had, by name.

    Both are empty, and no database is made, where none was ever reached from here.
    """
    from .deployments import Deployments
    from .memory import account
    from .runners import Runners
    from .state_path import default_path
    from .store import Store

    if not default_path().exists():
        return {}, {}
    store = Store()
    try:
        if reset:
            store.forget_health([account(host) for host in selected])
        found = {host.name: store.health(account(host)) for host in selected}
        ledger, root = Deployments(store), Runners().root
        seen = {host.name: ledger.seen(host, root) for host in selected}
    finally:
        store.close()
    return (
        {name: health for name, health in found.items() if health is not None},
        {name: known for name, known in seen.items() if known is not None},
    )


def _runner_cell(known: "Known | None") -> str:
    if known is None:
        return "-"
    return f"{known.folder} (chosen)" if known.is_chosen else known.folder


def _health_json(known: "HostHealth | None") -> dict[str, Any] | None:
    if known is None:
        return None
    calls = known.calls
    return {
        "healthy": calls.is_healthy,
        "successRate": calls.success_rate,
        "successes": calls.total_successes,
        "failures": calls.total_failures,
        "consecutiveFailures": calls.consecutive_failures,
        "pausedSeconds": round(known.breaker.wait(time.time()), 1),
        "transport": known.transport,
        "lastError": known.last_error,
    }


def _health_row(known: "HostHealth | None") -> tuple[str, ...]:
    if known is None:
        return ("-", "-", "-", "-")
    left = known.breaker.wait(time.time())
    state = f"paused {left:.0f} s" if left else "healthy" if known.calls.is_healthy else "unhealthy"
    error = "-" if known.last_error is None else known.last_error[:_SHOWN]
    has_calls = known.calls.total_successes + known.calls.total_failures > 0
    return (state, known.transport or "-", f"{known.calls.success_rate:.0%}" if has_calls else "-", error)


def _as_json(host: "Host", inventory: "Inventory") -> dict[str, Any]:
    return {
        "name": host.name,
        "address": host.address,
        "user": host.user,
        "port": host.port,
        "routes": [{"transport": way.transport, "address": way.address} for way in _routes(host)],
        "groups": inventory.groups_of(host.name),
        "local": host.is_local,
        "labels": dict(inventory.entries[host.name].labels),
    }


def _routes(host: "Host") -> "list[Route]":
    from . import transport

    return [transport.Route("local", host.address)] if host.is_local else transport.routes(host)


def _row(host: "Host", inventory: "Inventory") -> tuple[str, ...]:
    ways = ",".join(way.transport for way in _routes(host))
    groups = ",".join(inventory.groups_of(host.name))
    return (host.name, host.address, host.user or "-", str(host.port or "-"), ways, groups or "-")


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    from .widths import aligned

    for line in aligned(rows):
        click.echo(line)
