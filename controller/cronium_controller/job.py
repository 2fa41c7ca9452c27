"""What is to be executed: a job, as it is handed in, and the submission that a host gets of it."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cronium_runner.wire import exactjson, fields, masks
from cronium_runner.wire.access import API, BUNDLED, Access
from cronium_runner.wire.limits import Limits
from cronium_runner.wire.names import SCRIPT_ENDPOINT, SIGNATURE, execution_id_from

from .errors import ControllerError
from .payloads import Payload

PREFER_API: Final = "prefer-api"
MODES: Final = (BUNDLED, API, PREFER_API)

_ABSENT: Any = object()
_UNLIMITED: Final = Limits()


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be executed. `timeout` is in seconds; secrets are variables that are never stored or shown.

    Raises ControllerError for what no host could be given: a value that JSON has no form for, or one that is nested too
    deeply; a list or an object as `job_id`, or as an id or a name of the event. Numbers there become text.
    """

    payload: Payload
    input: Any = _ABSENT
    variables: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, Any] = field(default_factory=dict, repr=False)
    event: dict[str, Any] = field(default_factory=dict)
    args: tuple[str, ...] | None = None
    timeout: float | None = None
    execution_id: str | None = None
    job_id: str | None = None
    on_disconnect: str = "continue"
    masked_names: tuple[str, ...] = masks.DEFAULT_NAMES
    """Globs for names of variables and of the script's environment: their values are masked in its output."""
    limits: Limits = field(default_factory=Limits)
    """They beat the manifest's, key by key."""
    run_as: str | None = None
    """The account of the host to run as, by root or where `sudo -n` allows it; None: the one that logs in."""
    mode: str = BUNDLED
    """`bundled`: the script works with what it is handed. `api`: it reads and writes the platform's data while it runs,
    or isn't started. `prefer-api`: where there is no way to the platform it is bundled, which the result says."""

    def __post_init__(self) -> None:
        given = {"variables": self.variables, "secrets": self.secrets, "input": self.input_or_none, "event": self.event}
        for name, value in given.items():
            if value is None or (type(value) is dict and not value):
                continue
            try:
                exactjson.check_value(value)
            except exactjson.UnsupportedJSONError as error:
                raise ControllerError("input.invalid", f"the job's {name} cannot be sent: {error}") from None
        try:
            job_id = fields.as_text("jobId", self.job_id)
        except fields.TextError as error:
            raise ControllerError("usage.invalid", f"the job's {error}") from None
        try:
            event = fields.event_with_texts(self.event) if self.event else {}
        except fields.TextError as error:
            raise ControllerError("input.invalid", f"the event's {error}") from None
        object.__setattr__(self, "job_id", job_id)
        object.__setattr__(self, "event", event)

    def with_id(self, execution_id: str) -> "Job":
        """The same job under another id. Its values are not checked again: that takes long where the input is large."""
        job: Job = object.__new__(Job)
        for name in Job.__slots__:
            object.__setattr__(job, name, getattr(self, name))
        object.__setattr__(job, "execution_id", execution_id)
        return job

    @property
    def input_or_none(self) -> Any:
        """The input; None also when there is none."""
        return None if self.input is _ABSENT else self.input

    def submission(
        self,
        execution_id: str,
        *,
        follow: bool,
        access: Access | None = None,
        script_endpoint: str | None = None,
        server: Mapping[str, Any] | None = None,
        is_signed: bool = True,
    ) -> dict[str, Any]:
        """The body of a SUBMIT frame; `access` is what makes it one in API mode.

        `script_endpoint` is what a script that may see the runtime API finds it at, where that is another place.
        `server` is what `event.server` is where the job itself says nothing about it. Without `is_signed` the payload's
        signature is left out: an older agent refuses a key that it does not know, and asks for no signature.
        """
        body: dict[str, Any] = {"executionId": execution_id, "sha256": self.payload.sha256, "follow": follow}
        if self.input is not _ABSENT:
            body["input"] = self.input
        event = self.event if server is None or self.event.get("server") else {**self.event, "server": server}
        for key, value in (("variables", self.variables), ("secrets", self.secrets), ("event", event)):
            if value:
                body[key] = value
        if self.args is not None:
            body["args"] = list(self.args)
        if self.timeout is not None:
            body["timeout"] = self.timeout
        if self.job_id is not None:
            body["jobId"] = self.job_id
        if self.on_disconnect != "continue":
            body["onDisconnect"] = self.on_disconnect
        if self.masked_names != masks.DEFAULT_NAMES:
            body["maskedNames"] = list(self.masked_names)
        if self.limits != _UNLIMITED:
            body["limits"] = self.limits.to_json()
        if access is not None:
            body["api"] = access.to_json()
        if script_endpoint is not None:
            body[SCRIPT_ENDPOINT] = script_endpoint
        if is_signed and self.payload.signature is not None:
            body[SIGNATURE] = self.payload.signature
        return body


def asked_mode(mode: str) -> str:
    """What a result says of the mode when nothing was started: the one that was asked for, or preferred."""
    return BUNDLED if mode == BUNDLED else API


def new_execution_id() -> str:
    """A fresh id: readable in a listing, and never the same twice."""
    return execution_id_from(time.gmtime(), os.urandom(6))
