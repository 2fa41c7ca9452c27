"""The runner's command line. Also the one place that turns outcomes and errors into exit statuses.

Commands import what they need when they run: a helper call, `version` and `--help` must not pay for a supervisor.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from .cli_executions import COMMANDS, chosen_account, run_as_option
from .cli_show import print_json, say, with_text
from .errors import InputError, OutcomeUnknownError, RunnerError
from .wire.results import EXIT_CANCELLED, EXIT_RUNNER_FAILED, Outcome, Result, exit_status

if TYPE_CHECKING:
    from .submission import Submission
    from .wire.access import Access


def import_what_a_run_needs() -> None:
    """Imports what the command and its supervisor will need, while the binary's file of modules is open."""
    from . import arguments, foreground, prepare, session, supervisor  # noqa: F401
    from .wire import masks, words  # noqa: F401


class _Commands(click.Group):
    """The bare forms: `cronium-runner PAYLOAD` runs it; no argument runs the folder's own manifest."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and any(os.path.isfile(name) for name in ("manifest.yaml", "manifest.yml")):
            args = ["run", "."]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and os.path.exists(args[0]):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cronium_runner() -> None:
    """Run a job on this host: unpack it, give its script the cronium helpers, run it, write down what happened.

    \b
    Examples:
      cronium-runner run backup.tar.gz --input '{"target": "/srv"}'
      cronium-runner test ./script.sh --var REGION=eu
      cronium-runner backup.tar.gz            the same as `run backup.tar.gz`
    """


def _submission_options(function: Any) -> Any:
    options = [
        click.argument("payload", metavar="PAYLOAD|DIR|SCRIPT", type=click.Path()),
        click.argument("args", nargs=-1, metavar="[-- ARGS]"),
        click.option(
            "--input",
            "input_texts",
            multiple=True,
            metavar="FILE|JSON",
            help="What cronium.input reads; - is standard input, @FILE always a file. Repeatable: objects are merged.",
        ),
        click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable; repeatable."),
        click.option(
            "--secret",
            "secrets",
            multiple=True,
            metavar="NAME[=@FILE]",
            help="A variable kept in memory only: from FILE, from standard input (=@-), "
            "or from the environment variable of that name.",
        ),
        click.option(
            "--mask",
            "masked_names",
            multiple=True,
            metavar="GLOB",
            help="Mask values of variables and environment variables of such names in the output, like *_TOKEN and "
            "*PASSWORD* by default; repeatable, replaces the defaults, '' masks none.",
        ),
        click.option("--event", "event_text", metavar="FILE|JSON", help="What cronium.event reads."),
        click.option("--timeout", type=float, metavar="SECONDS", help="For the script alone; one hour by default."),
        click.option(
            "--limit",
            "limits",
            multiple=True,
            metavar="KEY=VALUE",
            help="memory, cpu, processes, open_files, file_size or nice, like memory=512MiB; repeatable, beats the "
            "manifest's.",
        ),
        click.option(
            "--interpreter",
            metavar="NAME",
            help="What runs a script, instead of what its first line or name says; a path, or a command in quotes.",
        ),
        click.option("--execution-id", metavar="ID", help="Start at most once under this id."),
        click.option("--sha256", metavar="HEX", help="What the payload must hash to."),
        click.option(
            "--on-disconnect",
            type=click.Choice(["continue", "cancel"]),
            default="continue",
            show_default=True,
            help="What a hang-up does to the script.",
        ),
        click.option("--keep", is_flag=True, help="Keep the work directory."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@cronium_runner.command()
@_submission_options
@run_as_option
@click.option("--json", "as_json", is_flag=True, help="Print only the result, as one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Say on standard error what happens.")
def run(run_as: str | None, as_json: bool, verbose: bool, **options: Any) -> None:
    """Run a payload, a directory with a manifest, or a plain script. Its exit status becomes ours.

    \b
    124 timeout, 125 the runner failed, 126 not executable, 127 interpreter not found, 130 cancelled,
    128+n death by signal n. --json tells all of these apart from a script that chose the same number.
    """
    from . import session

    session.leave(say)
    execution_id = tails = None
    try:
        target = chosen_account(run_as)
        submission = _submission(options)
        execution_id = submission.execution_id
        if verbose:
            say(f"execution {execution_id}")
        if target is None:
            result = _run_here(submission, show=not as_json)
        else:
            from . import as_other

            result, tails = as_other.run(target, submission, show=not as_json)
    except OutcomeUnknownError as error:
        result = Result(execution_id or "", Outcome.UNKNOWN, error_code=error.code, error_message=error.message)
    except RunnerError as error:
        result = _rejection(execution_id, error)
    if as_json:
        print_json(with_text(result, tails))
    elif result.error_message is not None:
        say(f"{result.error_message} [{result.error_code}]")
    elif verbose:
        say(f"{result.state} after {result.duration_ms:.0f} ms")
    sys.exit(exit_status(result))


def _run_here(submission: "Submission", *, show: bool) -> Result:
    from . import foreground
    from .jobdir import StateDirectory

    result = foreground.run(StateDirectory.open(), submission, show=show)
    _leave_values(submission, result)
    return result


@cronium_runner.command()
@_submission_options
def test(**options: Any) -> None:
    """Try a script here, as it would run on a host: no SSH, no controller.

    Shows input, variables, the live output, what the script handed back and how long it took.
    """
    from . import foreground, report
    from .jobdir import StateDirectory

    submission = _submission(options)
    report.print_start(submission, options["payload"])
    result = foreground.run(StateDirectory.open(), submission, show=True)
    report.print_end(submission, result)
    _leave_values(submission, result)
    sys.exit(exit_status(result))


@cronium_runner.command()
@click.argument("payload", metavar="PAYLOAD|DIR|SCRIPT", type=click.Path())
@click.option("--sha256", metavar="HEX", help="What the payload must hash to.")
@click.option("--unsigned", is_flag=True, help="Ask for no signature, on a host that runs signed payloads only.")
def validate(payload: str, sha256: str | None, unsigned: bool) -> None:
    """Check a payload completely, without running anything of it."""
    from . import prepare
    from .jobdir import StateDirectory

    parsed, command = prepare.inspect(StateDirectory.open(), _source(payload, sha256), is_signed=not unsigned)
    for warning in parsed.warnings:
        say(f"warning: {warning}")
    click.echo(f"{payload}: valid; runs {' '.join(command)}")


@cronium_runner.command()
@run_as_option
def agent(run_as: str | None) -> None:
    """Serve many executions over standard input and output; what the controller starts on a host."""
    from . import run_as as accounts
    from .greeting import serve

    sys.exit(serve() if run_as is None else accounts.serve(run_as))


@cronium_runner.command()
@click.option("--adopt", "is_adopting", is_flag=True, help="Record the libraries that you exchanged in DIRECTORY.")
@click.argument("directory", required=False, type=click.Path())
def install(directory: str | None, is_adopting: bool) -> None:
    """Install this runner, by default in the account's own folder, and print where.

    With --adopt nothing is installed: the installed form in DIRECTORY, whose shared libraries its owner has exchanged,
    counts as whole from then on.
    """
    from . import report
    from .install import install as install_into

    if not is_adopting:
        click.echo(install_into(directory))
        return
    if directory is None:
        raise click.UsageError("--adopt needs the directory of the installed form")
    from .adopting import adopt

    report.print_adopted(directory, adopt(directory))


@cronium_runner.command()
@click.option("--records", "wants_records", is_flag=True, help="Also all executions, with their results and output.")
@click.option("--force", "is_forced", is_flag=True, help="Also what is in use; executions that run are ended first.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Only say what would go.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def uninstall(wants_records: bool, is_forced: bool, is_dry_run: bool, as_json: bool) -> None:
    """Remove the runner from this account: its installed forms, and with --records what it keeps of executions.

    A form that a process runs from stays. Records stay while something runs or was not fetched. Ends with 1 when
    something stays.
    """
    from . import report
    from .uninstall import uninstall as remove

    told = remove(wants_records=wants_records, is_forced=is_forced, is_dry_run=is_dry_run)
    if as_json:
        print_json(told)
    else:
        report.print_uninstalled(told)
    sys.exit(bool(told["kept"]))


@cronium_runner.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> None:
    """Look at this host: what the runner needs of it, what is there, what to do. Ends with 1 when jobs can't run."""
    from . import doctor as doctors
    from . import report

    findings = doctors.examine()
    if as_json:
        print_json({**doctors.facts(), "findings": [finding.to_json() for finding in findings]})
    else:
        report.print_findings(findings)
    sys.exit(any(finding.level == doctors.BAD for finding in findings))


