"""Whose runner binaries may be deployed: those with an OpenSSH signature by an allowed signer, where signers are named.

The signature is a file beside the binary, as `ssh-keygen -Y sign -n binary@cronium-runner` writes it. Allowed signers
and revoked keys are read as a host reads its own (docs/signatures.md).
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Final

from cronium_runner.wire import sshsig
from cronium_runner.wire.allowed_signers import (
    MAX_BYTES,
    Policy,
    SignersError,
    UntrustedError,
    revoked,
    signers,
)

from .errors import DeployError
from .own_files import stranger
from .signing import signature_path
from .ssh_library import asyncssh

NAMESPACE: Final = "binary@cronium-runner"
REVOKED_NAME: Final = "revoked_keys"
"""The list of revoked keys, in the folder of the allowed signers; there need not be one."""


def check(path: Path, digests: dict[str, bytes], allowed: str) -> None:
    """Raises DeployError unless a signer in the file `allowed` has signed the binary.

    `digests` are the binary's, by the names `sha256` and `sha512`.
    """
    policy = _policy(Path(allowed))
    signature = _signature(path)
    shown = sshsig.fingerprint(hashlib.sha256(signature.key.blob).digest())
    try:
        policy.signer_of(signature, shown, time.time())
    except UntrustedError as error:
        raise DeployError(
            "binary.signer_untrusted", f"{path} is signed, but by {allowed}, {error}; nothing was sent"
        ) from None
    if not _is_by_its_key(signature, signature.signed(digests[signature.hash_name])):
        raise _invalid(path, "is not the signature of this file: one of the two was changed")


def _is_by_its_key(signature: sshsig.Signature, signed: bytes) -> bool:
    try:
        return asyncssh.public_key.decode_ssh_public_key(signature.key.blob).verify(signed, signature.blob)
    except (asyncssh.KeyImportError, ValueError):
        return False


def _signature(path: Path) -> sshsig.Signature:
    beside = signature_path(path)
    try:
        with beside.open("rb") as file:
            text = file.read(sshsig.MAX_BYTES + 1).decode("ascii", "replace")
    except FileNotFoundError:
        raise DeployError(
            "binary.unsigned",
            f"the runner binary {path} has no signature {beside.name} beside it, and signers are named; nothing was "
            "sent; get both files from one release, or sign it: "
            f"ssh-keygen -Y sign -n {NAMESPACE} -f KEY {path.name}",
        ) from None
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror}") from None
    try:
        signature = sshsig.read(text)
    except sshsig.SignatureError as error:
        raise _invalid(path, f"cannot be used: {error}") from None
    if signature.namespace != NAMESPACE:
        raise _invalid(path, f"was made for {signature.namespace[:60]!r} and not for {NAMESPACE!r}")
    return signature


def _invalid(path: Path, why: str) -> DeployError:
    return DeployError(
        "binary.signature_invalid",
        f"the signature {signature_path(path)} {why}; nothing was sent; get both files again",
    )


def _policy(allowed: Path) -> Policy:
    path = allowed
    try:
        found = signers(_content(path), _local_time)
        path = allowed.with_name(REVOKED_NAME)
        return Policy(found, revoked(_content(path) if os.path.lexists(path) else b""))
    except SignersError as error:
        raise _unreadable(path, f"cannot be used: {error}") from None
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from None


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        if (why := stranger(os.fstat(file.fileno()))) is not None:
            raise _unreadable(path, why)
        return file.read(MAX_BYTES + 1)


def _unreadable(path: Path, why: str) -> DeployError:
    return DeployError(
        "binary.signers_unreadable", f"{path}, which says who signs runner binaries, {why}; nothing was sent"
    )


def _local_time(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float:
    return time.mktime((year, month, day, hour, minute, second, 0, 0, -1))
