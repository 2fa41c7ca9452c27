"""The `cronium` command: arguments in, the Python API does it, results on standard output.

A thin user of `dispatch`. The one place on the controller's side that turns outcomes and errors into exit statuses.
Heavy imports happen in the commands, so that `--help` and completion stay quick.
"""

import contextlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from cronium_runner import __version__
from cronium_runner.wire.results import EXIT_CANCELLED, EXIT_RUNNER_FAILED

from . import cli_executions, cli_kept, standard_streams
from .api.cli import api
from .arguments import Number
from .cli_commands import execute
from .cli_deploy import deploy
from .cli_each import ask_hosts
from .cli_files import get, put
from .cli_hosts import hosts, many_hosts, some_hosts
from .cli_metrics import metrics
from .cli_payload import payload
from .cli_reaching import HELP, reaching, run_on_many, signing, tunnelling
from .completing import completion, files
from .errors import ControllerError

if TYPE_CHECKING:
    from .dispatch import Controller
    from .execution import Execution
    from .hosts import BadTarget, Host
    from .payloads import Payload


_DEFECT: Final = "controller.internal"


@click.group(context_settings=HELP)
@click.version_option(__version__, message="cronium %(version)s")
def cronium() -> None:
    """Run scripts on remote Linux hosts: started at most once, nothing lost when a connection dies.

    \b
    Examples:
      cronium run --host deploy@web01 ./disk-usage.sh
      cronium run --host web01:2222 ./backup.sh --input '{"target": "/srv"}' --var REGION=eu
      cronium run --on web[01-20] ./uptime.sh --fold
      cronium exec --on web -- uname -r
      cronium attach exec_20260102_030405_0123456789ab
    """