@cronium_runner.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def version(as_json: bool) -> None:
    """Print version, build time and commit."""
    from .version import as_json as version_as_json
    from .version import as_text

    if as_json:
        print_json(version_as_json())
    else:
        click.echo(as_text())


def _submission(options: dict[str, Any]) -> "Submission":
    from .arguments import read
    from .submission import Submission, new_execution_id
    from .wire import masks, words

    chosen = options["execution_id"]
    if chosen is None and "CRONIUM_WORK_DIR" not in os.environ:
        # Inside a job the variable names the job itself; a nested run is an execution of its own.
        chosen = os.environ.get("CRONIUM_EXECUTION_ID")
    input_texts, event_text = options["input_texts"], options["event_text"]
    try:
        submission = Submission(
            execution_id=new_execution_id() if chosen is None else chosen,
            source=_source(options["payload"], options["sha256"], options["interpreter"]),
            has_input=bool(input_texts),
            input=words.json_merged(input_texts, "--input", read) if input_texts else None,
            variables=words.variables(options["variables"]),
            secrets=words.secrets(options["secrets"], os.environ, read),
            event={} if event_text is None else words.json_object(event_text, "--event", read),
            args=options["args"] or None,
            masked_names=options["masked_names"] or masks.DEFAULT_NAMES,
            timeout=options["timeout"],
            limits=words.limits(options["limits"]),
            api=_access(chosen),
            on_disconnect=options["on_disconnect"],
            keep_work=options["keep"],
        ).checked()
    except words.WordError as error:
        raise InputError(error.message, error.code) from None
    short = masks.too_short(submission.secrets, submission.variables, submission.masked_names)
    if short:
        say(f"warning: {masks.short_sentence(short)}")
    return submission


