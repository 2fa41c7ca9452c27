"""Hosts on the command line: the options that say which are meant, and `cronium hosts`, which lists them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from .errors import ControllerError

if TYPE_CHECKING:
    from .hosts import Host
    from .inventory import Inventory

_COLUMNS: Final = ("NAME", "ADDRESS", "USER", "PORT", "ROUTES", "GROUPS")


def one_host(function: Any) -> Any:
    """The options that say on which host a command works."""
    options = [
        click.option("--host", metavar="[USER@]ADDR[:PORT]", help="Where; an alias of ~/.ssh/config will do."),
        click.option(
            "--on", multiple=True, metavar="NAME|GROUP|SET", help="Where, by the hosts file, like web01 or web[01-20]."
        ),
        _hosts_file,
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _hosts_file(function: Any) -> Any:
    return click.option(
        "--hosts", "hosts_file", metavar="FILE", help="Instead of hosts.yaml here or in ~/.config/cronium."
    )(function)


def chosen_host(host: str | None, options: dict[str, Any]) -> "Host":
    """The one host of --host or --on. Raises ControllerError when there is none, or more than one."""
    from .hosts import parse_host

    on: Sequence[str] = options["on"]
    if (host is None) == (not on):
        raise ControllerError("usage.invalid", "say where: either --host [user@]address[:port] or --on name")
    if host is not None:
        return parse_host(host, identity=options["identity"])
    inventory = _load(options["hosts_file"])
    selected = inventory.select(on)
    if len(selected) > 1:
        raise ControllerError(
            "usage.invalid",
            f"{','.join(on)[:80]!r} stands for {len(selected)} hosts, and this command takes one; name a single host",
        )
    where = selected[0]
    return where if options["identity"] is None else replace(where, identity=options["identity"])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--on", multiple=True, metavar="NAME|GROUP|SET", help="Only these.")
@_hosts_file
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def hosts(on: Sequence[str], hosts_file: str | None, as_json: bool) -> None:
    """List the hosts of the hosts file. It asks no host.

    \b
    Example:
      cronium hosts --on web
    """
    from . import show

    try:
        inventory = _load(hosts_file)
        selected = inventory.select(on) if on else [inventory.host(name) for name in inventory.entries]
    except ControllerError as error:
        click.echo(f"cronium: {error.message} [{error.code}]", err=True)
        sys.exit(error.exit_status)
    if as_json:
        for host in selected:
            show.print_json(_as_json(host, inventory))
    elif selected:
        _print_table([_COLUMNS, *(_row(host, inventory) for host in selected)])
    else:
        click.echo(f"cronium: {inventory.path} names no host", err=True)


def _load(hosts_file: str | None) -> "Inventory":
    from . import inventory

    loaded = inventory.load(hosts_file)
    for sentence in loaded.warnings:
        click.echo(f"cronium: warning: {sentence}", err=True)
    return loaded


def _as_json(host: "Host", inventory: "Inventory") -> dict[str, Any]:
    from . import transport

    return {
        "name": host.name,
        "address": host.address,
        "user": host.user,
        "port": host.port,
        "routes": [{"transport": way.transport, "address": way.address} for way in transport.routes(host)],
        "groups": inventory.groups_of(host.name),
        "local": host.is_local,
        "labels": dict(inventory.entries[host.name].labels),
    }


def _row(host: "Host", inventory: "Inventory") -> tuple[str, ...]:
    from . import transport

    ways = "local" if host.is_local else ",".join(way.transport for way in transport.routes(host))
    groups = ",".join(inventory.groups_of(host.name))
    return (host.name, host.address, host.user or "-", str(host.port or "-"), ways, groups or "-")


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())
