"""From a submission to a claimed execution: payload checked and unpacked, manifest read, values and environment ready.

Everything happens in a stage beside the final place. What can be refused is refused here, before the id is claimed,
so that a rejection leaves nothing behind and the id free. Nothing of the payload runs here.
"""

import contextlib
import functools
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
    trust,
)
from . import event as events
from .containment import Containment, contain
from .digest import sha256
from .errors import ExecutionError, RunnerError
from .jobdir import AlreadyClaimedError, ExecutionDirectory, Stage, StateDirectory, utc_now
from .manifest import Manifest
from .submission import DEFAULT_TIMEOUT, LEFT_BY_A_RUN, Archive, Folder, Script, Source, Submission
from .values import BundledValues
from .wire import access, masks
from .wire.limits import Limits

REMEMBERED_BYTES: Final = 64 * 1024
"""Payloads up to this size have their manifest parsed ahead: nearly all, and none that keeps an agent busy."""
UNPACKED_REMEMBERED_BYTES: Final = 1024 * 1024

SET_UP_SECONDS: Final = 300.0
"""How long preparing may take. It is the host's work, not the script's: a disk that hangs, say."""


class Prepared(NamedTuple):
    """A claimed execution, ready to start. `timeout` is in seconds and covers the script alone."""

    execution: ExecutionDirectory
    argv: list[str]
    environment: dict[str, str]
    timeout: float
    values: BundledValues
    job_id: str | None
    helper_socket: socket.socket
    containment: Containment


def prepare(state: StateDirectory, submission: Submission) -> Prepared:
    """Prepares and claims. Raises RunnerError for a rejection, AlreadyClaimedError when the id is taken."""
    if state.has(submission.execution_id):  # the claim looks for a removed one as well
        raise AlreadyClaimedError(submission.execution_id)
    stage = state.stage()
    listening = containment = None
    try:
        with _set_up_time():
            parsed, digest, signer = _fill(stage, submission.source)
        event = _event(submission, parsed.metadata)
        own = {
            "CRONIUM_HELPER_MODE": submission.mode,
            "CRONIUM_EXECUTION_ID": submission.execution_id,
            "CRONIUM_JOB_ID": str(event["jobId"] or ""),
            "CRONIUM_EVENT_ID": str(event["id"] or ""),
            "CRONIUM_WORK_DIR": os.path.join(state.executions, submission.execution_id, "work"),
            "CRONIUM_SOCKET": state.socket_path(),
            **_exposed(submission, parsed),
        }
        helpers = install.helper_folder()
        command, script_environment = _command(stage, parsed, own, submission.secrets, helpers)
        install.link_for_modules(state.path, helpers)
        masked_names = submission.masked_names
        values = _values(submission)(
            os.path.join(stage.work, ".cronium"),
            input=submission.input if submission.has_input else parsed.metadata.get("inputData"),
            variables={**parsed.variables, **submission.variables},
            secrets=submission.secrets,
            event=event,
            environment=parsed.environment,
            is_masked=functools.partial(masks.is_masked_name, globs=masked_names),
            also_masked=map(script_environment.__getitem__, masks.masked_names(script_environment, masked_names)),
        )
        values.create_files()
        containment = contain(submission.limits.or_else(parsed.limits))
        listening = helper_socket.listen(own["CRONIUM_SOCKET"])
        timeout = submission.timeout or parsed.timeout or DEFAULT_TIMEOUT
        execution = stage.claim(
            submission.execution_id,
            {
                "fingerprint": submission.fingerprint(digest),
                "jobId": event["jobId"],
                "payload": digest,
                "socket": own["CRONIUM_SOCKET"],
                "supervisor": process.identity(os.getpid()),
                **({} if containment.group is None else {"group": containment.group.path}),
                "runnerVersion": __version__,
                "until": int(time.time() + timeout),
                **({} if submission.api is None else {"mode": submission.mode}),
                **({} if signer is None else {"signer": signer}),
            },
        )
        values.move_to(os.path.join(execution.work, ".cronium"))
    except BaseException:
        if listening is not None:
            with contextlib.suppress(OSError):
                os.unlink(listening.getsockname())
            listening.close()
        if containment is not None:
            containment.close()
        stage.discard()
        raise
    args = parsed.args if submission.args is None else submission.args
    return Prepared(
        execution=execution,
        argv=[_moved(word, stage.work, execution.work) for word in _with_helpers(command.argv)] + list(args),
        environment=script_environment,
        timeout=timeout,
        values=values,
        job_id=event["jobId"],
        helper_socket=listening,
        containment=containment,
    )