def _access(chosen_id: str | None) -> "Access | None":
    """API mode, when the environment configures it. Inside a job it is the job's own, and no nested run's."""
    from .wire import access

    if "CRONIUM_WORK_DIR" in os.environ:
        return None
    try:
        found = access.from_environment(os.environ)
    except access.AccessError as error:
        raise InputError(str(error), "api.config") from None
    if found is not None and chosen_id is None:
        sentence = "API mode needs the id that the token was made for: --execution-id, or CRONIUM_EXECUTION_ID"
        raise InputError(sentence, "api.config")
    return found


def _source(path: str, sha256: str | None, interpreter: str | None = None) -> Any:
    from .arguments import source

    return source(path, sha256, interpreter)


def _leave_values(submission: "Submission", result: Result) -> None:
    """A run of a directory leaves flat output.json and variables.json in it, for local use."""
    from .submission import LEFT_BY_A_RUN, Folder
    from .wire import exactjson

    if not isinstance(submission.source, Folder) or result.state is Outcome.REJECTED:
        return
    values = (result.output, {**submission.variables, **result.variables})
    for name, value in zip(LEFT_BY_A_RUN, values, strict=True):
        path = os.path.join(submission.source.path, name)
        try:
            with open(path, "wb") as file:
                file.write(exactjson.encode(value) + b"\n")
        except OSError as error:
            say(f"warning: {path} could not be written: {error.strerror}")


def _rejection(execution_id: str | None, error: RunnerError) -> Result:
    from .guardian import rejected
    from .wire import access

    is_api = bool(os.environ.get(access.ENDPOINT_NAME)) and "CRONIUM_WORK_DIR" not in os.environ
    return rejected(execution_id or "", None, error, access.API if is_api else access.BUNDLED)


for command in COMMANDS:
    cronium_runner.add_command(command)


def main() -> int:
    """The `cronium-runner` command; returns its exit status."""
    _open_standard_streams()
    try:
        status = cronium_runner.main(standalone_mode=False, prog_name="cronium-runner")
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        # Misuse is the runner's own failure, never mistaken for a script that ended with 2.
        error.show()
        return EXIT_RUNNER_FAILED
    except click.Abort:
        return EXIT_CANCELLED
    except RunnerError as error:
        say(f"{error.message} [{error.code}]")
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read us has gone; there is nobody to tell
        return 0
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        say(f"{where}{error.strerror or error}; free what is short on this host and try again [runner.refused]")
        return EXIT_RUNNER_FAILED
    except Exception as error:  # noqa: BLE001 - a traceback and its status 1 would pass for a script's failure
        say(f"{type(error).__name__}: {error} [runner.internal]")
        return EXIT_RUNNER_FAILED
    return status if isinstance(status, int) else 0


def _open_standard_streams() -> None:
    """Opens those of descriptors 0 to 2 that we were started without, else a socket of ours would get the number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - open as long as the process is
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
