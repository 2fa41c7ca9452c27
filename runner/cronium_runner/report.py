"""What a person sees of executions on this host: the local testing mode's report, and lists. Writes only text.

The report goes to standard error, so that the script's own standard output stays clean.
"""

import sys
from typing import TYPE_CHECKING, Any, Final

from .submission import Script, Submission
from .wire import exactjson, masks
from .wire.limits import shown
from .wire.results import Outcome, Result
from .wire.sizes import readable
from .wire.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .adopting import Exchanged
    from .doctor import Finding

_LONGEST_VALUE: Final = 1 << 20
"""Characters of an output or a variable that the local testing mode shows: what a script hands back is its result."""
_MARKS: Final = {Outcome.SUCCEEDED: "ok", Outcome.FAILED: "failed", Outcome.TIMED_OUT: "timed out"}


def print_start(submission: Submission, what: str) -> None:
    """Says what is about to run, and with what."""
    _heading(f"test {what}")
    _row("execution", submission.execution_id)
    _row(
        "input",
        exactjson.dumps(submission.input) if submission.has_input else _no_input(submission),
    )
    for name, value in submission.variables.items():
        _row("variable", f"{name} = {_shown(name, value, submission.masked_names)}")
    for name in submission.secrets:
        _row("secret", f"{name} = ***")
    _heading("output")


def _shown(name: str, value: Any, masked_names: tuple[str, ...]) -> str:
    return "***" if masks.is_masked_name(name, masked_names) else exactjson.dumps(value)


def _no_input(submission: Submission) -> str:
    return "none (cronium.input prints null)" if isinstance(submission.source, Script) else "what the manifest says"


def print_end(submission: Submission, result: Result) -> None:
    """Says how it ended and what the script handed back."""
    result = result.hidden()
    _heading("result")
    _row("state", f"{_MARKS.get(result.state, result.state.value)}{_ending(result)}")
    if result.duration_ms is not None:
        cpu = "" if result.cpu_ms is None else f", {result.cpu_ms:.0f} ms of CPU"
        memory = "" if result.max_rss_kib is None else f", {result.max_rss_kib / 1024:.1f} MiB at most"
        _row("time", f"{result.duration_ms:.0f} ms{cpu}{memory}")
    _row(
        "streams",
        f"{readable(result.stdout.size)} on standard output, {readable(result.stderr.size)} on standard error",
    )
    _row(
        "output",
        "none (cronium.output was not called)" if result.output is None else exactjson.dumps(result.output),
    )
    for name, value in result.variables.items():
        _row("variable set", f"{name} = {_shown(name, value, submission.masked_names)}")
    if result.condition is not None:
        _row("condition", str(result.condition).lower())
    if result.strays:
        _row("strays", f"{result.strays} processes outlived the script and were ended")
    if result.error_message is not None:
        _row("error", f"{result.error_message} [{result.error_code}]")


def print_statuses(statuses: "Iterable[dict[str, Any]]") -> None:
    """A line for each execution, on standard output."""
    for status in statuses:
        result = status["result"] or {}
        state = result.get("state", status["state"])
        exit_code = result.get("exitCode")
        ending = "" if exit_code is None else f"exit {exit_code}"
        if result.get("signal") is not None:
            ending = f"signal {result['signal']}"
        _line(f"{status['executionId']:<48} {state:<12} {ending:<10} {status['claimedAt'] or '-'}".rstrip())


def print_result_line(result: Result) -> None:
    """How one execution ended, on standard output."""
    reason = "" if result.error_message is None else f"  {result.error_message} [{result.error_code}]"
    _line(f"{result.execution_id:<48} {result.state.value}{_ending(result)}{reason}")


def print_collection(told: dict[str, Any]) -> None:
    """What a collection removed (`retention.Report` as JSON) and what is left, on standard output."""
    would = "would collect" if told["isDryRun"] else "collected"
    gone, used, budget = told["collected"], told["usedBytes"], told["budgetBytes"]
    for execution_id in gone:
        _line(f"{would} {execution_id}")
    for execution_id, reason in told["failed"].items():
        _line(f"could not collect {execution_id}: {reason}")
    _line(
        f"{would} {len(gone)} executions and {len(told['payloads'])} payloads, {readable(told['freedBytes'])}; "
        f"kept: {told['kept']} executions ({told['unacknowledged']} not acknowledged), {told['running']} running, "
        f"{readable(used)} of {readable(budget)}"
    )
    if used > budget:
        _line(
            f"{readable(used - budget)} over the budget: nothing more may go. Fetch results (they are "
            "acknowledged then), or give up those that nobody fetches with --unacknowledged-older-than DAYS"
        )


def print_uninstalled(told: dict[str, Any]) -> None:
    """What was removed of the runner, and what stays and why (`uninstall.uninstall`), on standard output."""
    removed = "would remove" if told["isDryRun"] else "removed"
    for path in told["removed"]:
        _line(f"{removed} {path}")
    for path, reason in told["kept"].items():
        _line(f"kept {path}: {reason}")
    records = told["records"]
    if records is not None:
        said = f"{records['running']} not ended, {records['unfetched']} not fetched"
        _line(f"{removed} {records['executions']} executions ({said}) in {records['path']}")
        for name in records["kept"]:
            _line(f"kept {records['path']}/{name}: not the runner's")
    if not told["removed"] and not told["kept"] and records is None:
        _line("nothing is installed")


def print_adopted(directory: str, exchanged: "Sequence[Exchanged]") -> None:
    """What `adopting.adopt` has recorded, on standard output."""
    for path, old, new in exchanged:
        _line(f"{path}: SHA-256 was {old}, is {new}")
    _line(f"{directory}: " + (f"adopted, {len(exchanged)} changed" if exchanged else "nothing has changed"))


def print_findings(findings: "list[Finding]") -> None:
    """A line for each finding, and what to do about it below, on standard output."""
    for finding in findings:
        _line(f"{finding.level:<5} {finding.name:<28} {finding.seen}")
        if finding.advice:
            _line(f"{'':<34} → {finding.advice}")


def print_containment(status: dict[str, Any]) -> None:
    """How the execution's processes are held, and by what each of its limits is enforced, on standard output."""
    if status["heldBy"] is not None:
        _line(f"  held by {status['heldBy']}")
    for key, limit in status["limits"].items():
        _line(f"  limit {shown(key, limit['value'])}, enforced by {limit['by']}")


def _ending(result: Result) -> str:
    if result.signal is not None:
        return f" (signal {result.signal})"
    return "" if result.exit_code is None else f" (exit {result.exit_code})"


def _line(text: str) -> None:
    """A line on standard output. Names, states and messages in it may be what a script wrote into a record."""
    print(visible(text))


def _heading(text: str) -> None:
    print(f"── {visible(text)} {'─' * max(3, 60 - len(text))}", file=sys.stderr, flush=True)


def _row(name: str, value: str) -> None:
    print(f"   {name:<13} {visible(value, _LONGEST_VALUE)}", file=sys.stderr, flush=True)
