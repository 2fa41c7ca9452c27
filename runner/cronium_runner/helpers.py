"""The helper grammar: what `cronium.input`, `cronium.setVariable` and the others mean. It exists once, here.

Pure: words and standard input go in, exit status and bytes come out. Values are reached through the `Values`
protocol, so that the same grammar serves every mode. No sockets, no files, no clock.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from .wire.exactjson import NotJSONError, UnsupportedJSONError, encode, loads_value

Json = Any  # whatever wire.exactjson.loads_value returns


class Answer(NamedTuple):
    """What a helper call comes to: exit status, bytes for the two streams, and a code for libraries."""

    status: int
    stdout: bytes = b""
    stderr: bytes = b""
    code: str = ""


class HelperError(Exception):
    """The call failed. `code` is one of PROTOCOL.md's; `message` is one sentence. Exit status 1."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def answer(self) -> Answer:
        return Answer(1, stderr=_line(f"Error: {self.message}"), code=self.code)


class UsageError(HelperError):
    """The call is not in the grammar. Exit status 2, with the usage."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__("usage", message)
        self.usage = usage

    @property
    def answer(self) -> Answer:
        return Answer(2, stderr=_line(f"Error: {self.message}\n{self.usage}"), code=self.code)


class Values(Protocol):
    """The values of one execution. Any of these may raise `HelperError("store.failed", …)`, changing nothing."""

    def get_input(self) -> Json:
        """The input, None when there is none."""

    def merge_output(self, key: str, value: Json) -> None:
        """Set one key of the output object. Raises `HelperError` when the output is something else."""

    def replace_output(self, value: Json) -> None:
        """Make `value` the whole output."""

    def get_variable(self, name: str) -> Json:
        """Raises `KeyError` when there is no such variable."""

    def set_variable(self, name: str, value: Json) -> None:
        """Set a variable, for this script and for the result."""

    def delete_variable(self, name: str) -> None:
        """Remove a variable. Raises `KeyError` when there is none."""

    def increment_variable(self, name: str, by: Json) -> Json:
        """Add a number to a variable, which begins at 0, in one step; its new value. Raises `HelperError`."""

    def append_variable(self, name: str, text: str) -> None:
        """Put a text behind a variable's, which begins empty, in one step. Raises `HelperError`."""

    def event(self) -> Mapping[str, Json]:
        """The event object with all its fields in all their spellings; what is unknown is None."""

    def set_condition(self, condition: bool) -> None:
        """Decide what the workflow does next."""

    @property
    def condition(self) -> bool | None:
        """What the script has decided, None when it has not."""

    def set_progress(self, percent: Json, text: str | None) -> None:
        """Say how far the script is: a number from 0 to 100, and what it does."""

    def set_summary(self, text: str) -> None:
        """Say what came of it, as Markdown, in place of what was said before. Raises `HelperError`."""

    def execute_tool_action(self, tool: str, action: str, params: Mapping[str, Json]) -> Json:
        """Have the platform do something, at most once; what it answers. Raises `HelperError`."""


class Request(NamedTuple):
    """A call that is in the grammar. `needs_stdin`: the client has to be asked for its standard input."""

    verb: "_Verb"
    operands: tuple[str, ...]
    as_json: bool
    default: str | None
    needs_stdin: bool

    @property
    def asks(self) -> bool:
        """Whether live values may make it wait for an answer; a plain write never does."""
        return self.verb.name in _ASKING

    @property
    def variable(self) -> str | None:
        """The variable that is asked for, or changed by what it is."""
        return self.operands[0] if self.verb.name in ("getVariable", *_CHANGING) else None

    @property
    def changes(self) -> bool:
        """Whether it changes a variable by what it is, so that live values have to wait for the outcome."""
        return self.verb.name in _CHANGING

    @property
    def acts(self) -> bool:
        """Whether it is a tool's action, which may take as long as it likes."""
        return self.verb.name == "executeToolAction"


class _Verb(NamedTuple):
    name: str
    usage: str
    operands: tuple[int, int]  # at least, at most
    options: tuple[str, ...]
    reads_stdin: Callable[[tuple[str, ...]], bool]
    run: Callable[[Request, Values, bytes], bytes]


