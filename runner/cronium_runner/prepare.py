"""From a submission to a claimed execution: payload checked and unpacked, manifest read, values and environment ready.

Everything happens in a stage beside the final place. What can be refused is refused here, before the id is claimed,
so that a rejection leaves nothing behind and the id free. Nothing of the payload runs here.
"""

import contextlib
import functools
import hashlib
import os
import socket
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from . import (
    __version__,
    environment,
    helper_socket,
    install,
    interpreter,
    manifest,
    payload,
    process,
    strict_yaml,
)
from .errors import ManifestError, RunnerError
from .jobdir import AlreadyClaimedError, ExecutionDirectory, Stage, StateDirectory, utc_now
from .manifest import Manifest
from .submission import DEFAULT_TIMEOUT, LEFT_BY_A_RUN, Archive, Folder, Source, Submission
from .values import BundledValues

REMEMBERED_BYTES: Final = 64 * 1024
"""Payloads up to this size have their manifest parsed ahead: nearly all, and none that keeps an agent busy."""

_EVENT_KEYS: Final = {
    # The event object's field: what the manifest's metadata, or an event that was handed over, may call it.
    "id": "eventId",
    "name": "eventName",
    "type": "eventType",
    "trigger": "trigger",
    "version": "eventVersion",
    "jobId": "jobId",
    "server": "server",
    "user": "user",
    "metadata": "extra",
}


class Prepared(NamedTuple):
    """A claimed execution, ready to start. `timeout` is in seconds and covers the script alone."""

    execution: ExecutionDirectory
    argv: list[str]
    environment: dict[str, str]
    timeout: float
    values: BundledValues
    job_id: str | None
    helper_socket: socket.socket


def prepare(state: StateDirectory, submission: Submission) -> Prepared:
    """Prepares and claims. Raises RunnerError for a rejection, AlreadyClaimedError when the id is taken."""
    if state.is_claimed(submission.execution_id):
        raise AlreadyClaimedError(submission.execution_id)
    stage = state.stage()
    listening = None
    try:
        parsed, digest = _fill(stage, submission.source)
        event = _event(submission, parsed.metadata)
        own = {
            "CRONIUM_HELPER_MODE": "bundled",
            "CRONIUM_EXECUTION_ID": submission.execution_id,
            "CRONIUM_JOB_ID": str(event["jobId"] or ""),
            "CRONIUM_EVENT_ID": str(event["id"] or ""),
            "CRONIUM_WORK_DIR": os.path.join(state.executions, submission.execution_id, "work"),
            "CRONIUM_SOCKET": state.socket_path(),
        }
        command, script_environment = _command(stage, parsed, own)
        values = BundledValues(
            os.path.join(stage.work, ".cronium"),
            input=submission.input if submission.has_input else parsed.metadata.get("inputData"),
            variables={**parsed.variables, **submission.variables},
            secrets=submission.secrets,
            event=event,
            environment=parsed.environment,
        )
        values.create_files()
        listening = helper_socket.listen(own["CRONIUM_SOCKET"])
        execution = stage.claim(
            submission.execution_id,
            {
                "fingerprint": submission.fingerprint(digest),
                "jobId": event["jobId"],
                "payload": digest,
                "socket": own["CRONIUM_SOCKET"],
                "supervisor": process.identity(os.getpid()),
                "runnerVersion": __version__,
            },
        )
        values.move_to(os.path.join(execution.work, ".cronium"))
    except BaseException:
        if listening is not None:
            os.unlink(listening.getsockname())
            listening.close()
        stage.discard()
        raise
    args = parsed.args if submission.args is None else submission.args
    return Prepared(
        execution=execution,
        argv=[_moved(word, stage.work, execution.work) for word in command.argv] + list(args),
        environment=script_environment,
        timeout=submission.timeout or parsed.timeout or DEFAULT_TIMEOUT,
        values=values,
        job_id=event["jobId"],
        helper_socket=listening,
    )


def inspect(state: StateDirectory, source: Source) -> tuple[Manifest, list[str]]:
    """Checks a payload as `prepare` would, and leaves nothing: its manifest and the command that would run it."""
    stage = state.stage()
    try:
        parsed, _ = _fill(stage, source)
        command, _ = _command(stage, parsed, {})
        return parsed, [_moved(word, stage.work, ".") for word in command.argv] + list(parsed.args)
    finally:
        stage.discard()


