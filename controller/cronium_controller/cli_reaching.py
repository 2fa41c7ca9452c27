"""How commands reach hosts: the options for it, a controller, and what an error or an interrupt becomes at the end.

What a command then does is its own; every command of `cronium` that talks to a host ends in `finish`.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from cronium_runner.wire.access import BUNDLED
from cronium_runner.wire.results import Outcome, Result
from cronium_runner.wire.words import WordError

from . import completing
from .cli_hosts import chosen_targets
from .errors import ControllerError

if TYPE_CHECKING:
    from .runs import RunHost
    from .store import Record

HELP: Final = {"help_option_names": ["-h", "--help"]}


def reaching(function: Any) -> Any:
    """Options that say how hosts are reached."""
    options = [
        click.option(
            "--identity",
            "-i",
            metavar="KEY",
            shell_complete=completing.files,
            help="Private key; else the agent's and SSH's usual ones.",
        ),
        click.option(
            "--known-hosts",
            metavar="FILE",
            shell_complete=completing.files,
            help="Instead of ~/.ssh/known_hosts, or of what the SSH configuration names.",
        ),
        click.option(
            "--host-keys",
            type=click.Choice(["accept-new", "strict", "off"]),
            help="accept-new, the default, records an unknown key and refuses a changed one.",
        ),
        click.option(
            "--connection",
            type=click.Choice(["ssh", "openssh"]),  # as `hosts` calls them, which not every command loads
            help="openssh: by the ssh program, for keys and proxies that only it can use.  [default: ssh]",
        ),
        click.option(
            "--persist",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="With openssh, keep the connection for later commands; 0 ends it with this one.",
        ),
        click.option(
            "--ignore-health", is_flag=True, help="Try a host that could not be reached lately all the same, at once."
        ),
        click.option(
            "--binary",
            metavar="FILE",
            shell_complete=completing.files,
            help="The runner to deploy, instead of the one in dist/.",
        ),
        click.option(
            "--update",
            type=click.Choice(["always", "same-major", "never"]),
            help="Whether a job puts our runner where another is.  [default: always, or what the hosts file says]",
        ),
        click.option(
            "--signers",
            metavar="FILE",
            shell_complete=completing.files,
            help="Deploy only runners signed by a key in this file (OpenSSH's allowed signers).",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def signing(function: Any) -> Any:
    """The option of commands that send or build a payload: who signs it."""
    return click.option(
        "--sign",
        "signing_key",
        metavar="KEY",
        type=click.Path(),
        shell_complete=completing.files,
        help="Sign the payload with this SSH key: a private key, or a public one whose private half an agent holds.",
    )(function)


def tunnelling(function: Any) -> Any:
    """The option of commands by which jobs in API mode reach the platform."""
    return click.option(
        "--allow-tcp-tunnel",
        is_flag=True,
        envvar="CRONIUM_ALLOW_TCP_TUNNEL",
        help="In API mode, where the host forwards no socket, and for scripts with expose_api: a port that every "
        "account there can connect to.",
    )(function)


def run_on_many(given: Sequence[str], options: dict[str, Any], work: Any, *, as_json: bool) -> None:
    """Runs `work` with a controller and all hosts that are meant, and ends with its exit status."""
    finish(
        with_controller(lambda: chosen_targets(given, options), options, work),
        as_json,
        options.get("execution_id") or "",
        mode=options.get("mode", BUNDLED),
    )


def recorded_hosts(run_ids: Sequence[str]) -> "list[RunHost]":
    """Every host of these runs, each once. Raises ControllerError when one of the ids is not known here."""
    from .runs import hosts_of
    from .store import Store

    store = Store()
    try:
        return hosts_of(store, run_ids)
    finally:
        store.close()


async def with_controller(find: Callable[[], Any], options: dict[str, Any], work: Any) -> int:
    """What `work` returns, called with a controller and with what `find` found."""
    import logging

    from . import progress, show
    from .access import Access, HostKeyPolicy
    from .dispatch import Controller
    from .runners import Runners

    access = Access(
        host_keys=HostKeyPolicy(options["host_keys"]) if options["host_keys"] else None,
        known_hosts=options["known_hosts"] or os.environ.get("CRONIUM_KNOWN_HOSTS") or None,
        ignores_health=options.get("ignore_health", False),
        connection=options.get("connection"),
        persist=options.get("persist"),
        passphrase=_asking_once() if sys.stdin.isatty() else None,
        warn=lambda sentence: progress.say(f"cronium: warning: {sentence}"),
    )
    # Records are for programs; what a person needs is told in sentences.
    logging.getLogger("cronium").addHandler(logging.NullHandler())
    found = find()
    runners = Runners(options["binary"], signers=options["signers"], update=options["update"])
    allow_tcp_tunnel = options.get("allow_tcp_tunnel", False)
    async with Controller(access=access, runners=runners, allow_tcp_tunnel=allow_tcp_tunnel) as controller:
        try:
            status: int = await work(controller, found)
        finally:  # a write that an interrupt has left is waited for by nobody
            show.leave()
        return status


def _asking_once() -> Callable[[str], str]:
    """Asks for a key's passphrase, once however many hosts let the key in."""
    from . import progress

    answers: dict[str, str] = {}

    def ask(key: str) -> str:
        if key not in answers:
            with progress.aside():
                answers[key] = click.prompt(f"Passphrase for {key}", hide_input=True, err=True)
        return answers[key]

    return ask


def finish(
    work: Coroutine[Any, Any, int],
    as_json: bool,
    execution_id: str,
    *,
    interrupted: str = "nothing was submitted",
    mode: str = BUNDLED,
    submits: bool = True,
) -> None:
    """Ends with the exit status that `work` returns. `interrupted` is what to say to Ctrl-C when no id says more.

    `submits` is False for a command that looks at what was submitted before: its error is no rejection of that.
    `mode` is the one that was asked for; that of an execution that was recorded is known better.
    """
    from . import show
    from .job import asked_mode
    from .runs import outcome_of

    try:
        try:
            status = asyncio.run(work)
        except WordError as error:
            raise ControllerError(error.code, error.message) from None
    except ControllerError as error:
        if as_json and error.code != "output.unwritable":
            found = _recorded(execution_id)
            # Where nothing could be asked, what became of an id that was used before isn't known.
            may_have_started = found is not None and found.may_have_started
            state = outcome_of(error, may_have_started=may_have_started)
            if may_have_started and not submits:
                state = Outcome.UNKNOWN
            told = Result(execution_id, state, host=error.host, error_code=error.code, error_message=error.message)
            show.print_result(told._replace(mode=asked_mode(mode) if found is None else found.mode), {})
        click.echo(f"cronium: {error.message} [{error.code}]", err=True)
        status = error.exit_status
    except KeyboardInterrupt:
        sentence, state = f"interrupted; {interrupted}", Outcome.UNKNOWN
        if _recorded(execution_id) is not None:
            sentence = (
                "interrupted before the end was known; it may be running. "
                f"Look with: cronium attach {execution_id}, end it with: cronium cancel {execution_id}"
            )
        elif execution_id:  # an execution is recorded before it is sent
            state = Outcome.SKIPPED
        status = show.print_left(execution_id, None, sentence, {}, as_json=as_json, state=state)
    sys.exit(status)


def _recorded(execution_id: str) -> "Record | None":
    """The execution of this id, or one of the run on many hosts that goes by it; None also where nobody can tell."""
    from .store import Store

    try:
        store = Store()
        found = store.find(execution_id) or next(iter(store.fan_out(execution_id)), None)
        store.close()
    except ControllerError:
        return None
    return found