def parse(words: Sequence[bytes]) -> Request:
    """The call that `words` make; word 0 is its name. Raises `UsageError`, for bad UTF-8 `HelperError`."""
    texts = [_text(word, "an argument") for word in words]
    name = texts[0] if texts else ""
    verb = _VERBS.get(name)
    if verb is None:
        raise UsageError(f"{shown(name)} is no helper", f"Helpers: {' '.join(_DOTTED)}")
    usage = f"Usage: {name}{verb.usage}"
    as_json, default, position = False, None, 1
    while position < len(texts) and texts[position].startswith("-") and texts[position] != "-":
        option = texts[position]
        position += 1
        if option == "--":
            break
        if option not in verb.options:
            raise UsageError(f"{name} has no option {shown(option)}; write -- before a value that begins with -", usage)
        if option == "--json":
            as_json = True
            continue
        if position == len(texts):
            raise UsageError(f"{option} needs a value", usage)
        default = texts[position]
        position += 1
    operands = tuple(texts[position:])
    at_least, at_most = verb.operands
    if len(operands) < at_least:
        raise UsageError(f"{name} needs more arguments", usage)
    if len(operands) > at_most:
        raise UsageError(f"{name} takes no argument {shown(operands[at_most])} here", usage)
    if verb.name == "setCondition" and operands[0].lower() not in _CONDITIONS:
        raise UsageError(f"{shown(operands[0])} is neither true nor false", usage)
    if verb.name in ("setVariable", *_CHANGING) and not operands[0]:
        raise UsageError("a variable needs a name", usage)
    if verb.name == "incrementVariable" and _number(operands[1:]) is None:
        raise UsageError(f"{shown(operands[1])} is no number", usage)
    if verb.name == "progress" and _percent(operands) is None:
        raise UsageError(f"{shown(operands[0])} is no number from 0 to 100", usage)
    return Request(verb, operands, as_json, default, verb.reads_stdin(operands))


def execute(request: Request, values: Values, stdin: bytes | None = None) -> Answer:
    """Do what `request` asks; `stdin` is wanted when `request.needs_stdin`. A failed call is an `Answer` too."""
    try:
        return Answer(0, stdout=request.verb.run(request, values, stdin or b""))
    except HelperError as error:
        return error.answer


def execute_safely(request: Request, values: Values, stdin: bytes | None = None) -> Answer:
    """Like `execute`; a defect in one call is that call's answer, and must not cost the whole execution."""
    try:
        return execute(request, values, stdin)
    except Exception as error:  # noqa: BLE001 - see above
        return Answer(1, stderr=_line(f"Error: the runner failed: {type(error).__name__}: {error}"))


def _input(request: Request, values: Values, _stdin: bytes) -> bytes:
    value = values.get_input()
    if request.operands:
        key = request.operands[0]
        try:
            value = _find(value, key)
        except KeyError:
            raise HelperError("input.key_not_found", f"input key {shown(key)} not found") from None
    return _printed(value, request.as_json)


def _output(request: Request, values: Values, stdin: bytes) -> bytes:
    *key, value = request.operands or ("-",)
    if key:
        values.merge_output(key[0], _given(request, value, stdin, lenient=False))
    else:
        values.replace_output(_given(request, value, stdin, lenient=True))
    return b""


def _get_variable(request: Request, values: Values, _stdin: bytes) -> bytes:
    name = request.operands[0]
    default: Json = request.default
    if default is not None and request.as_json:  # wrong whether or not it is needed, so that it is noticed
        default = _strict(default, "the default")
    try:
        value = values.get_variable(name)
    except KeyError:
        if request.default is None:
            raise HelperError("variable.not_found", f"variable {shown(name)} not found") from None
        value = default
    return _printed(value, request.as_json)


def _set_variable(request: Request, values: Values, stdin: bytes) -> bytes:
    name, *argument = request.operands
    if not argument:
        value = _from_stdin(request, stdin, lenient=True)
    else:
        value = _strict(argument[0], "the value") if request.as_json else argument[0]
    values.set_variable(name, value)
    return b""


def _delete_variable(request: Request, values: Values, _stdin: bytes) -> bytes:
    name = request.operands[0]
    try:
        values.delete_variable(name)
    except KeyError:
        raise HelperError("variable.not_found", f"variable {shown(name)} not found") from None
    return b""


