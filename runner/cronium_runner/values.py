"""The values of one execution in bundled mode: kept by its supervisor, and shown to the script as files.

The supervisor is the only writer, so no lock is needed and no update is lost. Memory is the truth; the files in
`.cronium` are there for scripts that like to read them. They are written before a helper gets its answer, each
under a temporary name first, without fsync: what has to survive is in the result, which is durable.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from . import event as events
from .errors import StateDamagedError
from .helpers import HelperError, Json, shown
from .state_files import open_file
from .wire.exactjson import encode

MASKED: Final = "***"

VARIABLE: Final = "variable"
MERGE: Final = "merge"
OUTPUT: Final = "output"
CONDITION: Final = "condition"
"""What a script can write: a variable, one key of the output, the output, the condition."""
DELETE: Final = "delete"
INCREMENT: Final = "increment"
APPEND: Final = "append"
"""What it can do to a variable that depends on what the variable is."""

MAX_BYTES: Final = 6 << 20
"""Of all variables, and of the output: both together fit into a frame of the channel (16 MiB) as part of the result."""


MAX_SUMMARY: Final = 64 << 10
"""Bytes: a page that somebody reads."""
MAX_PROGRESS: Final = 1000
"""Bytes: a line beside a bar."""


class BundledValues:
    """Implements `helpers.Values`. `secrets` are variables that are in memory only, and masked in the result."""

    def __init__(
        self,
        folder: str,
        *,
        input: Json = None,
        variables: Mapping[str, Json] | None = None,
        secrets: Mapping[str, Json] | None = None,
        event: Mapping[str, Json] | None = None,
        environment: Mapping[str, str] | None = None,
        is_masked: Callable[[str], bool] = lambda _name: False,
        also_masked: Iterable[Json] = (),
    ) -> None:
        """`folder` is the work directory's `.cronium`. `environment` is what context.json shows: the manifest's.

        `is_masked` tells the variables, by their names, whose values must not be seen in the output either;
        `also_masked` are values from elsewhere.
        """
        self._folder = folder
        self._input = input
        self._secrets = dict(secrets or {})
        self._secret_names = frozenset(self._secrets)  # a deleted secret that is set again is one
        self._variables = {name: value for name, value in (variables or {}).items() if name not in self._secrets}
        self._handed_over = self._secret_names.union(self._variables)
        self._event = dict.fromkeys(events.FIELDS) | dict(event or {})
        self._environment = dict(environment or {})
        self._output: Json = None
        self._changed: dict[str, Json] = {}
        self._condition: bool | None = None
        self.progress: dict[str, Json] | None = None
        """How far the script said it is: `percent` and perhaps `text`."""
        self.summary: str | None = None
        """What came of it, in Markdown of the script's."""
        self._is_masked = is_masked
        named = (value for name, value in self._variables.items() if is_masked(name))
        self.masked_values: list[Json] = [*self._secrets.values(), *named, *also_masked]
        """What must not be seen in the script's output: values handed over, and those that the script gave since."""

    def __repr__(self) -> str:
        return (
            f"<BundledValues {self._folder!r} variables={sorted(self._variables)} secrets={sorted(self._secrets)}"
            f" changed={sorted(self._changed)} condition={self._condition}>"
        )

    def create_files(self) -> None:
        """Create the folder (0700) and its input, variables and context files. Raises `OSError`."""
        if not os.path.isdir(self._folder):  # it is there in local use: a directory that was run before
            os.mkdir(self._folder, 0o700)
        event = self._event
        self._write("input.json", encode({"data": self._input}))
        self._write("variables.json", encode(self._variables))
        self._write(
            "context.json",
            encode(
                {
                    "eventId": event["id"],
                    "eventName": event["name"],
                    "executionId": event["executionId"],
                    "jobId": event["jobId"],
                    "trigger": event["trigger"],
                    "startTime": event["startTime"],
                    "environment": self._environment,
                    "metadata": event["metadata"],
                }
            ),
        )

    def move_to(self, folder: str) -> None:
        """The folder has been renamed to `folder`; later writes go there."""
        self._folder = folder

    # What the helpers do.

    def get_input(self) -> Json:
        return self._input

    def merge_output(self, key: str, value: Json) -> None:
        if self._output is not None and not isinstance(self._output, dict):
            raise HelperError(
                "value.invalid",
                f"key {shown(key)} cannot be merged into the output, which is no object; set it as a whole",
            )
        self._set_output({**(self._output or {}), key: value}, MERGE, key, value)

    def replace_output(self, value: Json) -> None:
        self._set_output(value, OUTPUT, None, value)

    def _set_output(self, whole: Json, write: str, key: str | None, value: Json) -> None:
        self._store("output.json", {"data": whole})
        self._tell(write, key, value)
        self._output = whole

    def get_variable(self, name: str) -> Json:
        return self._secrets[name] if name in self._secret_names else self._variables[name]

    def set_variable(self, name: str, value: Json) -> None:
        if name in self._secret_names:
            self._secrets[name] = value
            self._mask(value)
            self._changed[name] = MASKED
            return
        variables = {**self._variables, name: value}
        self._store("variables.json", variables)
        self._tell(VARIABLE, name, value)
        self._note(name, value)

    def _note(self, name: str, value: Json) -> None:
        """The script has given a variable this value."""
        self._variables = {**self._variables, name: value}
        self._changed[name] = value
        if self._is_masked(name):
            self._mask(value)

    def delete_variable(self, name: str) -> None:
        if name in self._secret_names:
            del self._secrets[name]
        else:
            del (variables := dict(self._variables))[name]
            self._store("variables.json", variables)
            self._variables = variables
        self._note_deleted(name)

    def _note_deleted(self, name: str) -> None:
        """In the result it is null, as far as anybody else knows of it."""
        self._changed.pop(name, None)
        if name in self._handed_over:
            self._changed[name] = None

    def increment_variable(self, name: str, by: Json) -> Json:
        return self._change(INCREMENT, name, by)

    def append_variable(self, name: str, text: str) -> None:
        self._change(APPEND, name, text)

    def _change(self, change: str, name: str, operand: Json) -> Json:
        """The value that a change makes of a variable, of None when there is none, now set. Raises HelperError."""
        from .wire.changes import ChangeError, appended, incremented  # few scripts need it

        before = (self._secrets if name in self._secret_names else self._variables).get(name)
        try:
            value = incremented(before, operand) if change == INCREMENT else appended(before, operand)
        except ChangeError as error:
            raise HelperError("value.invalid", f"variable {shown(name)} {error}") from None
        self.set_variable(name, value)
        return value

    def _mask(self, value: Json) -> None:
        if value not in self.masked_values:
            self.masked_values.append(value)

    def event(self) -> Mapping[str, Json]:
        return events.spelled_out(self._event, self._environment)

    def set_condition(self, condition: bool) -> None:
        self._tell(CONDITION, None, condition)
        self._condition = condition

    def set_progress(self, percent: Json, text: str | None) -> None:
        self._refuse_large("the text of the progress", text or "", MAX_PROGRESS)
        self.progress = {"percent": percent, **({} if text is None else {"text": text})}

    def set_summary(self, text: str) -> None:
        self._refuse_large("the summary", text, MAX_SUMMARY)
        self.summary = text

    def _refuse_large(self, what: str, text: str, most: int) -> None:
        if len(text.encode()) > most:
            raise HelperError("value.too_large", f"{what} may have {most} bytes; write a file, or an output, instead")

    def _tell(self, write: str, key: str | None, value: Json) -> None:
        """For a mode in which somebody else is to have the write too. Raises HelperError: then nothing changes."""

    def execute_tool_action(self, _tool: str, _action: str, _params: Mapping[str, Json]) -> Json:
        raise HelperError(
            "tool.unavailable", "tool actions need the platform: run the job in API mode (`cronium run --mode api`)"
        )

    # What the result needs.

    def is_secret(self, name: str) -> bool:
        """Whether the values of a variable of this name are secrets."""
        return name in self._secret_names or self._is_masked(name)

    @property
    def output(self) -> Json:
        """The output as the script left it, None when it gave none."""
        return self._output

    @property
    def changed_variables(self) -> dict[str, Json]:
        """The variables that the script set, and only those; a secret's value is masked."""
        return dict(self._changed)

    @property
    def condition(self) -> bool | None:
        """What the script decided, None when it did not."""
        return self._condition

    def _store(self, name: str, content: Json) -> None:
        encoded = encode(content)
        if len(encoded) > MAX_BYTES:
            raise HelperError(
                "value.too_large",
                f"{name} would be larger than {MAX_BYTES >> 20} MiB; write a file, or to standard output, instead",
            )
        try:
            try:
                self._write(name, encoded)
            except FileNotFoundError:
                self._write_again(name, encoded)
        except OSError as error:
            raise HelperError("store.failed", f"{name} could not be written: {error.strerror}") from None
        except StateDamagedError as error:
            raise HelperError("store.failed", f"{name} could not be written: {error.what}") from None

    def _write_again(self, name: str, content: bytes) -> None:
        """Makes the folder and its files again after the script has emptied its work directory.

        Where that directory itself is gone there is no place for them, and the values are in memory alone.
        """
        with contextlib.suppress(FileNotFoundError):
            self.create_files()
            if self._output is not None:
                self._write("output.json", encode({"data": self._output}))
            self._write(name, content)

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self._folder}/{name}"
        temporary = f"{self._folder}/.{name}.new"
        left = memoryview(content)
        descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
            finally:
                os.close(descriptor)
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
