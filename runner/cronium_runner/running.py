"""What the command `run` does, with the options that click has read, or with none.

`cronium-runner run PAYLOAD` is what crontabs have, and click would be a quarter of its start: nothing here imports it.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from . import foreground, session
from .arguments import read, source
from .cli_show import print_json, say, with_text
from .errors import InputError, OutcomeUnknownError, RunnerError
from .guardian import rejected
from .jobdir import StateDirectory
from .submission import LEFT_BY_A_RUN, Folder, Submission, new_execution_id
from .wire import access, exactjson, masks, words
from .wire.results import Outcome, Result, exit_status

if TYPE_CHECKING:
    from .account import Account

NO_OPTIONS: Final[Mapping[str, Any]] = {
    "args": (),
    "input_texts": (),
    "variables": (),
    "secrets": (),
    "masked_names": (),
    "event_text": None,
    "timeout": None,
    "limits": (),
    "interpreter": None,
    "execution_id": None,
    "sha256": None,
    "on_disconnect": "continue",
    "keep": False,
}
"""What click gives for a command line that has a payload and nothing else."""


def run_plainly(payload: str) -> int:
    """`cronium-runner run PAYLOAD`. Returns the exit status."""
    return run({"payload": payload, **NO_OPTIONS}, None, as_json=False, verbose=False)


def run(options: Mapping[str, Any], run_as: str | None, *, as_json: bool, verbose: bool) -> int:
    """Runs the payload here, or as the account `run_as`, and shows what came of it. Returns the exit status."""
    session.leave(say)
    execution_id = tails = None
    try:
        target = None if run_as is None else _account(run_as)
        submission = submission_of(options)
        execution_id = submission.execution_id
        if verbose:
            say(f"execution {execution_id}")
        if target is None:
            result = foreground.run(StateDirectory.open(), submission, show=not as_json)
            leave_values(submission, result)
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
    return exit_status(result)


def submission_of(options: Mapping[str, Any]) -> Submission:
    """What the options ask for. Raises RunnerError."""
    chosen = options["execution_id"]
    if chosen is None and "CRONIUM_WORK_DIR" not in os.environ:
        # Inside a job the variable names the job itself; a nested run is an execution of its own.
        chosen = os.environ.get("CRONIUM_EXECUTION_ID")
    input_texts, event_text = options["input_texts"], options["event_text"]
    try:
        submission = Submission(
            execution_id=new_execution_id() if chosen is None else chosen,
            source=source(options["payload"], options["sha256"], options["interpreter"]),
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


def _access(chosen_id: str | None) -> access.Access | None:
    """API mode, when the environment configures it. Inside a job it is the job's own, and no nested run's."""
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


def leave_values(submission: Submission, result: Result) -> None:
    """A run of a directory leaves flat output.json and variables.json in it, for local use."""
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
    is_api = bool(os.environ.get(access.ENDPOINT_NAME)) and "CRONIUM_WORK_DIR" not in os.environ
    return rejected(execution_id or "", None, error, access.API if is_api else access.BUNDLED)


def _account(name: str) -> "Account | None":
    from . import account  # seldom asked for

    return account.other(name)