def _increment_variable(request: Request, values: Values, _stdin: bytes) -> bytes:
    return _printed(values.increment_variable(request.operands[0], _number(request.operands[1:])), request.as_json)


def _append_variable(request: Request, values: Values, _stdin: bytes) -> bytes:
    values.append_variable(*request.operands)
    return b""


def _number(operands: tuple[str, ...]) -> Json:
    """The number that the first word is, 1 when there is no word; None when it is none."""
    from .wire.changes import ChangeError, amount  # few scripts need it

    try:
        return amount(operands[0]) if operands else 1
    except ChangeError:
        return None


def _event(request: Request, values: Values, _stdin: bytes) -> bytes:
    event = values.event()
    if not request.operands:
        return _printed(dict(event), request.as_json)
    field = request.operands[0]
    try:
        value = _find(event, field)
    except KeyError:
        raise HelperError("event.field_not_found", f"event field {shown(field)} not found") from None
    return _printed(value, request.as_json)


def _set_condition(request: Request, values: Values, _stdin: bytes) -> bytes:
    values.set_condition(_CONDITIONS[request.operands[0].lower()])
    return b""


def _get_condition(request: Request, values: Values, _stdin: bytes) -> bytes:
    return _printed(values.condition, request.as_json)


def _progress(request: Request, values: Values, _stdin: bytes) -> bytes:
    text = request.operands[1:]
    values.set_progress(_percent(request.operands), text[0] if text else None)
    return b""


def _summary(request: Request, values: Values, stdin: bytes) -> bytes:
    values.set_summary(request.operands[0] if request.operands else _text(stdin, "standard input"))
    return b""


def _percent(operands: tuple[str, ...]) -> Json:
    """The number from 0 to 100 that the first word is; None when it is none."""
    number = _number(operands[:1])
    return number if number is not None and 0 <= float(number) <= 100 else None


def _execute_tool_action(request: Request, values: Values, stdin: bytes) -> bytes:
    tool, action, *rest = request.operands
    if not rest:
        params: Json = {}
    elif rest[0] == "-":
        params = _strict(_text(stdin, "standard input"), "standard input")
    else:
        params = _strict(rest[0], "the parameters")
    if not isinstance(params, dict):
        raise HelperError("value.invalid", "the parameters of a tool's action are a JSON object")
    return _printed(values.execute_tool_action(tool, action, params), request.as_json)


def _given(request: Request, argument: str, stdin: bytes, *, lenient: bool) -> Json:
    """An output's VALUE: the argument or, for `-`, standard input."""
    if argument == "-":
        return _from_stdin(request, stdin, lenient=lenient)
    if request.as_json:
        return _strict(argument, "the value")
    return _json_or_string(argument) if lenient else argument


def _from_stdin(request: Request, stdin: bytes, *, lenient: bool) -> Json:
    text = _text(stdin, "standard input")
    if request.as_json:
        return _strict(text, "standard input")
    # One newline goes, so that `cronium.getVariable A | cronium.setVariable B` copies a string exactly.
    text = text.removesuffix("\n")
    return _json_or_string(text) if lenient else text


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise HelperError("value.invalid", f"{what} is not UTF-8 at byte {error.start}") from None


def _strict(text: str, what: str) -> Json:
    try:
        return loads_value(text)
    except (NotJSONError, UnsupportedJSONError) as error:
        raise HelperError("value.invalid", f"{what} cannot be used: {error}") from None


def _json_or_string(text: str) -> Json:
    try:
        return loads_value(text)
    except NotJSONError:
        return text
    except UnsupportedJSONError as error:
        raise HelperError("value.invalid", f"the value cannot be used: {error}") from None


def _find(value: Json, path: str) -> Json:
    """Exact key first, then dotted path. Raises `KeyError`."""
    if isinstance(value, Mapping) and path in value:
        return value[path]
    for step in path.split("."):
        if isinstance(value, Mapping):
            value = value[step]
        elif isinstance(value, list) and _is_index(step) and int(step) < len(value):
            value = value[int(step)]
        else:
            raise KeyError(path)
    return value


