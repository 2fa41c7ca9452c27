"""What is to be executed: one object, whether it came as a SUBMIT frame or from the command line.

Only its shape and its checks belong here; preparing it is `prepare`'s.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from .archive import shown
from .digest import sha256
from .errors import ExecutionError, InputError
from .wire import exactjson, fields, masks
from .wire.access import API, BUNDLED, Access, AccessError, checked_endpoint
from .wire.limits import LimitError, Limits, from_mapping
from .wire.names import SCRIPT_ENDPOINT, SIGNATURE, execution_id_from, invalid_id_sentence, is_execution_id, is_sha256

DEFAULT_TIMEOUT: Final = 3600.0
MAX_TIMEOUT: Final = 24 * 3600.0
"""Seconds."""

LEFT_BY_A_RUN: Final = ("output.json", "variables.json")
"""What a local run of a folder leaves in it: results, so no part of what identifies the folder."""

MAX_SECRET_NAMES: Final = 1 << 20
"""Bytes of all their names. A secret that the script sets anew is named in the result, which is one frame."""

OnDisconnect = Literal["continue", "cancel"]


class Archive(NamedTuple):
    """A payload file (tar.gz). `sha256` is what it must hash to, or None when nobody said.

    `signature` is the text that came with it, empty when none did; None: it is in the file beside it, if anywhere.
    """

    path: str
    sha256: str | None = None
    signature: str | None = None


class Folder(NamedTuple):
    """A directory with a manifest, copied into the work directory."""

    path: str


class Script(NamedTuple):
    """A single script without a manifest. `interpreter` is as in a `Manifest`; None: what the script says decides."""

    path: str
    interpreter: str | tuple[str, ...] | None = None


Source = Archive | Folder | Script


class Submission(NamedTuple):
    """One execution as it was asked for. `checked` says whether it can be one."""

    execution_id: str
    source: Source
    has_input: bool = False
    input: Any = None
    variables: Mapping[str, Any] = MappingProxyType({})
    secrets: Mapping[str, Any] = MappingProxyType({})
    event: Mapping[str, Any] = MappingProxyType({})
    args: tuple[str, ...] | None = None
    """None leaves the manifest's own arguments in force."""
    timeout: float | None = None
    """Seconds for the script alone; None leaves the manifest's, else one hour."""
    job_id: str | None = None
    on_disconnect: OnDisconnect = "continue"
    keep_work: bool = False
    masked_names: tuple[str, ...] = masks.DEFAULT_NAMES
    """Globs for names of variables and environment variables: their values are masked in the output."""
    limits: Limits = Limits()
    """They beat the manifest's, key by key."""
    api: Access | None = None
    """With it the execution is in API mode. It is no part of what tells two submissions apart, and is kept nowhere."""
    script_endpoint: str | None = None
    """The endpoint that a script with `expose_api` sees; None: the same as its runner."""

    def __repr__(self) -> str:
        return f"<Submission {self.execution_id} {self.source!r}>"  # never the secrets

    @property
    def mode(self) -> str:
        """`bundled` or `api`."""
        return BUNDLED if self.api is None else API

    def checked(self) -> "Submission":
        """The same submission, its ids and names as text.

        Raises ExecutionError or InputError for what is not possible: an id, a timeout, no text where text must be.
        """
        if not is_execution_id(self.execution_id):
            raise ExecutionError("execution.id_invalid", invalid_id_sentence(self.execution_id))
        if self.timeout is not None and not 0 < self.timeout <= MAX_TIMEOUT:
            raise InputError(
                f"a timeout of {self.timeout:g} s is not possible: it is above 0 and at most {MAX_TIMEOUT:g} s (24 h)",
                "usage.invalid",
            )
        if sum(map(len, self.secrets)) > MAX_SECRET_NAMES:
            raise InputError(f"the names of all secrets have more than {MAX_SECRET_NAMES} characters", "usage.invalid")
        try:
            job_id = fields.as_text("jobId", self.job_id)
        except fields.TextError as error:
            raise InputError(f"the submission's {error}", "usage.invalid") from None
        try:
            event = fields.event_with_texts(self.event)
        except fields.TextError as error:
            raise InputError(f"the event's {error}", "input.invalid") from None
        return self._replace(job_id=job_id, event=event)

    def fingerprint(self, payload_sha256: str) -> str:
        """What makes two submissions of one id the same: the payload and the input."""
        told = {"payload": payload_sha256, "hasInput": self.has_input, "input": self.input}
        return sha256(exactjson.encode(told)).hexdigest()


def new_execution_id() -> str:
    """A fresh id."""
    return execution_id_from(time.gmtime(), os.urandom(6))