def remember_manifest(path: str) -> None:
    """Parses the manifest of a small payload file now, for supervisors that are forked later.

    A forked process pays for every page it touches; parsing YAML touches many. A payload that cannot be read is left
    for its supervisor to refuse.
    """
    with contextlib.suppress(RunnerError, OSError):
        if os.stat(path).st_size > REMEMBERED_BYTES:
            return
        found: dict[str, bytes] = {}
        with payload.open_payload(path) as file:
            for name, content in payload.contents(file, manifest.FILE_NAMES):
                found[name] = content
        name = manifest.find_manifest(found)
        _parsed(found[name], name, frozenset(found))


@functools.lru_cache(maxsize=256)
def _parsed(text: bytes, name: str, members: frozenset[str]) -> Manifest:
    return manifest.parse_manifest(text, name=name, members=members)


def source_digest(source: Source) -> str:
    """What identifies the content of a source: a payload's SHA-256, or one over a folder's or script's content."""
    if isinstance(source, Archive):
        if source.sha256 is not None:
            return source.sha256.lower()
        with payload.open_payload(source.path) as file:
            return payload.digest_of(file)
    digest = hashlib.sha256()
    if isinstance(source, Folder):
        for folder, folders, files in os.walk(source.path):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                if os.path.relpath(path, source.path) in LEFT_BY_A_RUN:
                    continue
                with open(path, "rb") as file:
                    digest.update(os.fsencode(os.path.relpath(path, source.path)) + b"\0")
                    digest.update(bytes.fromhex(payload.digest_of(file)))
    else:
        with open(source.path, "rb") as file:
            digest.update(os.fsencode(os.path.basename(source.path)) + b"\0")
            digest.update(bytes.fromhex(payload.digest_of(file)))
    return digest.hexdigest()


def _fill(stage: Stage, source: Source) -> tuple[Manifest, str]:
    """Puts the payload into the stage's work directory; returns its manifest and what identifies its content."""
    os.mkdir(stage.work, 0o700)
    if isinstance(source, Archive):
        with payload.open_payload(source.path, source.sha256) as file:
            digest = payload.digest_of(file) if source.sha256 is None else source.sha256.lower()
            members = payload.unpack(file, stage.work)
    else:
        digest = source_digest(source)
        if isinstance(source, Folder):
            members = payload.copy_directory(source.path, stage.work)
        else:
            return Manifest("v1", None, payload.copy_script(source.path, stage.work)), digest
    name = manifest.find_manifest(members)
    with open(os.path.join(stage.work, name), "rb") as file:
        parsed = _parsed(file.read(strict_yaml.MAX_BYTES + 1), name, frozenset(members))
    if parsed.limits is not None:
        raise ManifestError(
            "limits.unsupported",
            f"{name}: this version does not enforce 'limits', so the job is not started; remove them",
        )
    return parsed, digest


def _command(
    stage: Stage, parsed: Manifest, own: Mapping[str, str]
) -> tuple[interpreter.ResolvedCommand, dict[str, str]]:
    """The command that runs the entrypoint, and the environment that it gets."""
    helpers = install.helper_folder()
    plain = environment.script_environment(os.environ, manifest=parsed.environment, own=own, helper_bin=helpers.bin)
    command = interpreter.resolve(parsed.interpreter, parsed.entrypoint, stage.work, plain["PATH"])
    return command, environment.for_interpreter(plain, command.kind, helpers)


def _event(submission: Submission, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The one event object (contracts §3): what was submitted beats what the manifest says."""
    told = submission.event
    event = {field: told.get(field, told.get(key, metadata.get(key))) for field, key in _EVENT_KEYS.items()}
    event["jobId"] = submission.job_id or event["jobId"]
    event["server"] = event["server"] or os.uname().nodename
    event["executionId"] = submission.execution_id
    event["startTime"] = utc_now()
    return event


def _moved(word: str, stage_work: str, final_work: str) -> str:
    """A path in the stage as it will be called after the claim."""
    return final_work + word[len(stage_work) :] if word.startswith(stage_work + "/") else word
