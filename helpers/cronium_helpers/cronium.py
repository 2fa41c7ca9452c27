"""The helpers for Python scripts: input, output, variables, event and condition of the execution this runs in.

    import cronium                      # or not: inside a job it is there without an import

    hosts = cronium.input("config.hosts")
    cronium.setVariable("LAST_COUNT", len(hosts))
    cronium.output({"count": len(hosts)})

Values are whatever JSON can say. A call that fails raises `CroniumError`, whose `code` tells why. Calls may come
from many threads and processes at once. Python 3.6 and later, standard library only; how it talks to the
supervisor is in PROTOCOL.md. This file stands alone: scripts may copy it.
"""

import json
import os
import socket
import struct
from typing import Any, Dict, List, Optional, Tuple

__all__ = [
    "CroniumError",
    "event",
    "executeToolAction",
    "execute_tool_action",
    "getVariable",
    "get_variable",
    "input",
    "output",
    "setCondition",
    "setVariable",
    "set_condition",
    "set_variable",
]


class CroniumError(Exception):
    """A helper call failed. `code` is stable (PROTOCOL.md lists them), the message is one sentence."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def input(key: Optional[str] = None) -> Any:
    """The input, None if there is none; with `key` one value of it: an exact key, else a path like `config.hosts.0`."""
    return _call("input", *([] if key is None else ["--", key]))


def output(*arguments: Any) -> None:
    """`output(value)` sets the whole output; `output(key, value)` sets one key of it and keeps the others."""
    if not 1 <= len(arguments) <= 2:
        raise TypeError("output() takes a value, or a key and a value")
    _call("output", "--", *(list(arguments[:-1]) + [_text(arguments[-1])]))


def getVariable(name: str, default: Any = None) -> Any:
    """A variable's value, `default` when there is no variable of that name."""
    try:
        return _call("getVariable", "--", name)
    except CroniumError as error:
        if error.code != "variable.not_found":
            raise
        return default


def setVariable(name: str, value: Any) -> None:
    """Set a variable for this script, for the result and for the jobs after it."""
    _call("setVariable", "--", name, _text(value))


def event(field: Optional[str] = None) -> Any:
    """The event that this execution belongs to, as a dict; with `field` one field of it, None when it is unknown."""
    return _call("event", *([] if field is None else ["--", field]))


def setCondition(condition: bool) -> None:
    """Decide what the workflow does after this job."""
    _exchange(["cronium.setCondition", "true" if condition else "false"])


def executeToolAction(tool: str, action: str, params: Optional[Dict[str, Any]] = None) -> Any:
    """Have the platform do something, at most once, and return what it answers. In API mode only."""
    return _call("executeToolAction", "--", tool, action, _text({} if params is None else params))


execute_tool_action = executeToolAction
get_variable = getVariable
set_variable = setVariable
set_condition = setCondition


def _call(helper: str, *words: str) -> Any:
    answer = _exchange(["cronium." + helper, "--json"] + list(words))
    return json.loads(answer.decode("utf-8")) if answer else None


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise CroniumError("the value cannot be written as JSON: %s" % error, "value.invalid") from None


def _request(words: List[str]) -> bytes:
    parts = [b"CRH1", struct.pack(">I", len(words))]
    for word in words:
        if not isinstance(word, str):
            raise TypeError("a key, a field and a variable's name are strings, not %s" % type(word).__name__)
        try:
            encoded = word.encode("utf-8")
        except UnicodeEncodeError:
            raise CroniumError("the value holds an unpaired surrogate", "value.invalid") from None
        parts += [struct.pack(">I", len(encoded)), encoded]
    return b"".join(parts)


def _exchange(words: List[str]) -> bytes:
    """Send the words, return what a command line would have printed, raise what it would have complained about."""
    request = _request(words)
    path = os.environ.get("CRONIUM_SOCKET")
    if not path:
        raise CroniumError("cronium works only inside a job: CRONIUM_SOCKET is not set", "supervisor.gone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(None)  # whatever socket.setdefaulttimeout the script has chosen
            connection.connect(path)
        except OSError as error:
            raise CroniumError(
                "no supervisor answers at CRONIUM_SOCKET: %s" % (error.strerror or error), "supervisor.gone"
            ) from None
        try:
            connection.sendall(request)
        except OSError:
            pass  # it may have refused the request before the end of it; then its answer says so
        status, code, streams = _answer(connection)
    if status == 0:
        return streams[b"O"]
    message = streams[b"E"].decode("utf-8", "replace").strip().split("\nUsage: ")[0]
    raise CroniumError(message[len("Error: ") :] if message.startswith("Error: ") else message, code)


def _answer(connection: socket.socket) -> Tuple[int, str, Dict[bytes, bytes]]:
    streams = {b"O": b"", b"E": b""}
    with connection.makefile("rb") as stream:
        while True:
            try:
                head = stream.read(5)
                content = stream.read(struct.unpack(">xI", head)[0]) if len(head) == 5 else b""
            except OSError:
                head = content = b""
            if len(head) < 5 or len(content) < struct.unpack(">xI", head)[0]:
                raise CroniumError("the supervisor of this execution is gone", "supervisor.gone")
            kind = head[:1]
            if kind == b"I":
                connection.sendall(struct.pack(">I", 0))  # a library has no standard input to give
            elif kind in streams:
                streams[kind] += content
            elif kind == b"X" and content:
                return content[0], content[1:].decode("ascii", "replace"), streams
