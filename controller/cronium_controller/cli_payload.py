"""`cronium payload build|list|verify|gc`: the payloads of events, in versions. None of them talks to a host."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from .arguments import Number
from .cli_reaching import HELP, signing
from .errors import ControllerError

if TYPE_CHECKING:
    from .payload_versions import PayloadVersions, Version


@click.group(context_settings=HELP)
def payload() -> None:
    """Payloads of events, in versions: a new one exactly when something in it changed.

    `cronium run --host H event:ID` runs the active version, event:ID@2 the second one.
    """


@payload.command(context_settings=HELP)
@click.argument("event_id", metavar="EVENT-ID")
@click.argument("source", metavar="SCRIPT|DIR|PAYLOAD", type=click.Path())
@click.option("--name", help="What the event is called; scripts see it in cronium.event.")
@click.option("--interpreter", metavar="NAME", help="For a script, instead of what its first line or name says.")
@click.option("--arg", "args", multiple=True, metavar="TEXT", help="For a script: an argument; repeatable.")
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="For a script; repeatable, no secrets.")
@click.option("--timeout", type=Number(), metavar="SECONDS", help="For a script.")
@click.option("--limit", "limits", multiple=True, metavar="KEY=VALUE", help="For a script, as for `run`; repeatable.")
@signing
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def build(event_id: str, source: str, signing_key: str | None, as_json: bool, **options: Any) -> None:
    """Make the payload of an event, if it is another than the last.

    A script gets a manifest with what the options say; a directory has its own. It is read as strictly as a host will.

    \b
    Examples:
      cronium payload build 123 ./backup.sh --name "Daily Backup" --timeout 600
      cronium payload build 124 ./report/
      cronium payload build 124 ./report/ --sign ~/.ssh/id_ed25519
    """
    from . import payloads, show, signing

    def make(versions: "PayloadVersions") -> int:
        fields = _fields(options)
        loaded = payloads.load(source, fields, defaults={"metadata": _metadata(event_id, options["name"])})
        if signing_key is not None:
            signing.sign_payload(loaded, signing_key)
        version, is_new = versions.build(event_id, loaded, name=options["name"])
        if as_json:
            show.print_json({**version.to_json(), "isNew": is_new})
        else:
            click.echo(f"{'built' if is_new else 'unchanged'}: {_line(version)}")
        return 0

    _with_versions(make)


@payload.command("list", context_settings=HELP)
@click.argument("event_id", metavar="[EVENT-ID]", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_versions(event_id: str | None, as_json: bool) -> None:
    """List the versions of all events, or of one; * is the active one.

    \b
    Example:
      cronium payload list 123
    """
    from . import show

    def tell(versions: "PayloadVersions") -> int:
        found = versions.versions(event_id)
        _say_when_none(found, event_id)
        for version in found:
            if as_json:
                show.print_json(version.to_json())
            else:
                click.echo(_line(version))
        return 0

    _with_versions(tell)


@payload.command(context_settings=HELP)
@click.argument("event_id", metavar="[EVENT-ID]", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def verify(event_id: str | None, as_json: bool) -> None:
    """Check every version: its digest, its .sha256, and by reading it as strictly as a host does.

    Ends with 1 when something is wrong with one, and names what.

    \b
    Example:
      cronium payload verify
    """
    from . import show

    def look(versions: "PayloadVersions") -> int:
        is_ill = False
        found = list(versions.verify(event_id))
        _say_when_none(found, event_id)
        for path, problems in found:
            is_ill = is_ill or bool(problems)
            if as_json:
                show.print_json({"path": path, "problems": problems})
            else:
                click.echo(f"{path}: {'; '.join(problems) or 'ok'}")
        return int(is_ill)

    _with_versions(look)


@payload.command(context_settings=HELP)
@click.option("--keep", type=click.IntRange(min=1), default=5, show_default=True, help="Versions of each event.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def gc(keep: int, as_json: bool) -> None:
    """Remove old versions; never an active one, or one of which an execution has no result yet.

    \b
    Example:
      cronium payload gc --keep 2
    """
    from . import show

    def collect(versions: "PayloadVersions") -> int:
        removed = [str(path) for path in versions.collect(keep)]
        if as_json:
            show.print_json({"removed": removed})
        else:
            for path in removed:
                click.echo(f"removed {path}")
        return 0

    _with_versions(collect)


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """The manifest's fields that the options say. Raises WordError."""
    from cronium_runner.wire import words

    given: dict[str, Any] = {
        "interpreter": None if options["interpreter"] is None else words.interpreter(options["interpreter"]),
        "args": list(options["args"]),
        "environment": words.variables(options["environment"]),
        "timeout": options["timeout"],
        "limits": words.limits(options["limits"]).to_json(),
    }
    return {key: value for key, value in given.items() if value}


def _say_when_none(found: "Sequence[object]", event_id: str | None) -> None:
    """None at all is said; none of an event that was asked for raises ControllerError."""
    if not found and event_id is not None:
        raise ControllerError(
            "payload.not_found",
            f"there is no payload event:{event_id[:80]}; build it with: cronium payload build {event_id[:80]} SCRIPT",
        )
    if not found:
        click.echo("cronium: no payload was built yet; see: cronium payload build --help", err=True)


def _metadata(event_id: str, name: str | None) -> dict[str, Any]:
    return {"eventId": event_id} if name is None else {"eventId": event_id, "eventName": name}


def _line(version: "Version") -> str:
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(version.created_at))
    mark = "*" if version.is_active else " "
    name = f"event:{version.event_id}@{version.version}"
    signed = "  signed" if version.is_signed else ""
    return f"{mark} {name}  {version.hash[:12]}  {version.size:>9}  {made}  {version.path}{signed}"


def _with_versions(work: "Callable[[PayloadVersions], int]") -> None:
    """Ends with the exit status that `work` returns, or with the error's."""
    from cronium_runner.wire.words import WordError

    from .payload_versions import PayloadVersions
    from .store import Store

    try:
        store = Store()
        try:
            status = work(PayloadVersions(store))
        except WordError as error:
            raise ControllerError(error.code, error.message) from None
        finally:
            store.close()
    except ControllerError as error:
        click.echo(f"cronium: {error.message} [{error.code}]", err=True)
        status = error.exit_status
    sys.exit(status)
