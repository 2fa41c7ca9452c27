"""The runner's command line.

Commands import what they need when they run: a helper call, `version` and `--help` must not pay for a supervisor.
"""

import os
import sys
from typing import Any

import click

from .cli_executions import COMMANDS, run_as_option
from .cli_show import print_json, say
from .command import exit_status_of
from .wire.results import EXIT_CANCELLED, EXIT_RUNNER_FAILED, exit_status


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
def run(run_as: str | None, as_json: bool, verbose: bool, **options: Any) -> int:
    """Run a payload, a directory with a manifest, or a plain script. Its exit status becomes ours.

    \b
    124 timeout, 125 the runner failed, 126 not executable, 127 interpreter not found, 130 cancelled,
    128+n death by signal n. --json tells all of these apart from a script that chose the same number.
    """
    from . import running

    return running.run(options, run_as, as_json=as_json, verbose=verbose)


@cronium_runner.command()
@_submission_options
def test(**options: Any) -> None:
    """Try a script here, as it would run on a host: no SSH, no controller.

    Shows input, variables, the live output, what the script handed back and how long it took.
    """
    from . import foreground, report, running
    from .jobdir import StateDirectory

    submission = running.submission_of(options)
    report.print_start(submission, options["payload"])
    result = foreground.run(StateDirectory.open(), submission, show=True)
    report.print_end(submission, result)
    running.leave_values(submission, result)
    sys.exit(exit_status(result))


@cronium_runner.command()
@click.argument("payload", metavar="PAYLOAD|DIR|SCRIPT", type=click.Path())
@click.option("--sha256", metavar="HEX", help="What the payload must hash to.")
@click.option("--unsigned", is_flag=True, help="Ask for no signature, on a host that runs signed payloads only.")
def validate(payload: str, sha256: str | None, unsigned: bool) -> None:
    """Check a payload completely, without running anything of it."""
    from . import prepare
    from .arguments import source
    from .jobdir import StateDirectory

    parsed, command = prepare.inspect(StateDirectory.open(), source(payload, sha256), is_signed=not unsigned)
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


for command in COMMANDS:
    cronium_runner.add_command(command)


def main() -> int:
    """The `cronium-runner` command; returns its exit status."""
    return exit_status_of(_chosen_command)


def _chosen_command() -> int:
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
    return status if isinstance(status, int) else 0