def _is_index(step: str) -> bool:
    # 18 digits: more than any list has, fewer than int() minds. `01` and `+1` are names, not indices.
    return step.isascii() and step.isdecimal() and len(step) <= 18 and (step == "0" or step[0] != "0")


def _printed(value: Json, as_json: bool) -> bytes:
    try:
        return (value.encode() if isinstance(value, str) and not as_json else encode(value)) + b"\n"
    except (UnicodeEncodeError, UnsupportedJSONError):
        raise HelperError("value.invalid", "the value holds what neither UTF-8 nor JSON can carry") from None


def shown(text: str) -> str:
    """A text for a message: quoted, and escaped when a terminal would not take it as one line of text."""
    return f"'{text}'" if text.isprintable() else repr(text)


def _line(text: str) -> bytes:
    return text.encode(errors="backslashreplace") + b"\n"


_CONDITIONS: Final = {
    "true": True, "1": True, "yes": True, "on": True,
    "false": False, "0": False, "no": False, "off": False,
}  # fmt: skip

_CHANGING: Final = ("deleteVariable", "incrementVariable", "appendVariable")

_ASKING: Final = ("input", "getVariable", *_CHANGING, "event", "executeToolAction")

_JSON: Final = ("--json",)
_DOTTED: Final[dict[str, _Verb]] = {
    f"cronium.{verb.name}": verb
    for verb in (
        _Verb("input", " [--json] [KEY]", (0, 1), _JSON, lambda _: False, _input),
        _Verb(
            "output",
            " [--json] KEY VALUE, or [VALUE]; VALUE is read from standard input when it is - or not there",
            (0, 2),
            _JSON,
            lambda operands: not operands or operands[-1] == "-",
            _output,
        ),
        _Verb(
            "getVariable",
            " [--json] [--default V] NAME",
            (1, 1),
            ("--json", "--default"),
            lambda _: False,
            _get_variable,
        ),
        _Verb(
            "setVariable",
            " [--json] NAME [VALUE]; VALUE is read from standard input when it is not there",
            (1, 2),
            _JSON,
            lambda operands: len(operands) == 1,
            _set_variable,
        ),
        _Verb("deleteVariable", " [--json] NAME", (1, 1), _JSON, lambda _: False, _delete_variable),
        _Verb(
            "incrementVariable",
            " [--json] NAME [N]; N is a number, 1 when it is not there",
            (1, 2),
            _JSON,
            lambda _: False,
            _increment_variable,
        ),
        _Verb("appendVariable", " [--json] NAME TEXT", (2, 2), _JSON, lambda _: False, _append_variable),
        _Verb("event", " [--json] [FIELD]", (0, 1), _JSON, lambda _: False, _event),
        _Verb("setCondition", " true|false", (1, 1), (), lambda _: False, _set_condition),
        _Verb("getCondition", " [--json]", (0, 0), _JSON, lambda _: False, _get_condition),
        _Verb(
            "progress",
            " PERCENT [TEXT]; PERCENT is a number from 0 to 100",
            (1, 2),
            (),
            lambda _: False,
            _progress,
        ),
        _Verb(
            "summary",
            " [TEXT]; TEXT is Markdown, read from standard input when it is not there",
            (0, 1),
            (),
            lambda operands: not operands,
            _summary,
        ),
        _Verb(
            "executeToolAction",
            " [--json] TOOL ACTION [PARAMS]; PARAMS is a JSON object, read from standard input when it is -",
            (2, 3),
            _JSON,
            lambda operands: operands[2:] == ("-",),
            _execute_tool_action,
        ),
    )
}


def _spellings(verb_name: str) -> tuple[str, ...]:
    """`cronium.getVariable`, and without a dot `cronium_getVariable` and `cronium_get_variable`."""
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in verb_name)
    return tuple(dict.fromkeys((f"cronium.{verb_name}", f"cronium_{verb_name}", f"cronium_{snake}")))


_VERBS: Final[dict[str, _Verb]] = {spelling: verb for verb in _DOTTED.values() for spelling in _spellings(verb.name)}

HELPER_NAMES: Final[tuple[str, ...]] = tuple(_VERBS)
"""Every spelling under which a helper is called: for each of them the helper folder has a link."""