@contextlib.contextmanager
def _set_up_time() -> Iterator[None]:
    """Ends what is inside, with an ExecutionError, when it takes longer than SET_UP_SECONDS."""

    def give_up(*_: object) -> None:
        raise ExecutionError(
            "execution.set_up_timeout",
            f"the payload was not unpacked within {SET_UP_SECONDS:g} s; nothing was started; look at the host's disk",
        )

    process.on_signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, SET_UP_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def inspect(state: StateDirectory, source: Source, *, is_signed: bool = True) -> tuple[Manifest, list[str]]:
    """Checks a payload as `prepare` would, and leaves nothing: its manifest and the command that would run it.

    Without `is_signed` no signature is asked for.
    """
    stage = state.stage()
    try:
        parsed, _, _ = _fill(stage, source, is_signed=is_signed)
        command, _ = _command(stage, parsed, {}, (), install.helper_folder())
        contain(parsed.limits or Limits()).close()  # refuses limits that can't be enforced here
        return parsed, [_moved(word, stage.work, ".") for word in command.argv] + list(parsed.args)
    finally:
        stage.discard()


def remember_manifest(path: str) -> None:
    """Parses the manifest of a small payload file, named by its SHA-256, now: for supervisors that are forked later.

    A forked process pays for every page it touches; parsing YAML touches many. A payload that cannot be read is left
    for its supervisor to refuse. Where signatures are required, nothing is parsed before one was checked.
    """
    with contextlib.suppress(RunnerError, OSError):
        if trust.is_required():
            trust.load()
            return
        if os.stat(path).st_size > REMEMBERED_BYTES:
            strict_yaml.load_parser()
            return
        found: dict[str, bytes] = {}
        with payload.open_payload(path, os.path.basename(path).removesuffix(".tar.gz")) as file:
            for name, content in payload.contents(file, manifest.FILE_NAMES, limit=UNPACKED_REMEMBERED_BYTES):
                found[name] = content
        name = manifest.find_manifest(found)
        _parsed(found[name], name, frozenset(found))


_inherited: dict[str, str] | None = None


def remember_environment() -> None:
    """Copies this process's environment once: for supervisors that are forked later, and would each decode it again."""
    global _inherited
    if _inherited is None:
        _inherited = environment.for_scripts(os.environ)


@functools.lru_cache(maxsize=256)
def _parsed(text: bytes, name: str, members: frozenset[str]) -> Manifest:
    return manifest.parse_manifest(text, name=name, members=members)


def source_digest(state: StateDirectory, source: Source) -> str:
    """What identifies the content of a source: a payload's SHA-256, or one over a folder's or script's files.

    Nothing of it is run, so it needs no signature.
    """
    if isinstance(source, Archive):
        with payload.open_payload(source.path, source.sha256) as file:
            return payload.digest_of(file)
    stage = state.stage()
    try:
        return _unpack(stage, source, is_signed=False)[1]
    finally:
        stage.discard()


def _digest_of_files(directory: str, members: Iterable[str]) -> str:
    digest = sha256()
    for name in sorted(set(members) - set(LEFT_BY_A_RUN)):
        with open(os.path.join(directory, name), "rb") as file:
            digest.update(os.fsencode(name) + b"\0" + bytes.fromhex(payload.digest_of(file)))
    for name in payload.empty_folders(directory):
        digest.update(os.fsencode(name) + b"/\0")
    return digest.hexdigest()


