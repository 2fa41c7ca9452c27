"""What can go wrong before, or around, a script. A script's own failure is never an exception here: it is a result.

Every error carries a stable code (`wire.codes`), a message that says where and what to do, and the exit status
that the command line gives it. `command` is the one place that turns them into exit statuses.
"""

from .wire.codes import CODES


class RunnerError(Exception):
    """The runner could not do what was asked. `code` is one of `wire.codes.CODES`; `message` is one clean line."""

    exit_status = 125

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES, f"unlisted error code {code!r}"
        from .wire.text import clean  # seldom needed: commands and agents import this module when they start

        self.message = clean(message)
        super().__init__(self.message)
        self.code = code


class PayloadError(RunnerError):
    """The payload is not what it should be. Nothing of it has run; nothing of it is left behind."""


class ManifestError(RunnerError):
    """The manifest cannot be used. The message starts with `file:line:` and names the key."""


class InterpreterNotFoundError(RunnerError):
    """The interpreter is not on this host: exit status 127, as a shell says it."""

    exit_status = 127

    def __init__(self, message: str) -> None:
        super().__init__("interpreter.not_found", message)


class NotExecutableError(RunnerError):
    """The interpreter, or the script run directly, cannot be executed: exit status 126, as a shell says it."""

    exit_status = 126

    def __init__(self, message: str) -> None:
        super().__init__("interpreter.not_executable", message)


class ExecutionError(RunnerError):
    """An execution id that cannot be claimed, found or followed."""


class OutcomeUnknownError(RunnerError):
    """An execution was started and can't be followed any further: it goes on, or its end can't be read."""

    exit_status = 255  # EXIT_UNREACHABLE of wire.results, which an agent's start does without


class StateDirectoryError(RunnerError):
    """The state directory is not usable: not ours, open to others, read-only or full."""

    def __init__(self, message: str) -> None:
        super().__init__("state.unusable", message)


class StateDamagedError(StateDirectoryError):
    """One file of the state directory is not what it should be; other executions are not affected.

    `path` is the file's, `what` completes the sentence that begins with it, `then` says what follows from that.
    """

    def __init__(self, path: str, what: str, then: str = "what became of its execution is not known") -> None:
        RunnerError.__init__(self, "state.damaged", f"the record {path} {what}; {then}")
        self.what = f"{path} {what}"


class SystemRefusedError(RunnerError):
    """The operating system refused what the runner itself needs: a process, a descriptor, a read, a write."""

    def __init__(self, message: str) -> None:
        super().__init__("runner.refused", message)


class InputError(RunnerError):
    """Input, variables, event or an option cannot be used as given."""

    def __init__(self, message: str, code: str = "input.invalid") -> None:
        super().__init__(code, message)
