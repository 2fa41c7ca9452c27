"""`cronium api …`: serving the runtime API, and the operator's side of its data.

Imported by every `cronium`, so nothing heavy is imported before a command needs it.
"""

import asyncio
import contextlib
import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..errors import ControllerError

if TYPE_CHECKING:
    from ..platform_store import PlatformStore

_HELP = {"help_option_names": ["-h", "--help"]}
_PRUNE_SECONDS: Final = 6 * 3600.0
"""What is pruned is a week old, so a quarter of a day more or less is nothing."""


@click.group(context_settings=_HELP)
def api() -> None:
    """Serve live data to jobs in API mode, and look at it.

    \b
    Examples:
      cronium api serve
      cronium api variables set RATE 0.2
      cronium api audit
    """


def _told(command: Callable[..., None]) -> Callable[..., None]:
    """Turns our errors into one sentence and an exit status."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        try:
            command(**arguments)
        except ControllerError as error:
            click.echo(f"cronium: {error.message} [{error.code}]", err=True)
            sys.exit(error.exit_status)

    return wrapped


_database = click.option(
    "--database",
    metavar="URL|FILE",
    help="Instead of CRONIUM_DATABASE and live.db: postgresql://user@host/name, or an SQLite file.",
)
_key_file = click.option(
    "--key-file", type=click.Path(path_type=Path), metavar="FILE", help="Instead of CRONIUM_API_KEY_FILE."
)
_user = click.option("--user", "user_id", metavar="USER", help="This user's variables; the global ones without it.")

_LIMITS: Final = {
    "requests_per_minute": "Requests of each token.",
    "largest_body": "Bytes of a request's body.",
    "keys": "Variables that a token may write.",
    "stored_bytes": "Bytes that a token may store.",
    "bytes_per_minute": "Bytes that a token may write in a minute.",
    "header_seconds": "Seconds for a request's headers.",
    "connections": "Connections of each token, and of each tunnel.",
    "connections_per_address": "Connections of each address.",
    "connections_without_token": "Connections that have shown no valid token.",
}


class _Limited(click.Command):
    """Has an option for each of `limits.Limits`, added when its options are asked for: `limits` is imported then."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """As click.Command."""
        if not any(option.name in _LIMITS for option in self.params):
            self.params[-1:-1] = _limit_options()
        return super().get_params(ctx)


def _limit_options() -> list[click.Parameter]:
    from .limits import NAMES, Limits, environment_name

    options: list[click.Parameter] = []
    for field, help_text in _LIMITS.items():
        default = getattr(Limits(), field)
        kind = click.FloatRange(min=0, min_open=True) if isinstance(default, float) else click.IntRange(min=1)
        said = f"{help_text} {environment_name(field)}, else {default:,}."
        options.append(click.Option([f"--{NAMES[field]}", field], type=kind, metavar="N", help=said))
    return options


@api.command(cls=_Limited, context_settings=_HELP)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDR", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=9090, show_default=True, help="0 is any free one.")
@click.option("--unix", "socket_path", metavar="PATH", help="Listen on a unix socket (0600) instead.")
@_database
@_key_file
@click.option(
    "--tools", "tools_file", type=click.Path(path_type=Path), metavar="FILE", help="Instead of CRONIUM_TOOLS."
)
@click.option("-v", "--verbose", is_flag=True, help="Log each request.")
@_told
def serve(host: str, port: int, socket_path: str | None, database: str | None, verbose: bool, **options: Any) -> None:
    """Serve the runtime API until INT or TERM.

    It speaks plain HTTP. On anything but the loopback interface or a unix socket put TLS in front of it.

    \b
    Examples:
      cronium api serve --port 9090
      cronium api serve --unix /run/user/1000/cronium.sock --tools tools.toml
    """
    from .app import RuntimeApi
    from .limits import NAMES, chosen
    from .logs import start_logging
    from .serve import is_loopback, tcp_listener, unix_listener
    from .tokens import Tokens, load_key
    from .tools import load_tools

    limits = chosen(os.environ, {field: options[field] for field in NAMES})
    start_logging(is_verbose=verbose)
    with _store(database) as store:
        app = RuntimeApi(
            store,
            Tokens(load_key(options["key_file"])),
            tools=load_tools(options["tools_file"]),
            limits=limits,
        )
        listener = tcp_listener(host, port) if socket_path is None else unix_listener(socket_path)
        if not is_loopback(listener):
            click.echo(
                f"cronium: warning: {host} can be reached by others, and tokens travel unencrypted; put TLS in front",
                err=True,
            )
        asyncio.run(_serve(app, listener, store))


async def _serve(app: Any, listener: socket.socket, store: "PlatformStore") -> None:
    from .serve import serving

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    pruning = asyncio.ensure_future(_keep_pruned(store))
    try:
        async with serving(app, listener):
            click.echo(f"cronium: runtime API on {_address(listener)}, data in {store.database.name}", err=True)
            await stop.wait()
    finally:
        pruning.cancel()


async def _keep_pruned(store: "PlatformStore") -> None:
    """Nobody starts a service anew for months, so it cleans up while it runs."""
    from ..errors import StoreError
    from .edge import log

    while True:
        try:
            await asyncio.to_thread(store.prune, time.time())
        except StoreError as error:
            log.warning("not_pruned", extra={"reason": error.message})
        await asyncio.sleep(_PRUNE_SECONDS)


def _address(listener: socket.socket) -> str:
    if listener.family == socket.AF_UNIX:
        return f"unix://{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@api.command(context_settings=_HELP)
@click.argument("execution_id", metavar="EXECUTION")
@click.option("--user", "user_id", default="default", show_default=True, metavar="USER", help="Whose variables.")
@click.option("--job", "job_id", metavar="ID", help="The job's id.")
@click.option("--input", "input_text", metavar="FILE|JSON", help="What the script reads as its input.")
@click.option("--event", "event_text", metavar="FILE|JSON", help="What it reads as its context.")
@click.option("--timeout", type=click.FloatRange(min=0), default=3600, show_default=True, help="Seconds of the script.")
@_database
@_key_file
@click.option("--print", "to_stdout", is_flag=True, help="On standard output.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Into a new file that is yours alone.")
@_told
def token(execution_id: str, to_stdout: bool, output: Path | None, **options: Any) -> None:
    """Make a token for one execution, which is made known if it isn't.

    Whoever has it can read and write what that execution's script can, until it expires or is revoked.

    \b
    Example:
      cronium api token try-1 --input '{"n": 1}' --output token
    """
    from cronium_runner.wire.names import invalid_id_sentence, is_execution_id

    from .issue import issue

    if to_stdout == (output is not None):
        raise click.UsageError("give one of --print and --output FILE")
    if not is_execution_id(execution_id):
        raise ControllerError("execution.id_invalid", invalid_id_sentence(execution_id))
    execution = _execution(execution_id, options)
    with _store(options["database"]) as store:
        made = issue(store, _tokens(options["key_file"]), execution, timeout=options["timeout"], actor=_operator())
    if output is None:
        click.echo(made.token)
    else:
        _write_privately(output, made.token)


@api.command(context_settings=_HELP)
@click.argument("execution_id", metavar="EXECUTION")
@_database
@_told
def revoke(execution_id: str, database: str | None) -> None:
    """Revoke all tokens of an execution.

    \b
    Example:
      cronium api revoke try-1
    """
    with _store(database) as store:
        count = store.revoke(execution_id, time.time(), actor=_operator())
    click.echo(f"revoked: {count}", err=True)


@api.group(context_settings=_HELP)
def variables() -> None:
    """Look at variables and change them; the next read of a running script sees it."""


@variables.command("get", context_settings=_HELP)
@click.argument("name")
@_user
@click.option("--json", "as_json", is_flag=True, help="Strings quoted too.")
@_database
@_told
def get_variable(name: str, user_id: str | None, as_json: bool, database: str | None) -> None:
    """Print a variable's value.

    \b
    Example:
      cronium api variables get RATE --user default
    """
    from cronium_runner.wire import exactjson
    from cronium_runner.wire.text import clean_json, clean_lines

    with _store(database) as store:
        found = store.variable(_name(name), user_id)
    if found is None:
        raise ControllerError("input.invalid", _no_variable(name, user_id))
    is_plain = isinstance(found.value, str) and not as_json
    if not is_plain:
        click.echo(clean_json(exactjson.dumps(found.value)))
    else:  # a pipe gets what a script has stored, byte for byte; a terminal nothing that it obeys
        click.echo(clean_lines(found.value.encode()) if sys.stdout.isatty() else found.value)


def _no_variable(name: str, user_id: str | None) -> str:
    """Scripts write to a user's variables, a person's first guess is the global ones."""
    if user_id is None:
        return (
            f"there is no global variable {name[:80]!r}; what scripts set: cronium api variables get NAME "
            "--user default, all names: cronium api variables list"
        )
    return f"user {user_id[:80]!r} has no variable {name[:80]!r}; see: cronium api variables list --user {user_id[:80]}"


@variables.command("set", context_settings=_HELP)
@click.argument("name")
@click.argument("value", required=False)
@_user
@click.option("--json", "as_json", is_flag=True, help="VALUE is JSON, not a string.")
@_database
@_told
def set_variable(name: str, value: str | None, user_id: str | None, as_json: bool, database: str | None) -> None:
    """Set a variable. Without VALUE, standard input is read: JSON if it parses, else a string.

    \b
    Examples:
      cronium api variables set RATE 0.2 --json
      cronium api variables set PASSWORD --user default < password.txt
    """
    if not name:
        raise ControllerError("input.invalid", "a variable needs a name")
    new = _value_of_input() if value is None else _value(value) if as_json else value
    with _store(database) as store:
        store.set_variable(_name(name), new, user_id, time.time(), actor=_operator(), host=socket.gethostname())


@variables.command("delete", context_settings=_HELP)
@click.argument("name")
@_user
@_database
@_told
def delete_variable(name: str, user_id: str | None, database: str | None) -> None:
    """Delete a variable. One of a user hides the global one of its name, which is seen again then.

    \b
    Example:
      cronium api variables delete RATE --user default
    """
    with _store(database) as store:
        was_there = store.delete_variable(
            _name(name), user_id, time.time(), actor=_operator(), host=socket.gethostname()
        )
    if not was_there:
        raise ControllerError("input.invalid", _no_variable(name, user_id))


@variables.command("list", context_settings=_HELP)
@_user
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the values.")
@_database
@_told
def list_variables(user_id: str | None, as_json: bool, database: str | None) -> None:
    """List the names, one a line; values only with --json.

    \b
    Example:
      cronium api variables list --user default --json
    """
    from cronium_runner.wire import exactjson
    from cronium_runner.wire.text import clean_json

    with _store(database) as store:
        found = store.variables(user_id)
    if as_json:
        click.echo(clean_json(exactjson.dumps({variable.name: variable.value for variable in found})))
        return
    for variable in found:
        click.echo(clean_json(exactjson.dumps(variable.name))[1:-1])


@api.command(context_settings=_HELP)
@click.argument("execution_id", required=False, metavar="[EXECUTION]")
@click.option("-n", "count", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="How many at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@_database
@_told
def audit(execution_id: str | None, count: int, as_json: bool, database: str | None) -> None:
    """Print who did what to which execution, when, from where; the newest last. It names no values.

    \b
    Example:
      cronium api audit exec_20260102_030405_0123456789ab
    """
    from cronium_runner.wire import exactjson
    from cronium_runner.wire.text import clean_json, visible

    with _store(database) as store:
        entries = store.audit(count, execution_id)
    if not entries:
        whose = "" if execution_id is None else f" of execution {execution_id[:80]!r}; only API mode is audited"
        click.echo(f"cronium: nothing is recorded{whose}", err=True)
    for entry in entries:
        click.echo(clean_json(exactjson.dumps(entry.to_json())) if as_json else visible(_line(entry)))


@api.command(context_settings=_HELP)
def openapi() -> None:
    """Print the OpenAPI description, as it is served at /openapi.json.

    \b
    Example:
      cronium api openapi > openapi.json
    """
    import json

    from .schema import document

    click.echo(json.dumps(document(), indent=2, ensure_ascii=False))


def _line(entry: Any) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
    number = "" if entry.sequence is None else f"#{entry.sequence}"
    where = entry.host or entry.peer
    words = [when, entry.actor, entry.action, entry.subject, number, entry.execution_id, where and f"from {where}"]
    return "  ".join(word for word in words if word)


@contextlib.contextmanager
def _store(database: str | None) -> "Iterator[PlatformStore]":
    from ..platform_store import PlatformStore, database_url

    if database is not None and database_url(database).password is not None:
        raise ControllerError(
            "usage.invalid", "--database: a password there is seen by others; set CRONIUM_DATABASE, or use ~/.pgpass"
        )
    store = PlatformStore(database)
    try:
        yield store
    finally:
        store.close()


def _tokens(key_file: Path | None) -> Any:
    from .tokens import Tokens, load_key

    return Tokens(load_key(key_file))


def _execution(execution_id: str, options: dict[str, Any]) -> Any:
    from ..platform_store import LiveExecution
    from .issue import context_from

    event = {} if options["event_text"] is None else _json_word("--event", options["event_text"])
    if not isinstance(event, dict):
        raise ControllerError("input.invalid", "--event: a JSON object is needed")
    given = None if options["input_text"] is None else _json_word("--input", options["input_text"])
    return LiveExecution(execution_id, options["user_id"], options["job_id"], None, given, {}, context_from(event))


def _json_word(option: str, text: str) -> Any:
    from cronium_runner.wire.words import WordError, json_value

    from ..arguments import read

    try:
        return json_value(text, option, read)
    except WordError as error:
        raise ControllerError(error.code, error.message) from None


def _value(text: str) -> Any:
    from cronium_runner.wire import exactjson

    try:
        return exactjson.loads(text)
    except ValueError as error:
        raise ControllerError("input.invalid", f"VALUE is {error}") from None


def _value_of_input() -> Any:
    from cronium_runner.wire import exactjson

    given = sys.stdin.buffer.read()
    try:
        return exactjson.loads(given)
    except ValueError:
        pass
    try:
        return given.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise ControllerError("input.invalid", "standard input is not UTF-8") from None


def _name(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ControllerError("input.invalid", "the variable's name is not UTF-8") from None
    return name


def _operator() -> str:
    from .issue import operator

    return operator()


def _write_privately(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{text}\n")
    except OSError as error:
        raise ControllerError("usage.invalid", f"--output {path}: {error.strerror}") from None