@cronium.command(context_settings=HELP)
@click.argument("script", metavar="SCRIPT|DIR|PAYLOAD", type=click.Path())
@click.argument("args", nargs=-1, metavar="[-- ARGS]")
@many_hosts
@reaching
@tunnelling
@click.option(
    "--input",
    "input_texts",
    multiple=True,
    metavar="FILE|JSON",
    shell_complete=files,
    help="What cronium.input reads; - is standard input, @FILE always a file. Repeatable: objects are merged.",
)
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
@click.option("--event", "event_text", metavar="FILE|JSON", shell_complete=files, help="What cronium.event reads.")
@click.option("--timeout", type=Number(), metavar="SECONDS", help="For the script alone; one hour by default.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="KEY=VALUE",
    help="What the script may use: memory, cpu, processes, open_files, file_size or nice, like memory=512MiB; "
    "repeatable, beats the manifest's.",
)
@click.option(
    "--interpreter",
    metavar="NAME",
    help="What runs a script, instead of what its first line or name says; a path, or a command in quotes.",
)
@signing
@click.option("--execution-id", metavar="ID", help="Start at most once under this id; again, it attaches.")
@click.option(
    "--run-as",
    metavar="USER",
    help="As this account of the host, with its own executions: by root, or where `sudo -n` allows it.",
)
@click.option(
    "--mode",
    type=click.Choice(["bundled", "api", "prefer-api"]),
    default="bundled",
    show_default=True,
    help="api: the script reads and writes live data; prefer-api: bundled where the host allows no tunnel, said so.",
)
@click.option(
    "--on-disconnect",
    type=click.Choice(["continue", "cancel"]),
    default="continue",
    show_default=True,
    help="What happens to the script when this connection is lost.",
)
@click.option("--detach", is_flag=True, help="Return as soon as the host has taken it; prints the id.")
@click.option(
    "--prefix",
    "style",
    flag_value="prefix",
    default=True,
    help="Several hosts: lines as they come, with the host in front; the default.",
)
@click.option("--fold", "style", flag_value="fold", help="Several hosts: equal outputs once, at the end.")
@click.option("-q", "--quiet", "style", flag_value="quiet", help="Several hosts: nothing but the failures.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print only the result, as one JSON object; one a line for several hosts, and a summary.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say on standard error under which id, and what was handed back.")
def run(
    hosts_given: tuple[str, ...], script: str, detach: bool, as_json: bool, verbose: bool, style: str, **options: Any
) -> None:
    """Run a script, a directory with a manifest, or a payload on one host or many. Its exit status becomes ours.

    \b
    124 timeout, 125 the runner failed, 126 not executable, 127 interpreter not found, 130 cancelled,
    255 the host was not reached or the outcome is unknown, 128+n death by signal n.

    Several hosts: 0 when all succeeded, 100 + failures (at most 255) when some did, else the largest exit status.

    \b
    Examples:
      cronium run --host web01 ./report.py -- --since yesterday
      cronium run --host web01 ./slow.sh --detach --execution-id nightly-2026-01-02
      cronium run --on web[01-20] ./uptime.sh --fold
      cronium run --on web ./restart.sh --serial 25% --stop-on-failure
      cronium run --host web01 ./restart.sh --sign ~/.ssh/id_ed25519
    """
    from cronium_runner.wire import masks, words

    from . import payload_versions, show
    from .arguments import read
    from .job import Job, new_execution_id

    if not script:  # an unset variable of the caller's; the path '' would mean the folder that we are in
        raise ControllerError("payload.not_found", "'' is no script, directory or payload; name one")
    input_texts, event_text = options["input_texts"], options["event_text"]
    if options["execution_id"] is None:  # known from here on, to be told should we be interrupted
        options["execution_id"] = new_execution_id()

    def signed(payload: "Payload") -> "Payload":
        if options["signing_key"] is not None:
            from . import signing

            signing.sign_payload(payload, options["signing_key"])
        return payload

    def job_for(controller: "Controller") -> Job:
        given = {"input": words.json_merged(input_texts, "--input", read)} if input_texts else {}
        chosen = options["interpreter"]
        fields = {} if chosen is None else {"interpreter": words.interpreter(chosen)}
        job = Job(
            payload=signed(payload_versions.load(script, controller.store, fields)),
            variables=words.variables(options["variables"]),
            secrets=words.secrets(options["secrets"], os.environ, read),
            event={
                **payload_versions.event(script, controller.store),
                **({} if event_text is None else words.json_object(event_text, "--event", read)),
            },
            args=options["args"] or None,
            timeout=options["timeout"],
            limits=words.limits(options["limits"]),
            execution_id=options["execution_id"],
            on_disconnect=options["on_disconnect"],
            masked_names=options["masked_names"] or masks.DEFAULT_NAMES,
            run_as=options["run_as"],
            mode=options["mode"],
            **given,
        )
        short = masks.too_short(job.secrets, job.variables, job.masked_names)
        if short:
            click.echo(f"cronium: warning: {masks.short_sentence(short)}", err=True)
        return job

    async def submit_and_show(controller: "Controller", where: "Host") -> int:
        with contextlib.ExitStack() as while_it_runs:

            def hear_interrupts(execution: "Execution") -> None:
                while_it_runs.enter_context(show.interrupts(execution, can_cancel=True))

            execution = await controller.submit(where, job_for(controller), submitted=hear_interrupts)
            if not execution.is_left:
                show.print_start(execution, verbose=verbose)
            return await show.follow(execution, as_json=as_json, verbose=verbose)

    async def submit_and_leave(controller: "Controller", where: "Host") -> int:
        execution = await controller.submit(where, job_for(controller), follow=False)
        if not execution.is_running:  # rejected, or unknown: say so
            with show.interrupts(execution, can_cancel=False):
                return await show.follow(execution, as_json=as_json)
        show.print_start(execution, verbose=verbose)
        if execution.is_served_here:
            click.echo(
                "cronium: warning: nothing serves it now; its writes are kept there, and its reads fail, until: "
                f"cronium wait {execution.id}",
                err=True,
            )
        execution.detach()
        if as_json:
            show.print_json({"executionId": execution.id, "host": where.name, "state": "accepted"})
        else:
            click.echo(execution.id)
        return 0

    async def on_all(controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        from .hosts import Host
        from .runs import on_one_host

        if len(targets) == 1 and isinstance(targets[0], Host):
            with on_one_host(controller.store, options["execution_id"], targets[0].name):
                return await (submit_and_leave if detach else submit_and_show)(controller, targets[0])
        from .open_files import make_room
        from .show_many import JSON, ManyHosts, leave_running

        make_room(min(options["forks"], len(targets)))
        limits = {name: options[name] for name in ("forks", "serial", "max_failures", "stop_on_failure")}
        if detach:
            if any(limits[name] for name in ("serial", "max_failures", "stop_on_failure")):
                raise ControllerError("usage.invalid", "--detach waits for no end; take --serial and the like away")
            many = controller.run_many(targets, job_for(controller), forks=options["forks"])
            return await leave_running(many, as_json=as_json)
        shown = ManyHosts(JSON if as_json else style, targets)
        return await shown.follow(controller.run_many(targets, job_for(controller), output=shown.output, **limits))

    run_on_many(hosts_given, options, on_all, as_json=as_json)


@cronium.command(context_settings=HELP)
@some_hosts
@reaching
@click.option("--local", "is_here", is_flag=True, help="Only how SSH configurations are read on this machine.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a finding.")
def doctor(hosts_given: tuple[str, ...], forks: int, is_here: bool, as_json: bool, **options: Any) -> None:
    """Look at hosts: login shell, transfers, sessions, forwarding, disks, interpreters, clock. Puts the runner there.

    Ends with 1 when something keeps jobs from running there. Several hosts: each line has the host in front, and the
    exit status is as with `cronium run`.

    \b
    Examples:
      cronium doctor --host deploy@web01
      cronium doctor --on web | grep ' bad '
      cronium doctor --local
    """
    from . import doctor as doctors
    from . import show

    if is_here:
        _doctor_here(as_json)
        return

    async def look_at_all(controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        async def look(where: "Host") -> int:
            is_ill = False
            async for finding in controller.examine(where):
                is_ill = is_ill or finding.level == doctors.BAD
                if as_json:
                    show.print_json({"host": where.name, **finding._asdict()})
                else:
                    show.print_finding(finding, None if len(targets) == 1 else where.name)
            return int(is_ill)

        return await ask_hosts(controller, targets, forks, look, as_json=as_json)

    run_on_many(hosts_given, options, look_at_all, as_json=as_json)


def _doctor_here(as_json: bool) -> None:
    """Shows the findings about this machine, and ends with 1 when one is bad."""
    from . import show
    from .doctor import BAD
    from .doctor_here import examine_here

    found = list(examine_here())
    for finding in found:
        if as_json:
            show.print_json(finding._asdict())
        else:
            show.print_finding(finding)
    sys.exit(int(any(finding.level == BAD for finding in found)))


@cronium.command(context_settings=HELP)
def version() -> None:
    """Print the version."""
    click.echo(f"cronium {__version__}")


cronium.add_command(api)
cronium.add_command(completion)
cronium.add_command(deploy)
cronium.add_command(execute)
cronium.add_command(get)
cronium.add_command(hosts)
cronium.add_command(metrics)
cronium.add_command(payload)
cronium.add_command(put)
for command in (*cli_executions.COMMANDS, *cli_kept.COMMANDS):
    cronium.add_command(command)


def main() -> None:
    """The `cronium` command."""
    standard_streams.prepare()
    if not sys.warnoptions:  # a server that knows old algorithms only makes Python warn about our libraries
        warnings.simplefilter("ignore")
    try:
        cronium.main(standalone_mode=False, prog_name="cronium")
    except SystemExit as leaving:
        _leave(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
    except click.exceptions.Exit as leaving:
        _leave(leaving.exit_code)
    except ControllerError as error:
        _leave(_told(error))
    except click.ClickException as error:
        # Misuse is never mistaken for a script that ended with 2.
        error.show()
        sys.exit(EXIT_RUNNER_FAILED)
    except click.Abort:  # Ctrl-C where nothing was begun, or no answer to a question
        click.echo("cronium: interrupted", err=True)
        sys.exit(EXIT_CANCELLED)
    except Exception as error:  # the last resort: a defect must not look like a script that ended with 1
        told = _internal(error)
        if told.code == _DEFECT and os.environ.get("CRONIUM_TRACEBACK"):
            raise
        _leave(_told(told))
    _leave(0)


def _leave(status: int) -> NoReturn:
    """Ends with this status, unless what should have been printed could not be."""
    with contextlib.suppress(ControllerError):
        sys.stdout.flush()
    lost = standard_streams.failure()
    sys.exit(status if status or lost is None else lost.exit_status)


def _told(error: ControllerError) -> int:
    click.echo(f"cronium: {error.message} [{error.code}]", err=True)
    return error.exit_status


def _internal(error: Exception) -> ControllerError:
    """What nobody translated. Bytes that are no text fail where they are first used: the command line is to blame."""
    word = next(filter(_is_no_text, sys.argv), None)
    if word is not None:
        return ControllerError("usage.invalid", f"{word[:80]!r} is not UTF-8, and must be; write it otherwise")
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return ControllerError(
        _DEFECT,
        f"a defect in cronium: {said[:300]}; please report it with what the same command says under "
        "CRONIUM_TRACEBACK=1; what was submitted is in cronium history",
    )


def _is_no_text(word: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in word)
