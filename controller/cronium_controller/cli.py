"""The `cronium` command (contracts §9): arguments in, the Python API does it, results on standard output.

A thin user of `dispatch`. The one place on the controller's side that turns outcomes and errors into exit statuses.
Heavy imports happen in the commands, so that `--help` and completion stay quick.
"""

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import click

from cronium_runner import __version__
from cronium_runner.wire.results import (
    EXIT_CANCELLED,
    EXIT_RUNNER_FAILED,
    EXIT_UNREACHABLE,
    Outcome,
    Result,
    exit_status,
)
from cronium_runner.wire.words import WordError

from .errors import ControllerError

if TYPE_CHECKING:
    from .dispatch import Controller
    from .hosts import Host

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
@click.version_option(__version__, message="cronium %(version)s")
def cronium() -> None:
    """Run scripts on remote Linux hosts: started at most once, nothing lost when a connection dies.

    \b
    Examples:
      cronium run --host deploy@web01 ./disk-usage.sh
      cronium run --host web01:2222 ./backup.sh --input '{"target": "/srv"}' --var REGION=eu
      cronium attach exec_20260102_030405_0123456789ab
    """


def _reaching(function: Any) -> Any:
    """Options that say how hosts are reached."""
    options = [
        click.option("--identity", "-i", metavar="KEY", help="Private key; else the agent's and SSH's usual ones."),
        click.option("--known-hosts", metavar="FILE", help="Instead of ~/.ssh/known_hosts."),
        click.option(
            "--host-keys",
            type=click.Choice(["accept-new", "strict", "off"]),
            default="accept-new",
            show_default=True,
            help="accept-new records an unknown key and refuses a changed one.",
        ),
        click.option("--binary", metavar="FILE", help="The runner to deploy, instead of the one in dist/."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@cronium.command(context_settings=_HELP)
@click.argument("script", metavar="SCRIPT|DIR|PAYLOAD", type=click.Path())
@click.argument("args", nargs=-1, metavar="[-- ARGS]")
@click.option("--host", required=True, metavar="[USER@]ADDR[:PORT]", help="Where; an alias of ~/.ssh/config will do.")
@_reaching
@click.option("--input", "input_text", metavar="FILE|JSON", help="What cronium.input reads; - is standard input.")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable; repeatable.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME[=@FILE]",
    help="A variable that is kept in memory only: from FILE, standard input (=@-), or the environment.",
)
@click.option(
    "--mask",
    "masked_names",
    multiple=True,
    metavar="GLOB",
    help="Mask values of variables and environment variables of such names in the output, like *_TOKEN and *PASSWORD* "
    "by default; repeatable, replaces the defaults, '' masks none.",
)
@click.option("--event", "event_text", metavar="FILE|JSON", help="What cronium.event reads.")
@click.option("--timeout", type=float, metavar="SECONDS", help="For the script alone; one hour by default.")
@click.option("--execution-id", metavar="ID", help="Start at most once under this id; again, it attaches.")
@click.option(
    "--on-disconnect",
    type=click.Choice(["continue", "cancel"]),
    default="continue",
    show_default=True,
    help="What happens to the script when this connection is lost.",
)
@click.option("--detach", is_flag=True, help="Return as soon as the host has taken it; prints the id.")
@click.option("--json", "as_json", is_flag=True, help="Print only the result, as one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Say on standard error under which id, and what was handed back.")
def run(host: str, script: str, detach: bool, as_json: bool, verbose: bool, **options: Any) -> None:
    """Run a script, a directory with a manifest, or a payload on a host. Its exit status becomes ours.

    \b
    124 timeout, 125 the runner failed, 126 not executable, 127 interpreter not found, 130 cancelled,
    255 the host was not reached or the outcome is unknown, 128+n death by signal n.

    \b
    Examples:
      cronium run --host web01 ./report.py -- --since yesterday
      cronium run --host web01 ./slow.sh --detach --execution-id nightly-2026-01-02
    """
    from cronium_runner.wire import masks, words

    from . import payloads, show
    from .arguments import read
    from .dispatch import Job, new_execution_id

    input_text, event_text = options["input_text"], options["event_text"]
    if options["execution_id"] is None:  # known from here on, to be told should we be interrupted
        options["execution_id"] = new_execution_id()

    async def submit_and_show(controller: "Controller", where: "Host") -> int:
        given = {} if input_text is None else {"input": words.json_value(input_text, "--input", read)}
        job = Job(
            payload=payloads.load(script),
            variables=words.variables(options["variables"]),
            secrets=words.secrets(options["secrets"], os.environ, read),
            event={} if event_text is None else words.json_object(event_text, "--event", read),
            args=options["args"] or None,
            timeout=options["timeout"],
            execution_id=options["execution_id"],
            on_disconnect=options["on_disconnect"],
            masked_names=options["masked_names"] or masks.DEFAULT_NAMES,
            **given,
        )
        short = masks.too_short(job.secrets, job.variables, job.masked_names)
        if short:
            click.echo(f"cronium: warning: {masks.short_sentence(short)}", err=True)
        execution = await controller.submit(where, job, follow=not detach)
        if detach:
            if not execution.is_running:  # rejected, or unknown: say so
                return await show.follow(execution, as_json=as_json)
            show.print_start(execution, verbose=verbose)
            execution.detach()
            if as_json:
                show.print_json({"executionId": execution.id, "host": where.name, "state": "accepted"})
            else:
                click.echo(execution.id)
            return 0
        show.print_start(execution, verbose=verbose)
        return await show.follow(execution, as_json=as_json, verbose=verbose)

    _run(host, options, submit_and_show, as_json=as_json)


@cronium.command(context_settings=_HELP)
@click.option("--host", required=True, metavar="[USER@]ADDR[:PORT]", help="Where.")
@_reaching
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def deploy(host: str, as_json: bool, **options: Any) -> None:
    """Put the runner on a host, if it is not there. `run` does that by itself.

    \b
    Example:
      cronium deploy --host deploy@web01
    """
    from . import show

    async def put(controller: "Controller", where: "Host") -> int:
        done = await controller.deploy(where)
        if as_json:
            show.print_json({"host": where.name, "path": done.path, "uploadedBytes": done.uploaded_bytes})
        elif done.uploaded_bytes:
            click.echo(f"{where}: installed {done.path} ({done.uploaded_bytes / 1e6:.1f} MB by {done.method})")
        else:
            click.echo(f"{where}: {done.path} is there")
        return 0

    _run(host, options, put, as_json=as_json)


@cronium.command(context_settings=_HELP)
@click.option("--host", required=True, metavar="[USER@]ADDR[:PORT]", help="Where.")
@_reaching
@click.option("--json", "as_json", is_flag=True, help="One JSON object a finding.")
def doctor(host: str, as_json: bool, **options: Any) -> None:
    """Look at a host: login shell, transfers, sessions, forwarding, disks, interpreters, clock. Puts the runner there.

    Ends with 1 when something keeps jobs from running there.

    \b
    Example:
      cronium doctor --host deploy@web01
    """
    from . import doctor as doctors
    from . import show

    async def look(controller: "Controller", where: "Host") -> int:
        is_ill = False
        async for finding in controller.examine(where):
            is_ill = is_ill or finding.level == doctors.BAD
            if as_json:
                show.print_json({"host": where.name, **finding._asdict()})
            else:
                show.print_finding(finding)
        return int(is_ill)

    _run(host, options, look, as_json=as_json)


@cronium.command(context_settings=_HELP)
@click.argument("execution_id", metavar="ID")
@_reaching
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

    _run_known(execution_id, options, follow, as_json=as_json)


@cronium.command(context_settings=_HELP)
@click.argument("execution_id", metavar="ID")
@_reaching
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

    _run_known(execution_id, options, ask, as_json=as_json)


@cronium.command(context_settings=_HELP)
@click.argument("execution_id", metavar="ID")
@_reaching
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

    _run_known(execution_id, options, print_logs, as_json=False)


@cronium.command(context_settings=_HELP)
@click.argument("execution_id", metavar="ID")
@_reaching
def cancel(execution_id: str, **options: Any) -> None:
    """End an execution: SIGTERM, five seconds, SIGKILL. Returns when nothing of it is left.

    \b
    Example:
      cronium cancel exec_20260102_030405_0123456789ab
    """

    async def end(controller: "Controller", where: "Host") -> int:
        found = await controller.status(execution_id, where)
        seen = (found["stdout"]["bytes"], found["stderr"]["bytes"])  # nobody reads the output here
        execution = await controller.attach(execution_id, where, offsets=seen)
        if execution.is_running:
            execution.cancel()
        result = await execution.result()
        if result.state is Outcome.UNKNOWN:
            click.echo(f"cronium: {result.error_message} [{result.error_code}]", err=True)
            return exit_status(result)
        click.echo(f"{execution_id}: {result.state}", err=True)
        return 0

    _run_known(execution_id, options, end, as_json=False)


@cronium.command(context_settings=_HELP)
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


@cronium.command(context_settings=_HELP)
def version() -> None:
    """Print the version."""
    click.echo(f"cronium {__version__}")


def _run(host_text: str, options: dict[str, Any], work: Any, *, as_json: bool) -> None:
    """Runs `work` with a controller and the host, and ends with its exit status."""
    from .hosts import parse_host

    _finish(
        _with_controller(lambda: parse_host(host_text, identity=options["identity"]), options, work),
        as_json,
        options.get("execution_id") or "",
    )


def _run_known(execution_id: str, options: dict[str, Any], work: Any, *, as_json: bool) -> None:
    """The same for the host that an execution was submitted to."""
    from .store import Store

    def recorded() -> "Host":
        store = Store()
        record = store.find(execution_id)
        store.close()
        if record is None:
            raise ControllerError(
                "execution.not_found",
                f"no execution '{execution_id}' was submitted from here; its host may know it: cronium-runner status",
            )
        return record.host

    _finish(_with_controller(recorded, options, work), as_json, execution_id)


async def _with_controller(find_host: Any, options: dict[str, Any], work: Any) -> int:
    from .connection import Access
    from .dispatch import Controller
    from .hostkeys import HostKeyPolicy, default_known_hosts
    from .install import Runners

    access = Access(
        host_keys=HostKeyPolicy(options["host_keys"]),
        known_hosts=options["known_hosts"] or os.environ.get("CRONIUM_KNOWN_HOSTS") or default_known_hosts(),
        passphrase=_ask_passphrase if sys.stdin.isatty() else None,
        warn=lambda sentence: click.echo(f"cronium: warning: {sentence}", err=True),
    )
    where = find_host()
    async with Controller(access=access, runners=Runners(options["binary"])) as controller:
        status: int = await work(controller, where)
        return status


def _ask_passphrase(key: str) -> str:
    answer: str = click.prompt(f"Passphrase for {key}", hide_input=True, err=True)
    return answer


def _finish(work: Coroutine[Any, Any, int], as_json: bool, execution_id: str) -> None:
    from . import show

    try:
        try:
            status = asyncio.run(work)
        except WordError as error:
            raise ControllerError(error.code, error.message) from None
    except ControllerError as error:
        if as_json:
            # Where nothing could be asked, what became of an id that was used before isn't known.
            state = Outcome.UNKNOWN if error.exit_status == EXIT_UNREACHABLE else Outcome.REJECTED
            told = Result(execution_id, state, host=error.host, error_code=error.code, error_message=error.message)
            show.print_result(told, {})
        click.echo(f"cronium: {error.message} [{error.code}]", err=True)
        status = error.exit_status
    except KeyboardInterrupt:
        sentence = "interrupted; nothing was submitted"
        if _is_recorded(execution_id):
            sentence = (
                "interrupted before the end was known; it may be running. "
                f"Look with: cronium attach {execution_id}, end it with: cronium cancel {execution_id}"
            )
        status = show.print_unknown(execution_id, None, sentence, {}, as_json=as_json)
    sys.exit(status)


def _is_recorded(execution_id: str) -> bool:
    from .store import Store

    try:
        store = Store()
    except ControllerError:
        return False
    found = store.find(execution_id)
    store.close()
    return found is not None


def main() -> None:
    """The `cronium` command."""
    try:
        cronium.main(standalone_mode=False, prog_name="cronium")
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except click.ClickException as error:
        # Misuse is never mistaken for a script that ended with 2.
        error.show()
        sys.exit(EXIT_RUNNER_FAILED)
    except click.Abort:
        sys.exit(EXIT_CANCELLED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read us has gone
        sys.exit(EXIT_UNREACHABLE)