_FRAME_KEYS: Final = {
    "executionId": str,
    "sha256": str,
    "input": object,
    "variables": dict,
    "secrets": dict,
    "event": dict,
    "args": list,
    "timeout": (int, float, exactjson.NumberLiteral, type(None)),
    "jobId": (str, int, float, exactjson.NumberLiteral, type(None)),
    "onDisconnect": str,
    "maskedNames": list,
    "limits": dict,
    "keepWork": bool,
    "offsets": list,
    "follow": bool,
    "api": dict,
    SCRIPT_ENDPOINT: str,
    SIGNATURE: str,
}


def from_frame(body: dict[str, Any], payload_path: Callable[[str], str]) -> Submission:
    """A submission from a SUBMIT frame. `payload_path` says where the payload of a digest is, or will be.

    Raises InputError naming the key that is unknown or of the wrong type.
    """
    for key, value in body.items():
        expected: Any = _FRAME_KEYS.get(key)
        if expected is None:
            raise InputError(
                f"this agent does not know the submission's key {shown(key)}; update the runner", "usage.invalid"
            )
        if not isinstance(value, expected) or (key == "timeout" and isinstance(value, bool)):
            raise InputError(f"the submission's '{key}' cannot be {type(value).__name__}", "usage.invalid")
    sha256 = body.get("sha256", "")
    if not is_sha256(sha256):
        raise InputError(
            f"the submission's sha256 {shown(sha256)} is not 64 hexadecimal digits", "payload.digest_malformed"
        )
    args = body.get("args")
    if args is not None and not all(isinstance(word, str) and "\0" not in word for word in args):
        raise InputError("the submission's args are texts without NUL", "usage.invalid")
    on_disconnect = body.get("onDisconnect", "continue")
    if on_disconnect not in ("continue", "cancel"):
        raise InputError(f"onDisconnect is 'continue' or 'cancel', not {shown(on_disconnect)}", "usage.invalid")
    globs = body.get("maskedNames", masks.DEFAULT_NAMES)
    if not set(map(type, globs)) <= {str}:
        raise InputError("the submission's maskedNames are texts", "usage.invalid")
    try:
        limits = from_mapping(body.get("limits", {}))
    except LimitError as error:
        raise InputError(f"the submission's {error}", "usage.invalid") from None
    timeout = body.get("timeout")
    return Submission(
        execution_id=body.get("executionId", ""),
        source=Archive(payload_path(sha256), sha256, body.get(SIGNATURE, "")),
        has_input="input" in body,
        input=body.get("input"),
        variables=body.get("variables", {}),
        secrets=body.get("secrets", {}),
        event=body.get("event", {}),
        args=None if args is None else tuple(args),
        timeout=None if timeout is None else _seconds(timeout),
        job_id=body.get("jobId"),
        on_disconnect=on_disconnect,
        masked_names=tuple(globs),
        limits=limits,
        keep_work=body.get("keepWork", False),
        api=access_in(body),
        script_endpoint=_script_endpoint(body),
    ).checked()


def access_in(body: dict[str, Any]) -> Access | None:
    """What a SUBMIT or ATTACH frame says about the runtime API. Raises InputError, which never holds the token."""
    try:
        return Access.from_json(body["api"]) if "api" in body else None
    except AccessError as error:
        raise InputError(str(error), "api.config") from None


def _script_endpoint(body: dict[str, Any]) -> str | None:
    try:
        return checked_endpoint(body[SCRIPT_ENDPOINT]) if SCRIPT_ENDPOINT in body else None
    except AccessError as error:
        raise InputError(str(error), "api.config") from None


def to_frame(submission: Submission, sha256: str, signature: str | None = None) -> dict[str, Any]:
    """The body of a SUBMIT frame for an agent of our own version; `sha256` and `signature` are the payload's."""
    body: dict[str, Any] = {
        "executionId": submission.execution_id,
        "sha256": sha256,
        "variables": dict(submission.variables),
        "secrets": dict(submission.secrets),
        "event": dict(submission.event),
        "timeout": submission.timeout,
        "jobId": submission.job_id,
        "onDisconnect": submission.on_disconnect,
        "maskedNames": list(submission.masked_names),
        "limits": submission.limits.to_json(),
        "keepWork": submission.keep_work,
    }
    if submission.has_input:
        body["input"] = submission.input
    if submission.api is not None:
        body["api"] = submission.api.to_json()
    if submission.script_endpoint is not None:
        body[SCRIPT_ENDPOINT] = submission.script_endpoint
    if signature is not None:
        body[SIGNATURE] = signature
    if submission.args is not None:
        body["args"] = list(submission.args)
    return body


def _seconds(value: "int | float | exactjson.NumberLiteral") -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