def _unpack(stage: Stage, source: Source, *, is_signed: bool = True) -> tuple[list[str], str, str | None]:
    """Puts the source's files into the stage's work directory; their names, what identifies their content, the signer.

    Every payload that is run comes through here, and so through the gate of `trust`, before anything of it is unpacked.
    The signer is None where this host asks for none, or without `is_signed`.
    """
    if is_signed and not isinstance(source, Archive):
        trust.refuse_unsignable(source.path)
    os.mkdir(stage.work, 0o700)
    if isinstance(source, Archive):
        with payload.open_payload(source.path, source.sha256) as file:
            if is_signed and trust.is_required():
                digest, signer = trust.check(file, source.path, source.signature)
                same = trust.Unchanged(file, (source.sha256 or digest).lower())
                members = payload.unpack(same, stage.work)
                same.check()
                return members, digest, signer
            digest = payload.digest_of(file) if source.sha256 is None else source.sha256.lower()
            return payload.unpack(file, stage.work), digest, None
    if isinstance(source, Folder):
        members = payload.copy_directory(source.path, stage.work)
        return members, _digest_of_files(stage.work, members), None
    members = [payload.copy_script(source.path, stage.work)]
    digest = _digest_of_files(stage.work, members)
    if source.interpreter is not None:  # it says what the script does, as a manifest would
        digest = sha256(f"{digest} {source.interpreter!r}".encode()).hexdigest()
    return members, digest, None


def _fill(stage: Stage, source: Source, *, is_signed: bool = True) -> tuple[Manifest, str, str | None]:
    """Puts the payload into the stage's work directory; its manifest, what identifies its content, who signed it."""
    members, digest, signer = _unpack(stage, source, is_signed=is_signed)
    if isinstance(source, Script):
        parsed = Manifest("v1", source.interpreter, members[0])
    else:
        name = manifest.find_manifest(members)
        with open(f"{stage.work}/{name}", "rb", buffering=0) as file:
            size = min(os.fstat(file.fileno()).st_size, strict_yaml.MAX_BYTES + 1)
            parsed = _parsed(file.read(size) or b"", name, frozenset(members))
    payload.remove_byte_order_mark(os.path.join(stage.work, parsed.entrypoint))
    return parsed, digest, signer


def _command(
    stage: Stage, parsed: Manifest, own: Mapping[str, str], hidden: Collection[str], helpers: install.HelperFolder
) -> tuple[interpreter.ResolvedCommand, dict[str, str]]:
    """The command that runs the entrypoint, and the environment that it gets: ours without the names that are `hidden`.

    A secret may have come by our environment; to the script it is a variable, not something that all its children see.
    """
    inherited = environment.for_scripts(os.environ) if _inherited is None else _inherited
    if hidden:
        inherited = {name: value for name, value in inherited.items() if name not in hidden}
    plain = environment.script_environment(inherited, manifest=parsed.environment, own=own, helpers=helpers)
    command = interpreter.resolve(parsed.interpreter, parsed.entrypoint, stage.work, plain["PATH"])
    return command, environment.for_interpreter(plain, command.kind, helpers)


def _with_helpers(command: list[str]) -> list[str]:
    """The command with what a login shell needs for its script to find the helpers."""
    if len(command) < 3:  # no options: no login shell
        return command
    from . import login_shell

    return login_shell.with_helpers(command, environment.login_shell_paths(install.helper_folder()))


def _values(submission: Submission) -> Callable[..., BundledValues]:
    """What makes the values of the submission's mode."""
    if submission.api is None:
        return BundledValues
    from .api_values import ApiValues
    from .platform_client import patience

    waits = patience(os.environ)
    return functools.partial(ApiValues, execution_id=submission.execution_id, access=submission.api, patience=waits)


def _exposed(submission: Submission, parsed: Manifest) -> dict[str, str]:
    """Endpoint and token, for a script that asks for them."""
    if submission.api is None or not parsed.expose_api:
        return {}
    endpoint = submission.script_endpoint or submission.api.endpoint
    return {access.ENDPOINT_NAME: endpoint, access.TOKEN_NAME: submission.api.token}


def _event(submission: Submission, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The one event object: what was submitted beats what the manifest says."""
    event = events.merged(events.from_metadata(metadata), submission.event)
    event["jobId"] = submission.job_id or event["jobId"]
    event["executionId"] = submission.execution_id
    event["startTime"] = utc_now()
    return event


def _moved(word: str, stage_work: str, final_work: str) -> str:
    """A path in the stage as it will be called after the claim."""
    return final_work + word[len(stage_work) :] if word.startswith(stage_work + "/") else word
