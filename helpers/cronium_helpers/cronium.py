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
from typing import Any, Dict, List, Optional, Tuple, cast

__all__ = [
    "AsyncCronium",
    "Cronium",
    "CroniumAPIError",
    "CroniumError",
    "CroniumTimeoutError",
    "appendVariable",
    "append_variable",
    "cronium",
    "deleteVariable",
    "delete_variable",
    "event",
    "executeToolAction",
    "execute_tool_action",
    "getCondition",
    "getVariable",
    "get_condition",
    "get_variable",
    "incrementVariable",
    "increment_variable",
    "input",
    "output",
    "progress",
    "send_discord_message",
    "send_email",
    "send_slack_message",
    "setCondition",
    "setVariable",
    "set_condition",
    "set_variable",
    "summary",
]


class CroniumError(Exception):
    """A helper call failed. `code` is stable (PROTOCOL.md lists them), the message is one sentence."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class CroniumAPIError(CroniumError):
    """The platform said no, to a read or to a tool's action."""


class CroniumTimeoutError(CroniumError):
    """The platform gave no answer in time."""


_ERRORS = {
    "api.refused": CroniumAPIError,
    "tool.failed": CroniumAPIError,
    "api.unreachable": CroniumTimeoutError,
    "tool.unknown": CroniumTimeoutError,
}
_ABSENT = object()  # type: Any


def input(key: Optional[str] = None) -> Any:
    """The input, None if there is none; with `key` one value of it: an exact key, else a path like `config.hosts.0`."""
    return _call("input", *([] if key is None else ["--", key]))


def output(*arguments: Any, **named: Any) -> None:
    """`output(value)` sets the whole output; `output(key, value)` sets one key of it and keeps the others.

    By name it is `output(data=value)`, and `output(key=key, value=value)`.
    """
    words = list(arguments) + [named.pop(name) for name in ("key", "value", "data") if name in named]
    if named or not 1 <= len(words) <= 2:
        raise TypeError("output() takes a value, or a key and a value")
    _call("output", "--", *(words[:-1] + [_text(words[-1])]))


def getVariable(name: str = _ABSENT, default: Any = None, *, key: str = _ABSENT) -> Any:
    """A variable's value, `default` when there is no variable of that name. Here and below `key` may be said too."""
    try:
        return _call("getVariable", "--", _name(name, key))
    except CroniumError as error:
        if error.code != "variable.not_found":
            raise
        return default


def setVariable(name: str = _ABSENT, value: Any = _ABSENT, *, key: str = _ABSENT) -> None:
    """Set a variable for this script, for the result and for the jobs after it."""
    if value is _ABSENT:
        raise TypeError("setVariable() takes a name and a value")
    _call("setVariable", "--", _name(name, key), _text(value))


def deleteVariable(name: str = _ABSENT, *, key: str = _ABSENT) -> None:
    """Remove a variable. Raises CroniumError when there is none."""
    _call("deleteVariable", "--", _name(name, key))


def incrementVariable(name: str = _ABSENT, by: Any = 1, *, key: str = _ABSENT) -> Any:
    """Add a number to a variable, which begins at 0, in one step; its new value. No parallel change is lost."""
    return _call("incrementVariable", "--", _name(name, key), _text(by))


def appendVariable(name: str = _ABSENT, text: str = _ABSENT, *, key: str = _ABSENT) -> None:
    """Put a text behind a variable's, which begins empty, in one step. No parallel change is lost."""
    if text is _ABSENT:
        raise TypeError("appendVariable() takes a name and a text")
    _call("appendVariable", "--", _name(name, key), text)


def event(field: Optional[str] = None) -> Any:
    """The event that this execution belongs to, as a dict; with `field` one field of it, None when it is unknown."""
    return _call("event", *([] if field is None else ["--", field]))


def setCondition(condition: bool) -> None:
    """Decide what the workflow does after this job."""
    _exchange(["cronium.setCondition", "true" if condition else "false"])


def getCondition() -> Optional[bool]:
    """What was decided, None when nothing was."""
    return cast(Optional[bool], _call("getCondition"))


def progress(percent: float, text: Optional[str] = None) -> None:
    """Say how far the script is, from 0 to 100, and what it does."""
    _exchange(["cronium.progress", "--", _text(percent)] + ([] if text is None else [text]))


def summary(text: str) -> None:
    """Say what came of it, as Markdown of at most 64 KiB, in place of what was said before."""
    _exchange(["cronium.summary", "--", text])


def executeToolAction(
    tool: str, action: str, params: Optional[Dict[str, Any]] = None, *, config: Optional[Dict[str, Any]] = None
) -> Any:
    """Have the platform do something, at most once, and return what it answers. In API mode only.

    `config` is another name for `params`.
    """
    given = config if params is None else params
    return _call("executeToolAction", "--", tool, action, _text({} if given is None else given))


def send_email(to: Any, subject: str, body: str, **more: Any) -> Any:
    """The action `send_message` of the tool `email`; `to` is one address or a list. `more` goes with it."""
    to = to if isinstance(to, list) else [to]
    return executeToolAction("email", "send_message", dict(more, to=to, subject=subject, body=body))


def send_slack_message(channel: str, text: str, **more: Any) -> Any:
    """The action `send_message` of the tool `slack`."""
    return executeToolAction("slack", "send_message", dict(more, channel=channel, text=text))


def send_discord_message(channel_id: str, content: str, **more: Any) -> Any:
    """The action `send_message` of the tool `discord`."""
    return executeToolAction("discord", "send_message", dict(more, channelId=channel_id, content=content))


execute_tool_action = executeToolAction
get_variable = getVariable
set_variable = setVariable
delete_variable = deleteVariable
increment_variable = incrementVariable
append_variable = appendVariable
get_condition = getCondition
set_condition = setCondition

_FUNCTIONS = {name: value for name, value in globals().items() if name in __all__ and not isinstance(value, type)}


class Cronium:
    """The same functions as methods, for scripts that make an object of their own or import `cronium.cronium`."""

    def __getattr__(self, name: str) -> Any:
        if name not in _FUNCTIONS:
            raise AttributeError(name)
        return _FUNCTIONS[name]


class AsyncCronium:
    """The same functions to await; each call is done in a thread, so that the event loop goes on."""

    def __getattr__(self, name: str) -> Any:
        if name not in _FUNCTIONS:
            raise AttributeError(name)

        async def call(*arguments: Any, **named: Any) -> Any:
            import asyncio
            import functools

            function = functools.partial(_FUNCTIONS[name], *arguments, **named)
            return await asyncio.get_event_loop().run_in_executor(None, function)

        return call

    async def __aenter__(self) -> "AsyncCronium":
        return self

    async def __aexit__(self, *_: Any) -> None:
        pass

    async def close(self) -> None:
        """Nothing is open between calls."""


cronium = Cronium()


def _name(name: str, key: str) -> str:
    if (name is _ABSENT) == (key is _ABSENT):
        raise TypeError("a variable's name is needed once, by position, as name or as key")
    return key if name is _ABSENT else name


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
    message = message[len("Error: ") :] if message.startswith("Error: ") else message
    raise _ERRORS.get(code, CroniumError)(message, code)


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
