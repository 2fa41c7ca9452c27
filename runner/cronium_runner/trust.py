"""The one gate that a payload passes before anything of it is unpacked: is it signed by a key that this host trusts?

A host demands signatures when it has the file ALLOWED_SIGNERS, which root has made. Without that file the gate costs
one lstat(2). With it everything that cannot be read or checked is refused: docs/signatures.md has the rules.
"""

import os
import stat
import time
from typing import TYPE_CHECKING, BinaryIO, Final

from .digest import sha256, sha512
from .errors import PayloadError

if TYPE_CHECKING:
    from .wire.allowed_signers import Policy
    from .wire.sshsig import Signature

FOLDER: Final = "/etc/cronium-runner"
ALLOWED_SIGNERS: Final = "/etc/cronium-runner/allowed_signers"
REVOKED_KEYS: Final = "/etc/cronium-runner/revoked_keys"
OWNER: Final = 0
"""Whose these files are, and every folder above them."""
NOTHING: Final = "nothing was unpacked or started"
_CHUNK: Final = 256 * 1024


class Unchanged:
    """A payload file that is read a second time, and must be what it was. Only `read` is needed of it."""

    def __init__(self, file: BinaryIO, digest: str) -> None:
        self._file = file
        self._expected = digest
        self._digest = sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes. Raises OSError."""
        piece = self._file.read(size)
        self._digest.update(piece)
        return piece

    def check(self) -> None:
        """Raises PayloadError when what was read is not what was signed."""
        if self._digest.hexdigest() != self._expected:
            raise PayloadError(
                "payload.digest_mismatch", "the payload was changed while it was unpacked; nothing was started"
            )


def is_required() -> bool:
    """Whether this host runs signed payloads only. A file that cannot be looked at counts as one that is there."""
    try:
        os.lstat(ALLOWED_SIGNERS)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def refuse_unsignable(path: str) -> None:
    """Refuses a folder or script where signatures are required: only a payload file can have one."""
    if is_required():
        raise PayloadError(
            "payload.unsigned",
            f"this host runs signed payloads only ({ALLOWED_SIGNERS}), and {path} is a folder or a script; "
            f"{NOTHING}; pack and sign it with: cronium payload build --sign KEY",
        )


def check(file: BinaryIO, path: str, armored: str | None) -> tuple[str, str]:
    """The SHA-256 of a payload that a trusted key has signed, and who that is; the position is the start again.

    `armored` is the signature that came with it; None: it is in the file beside `path`, if anywhere. Raises
    PayloadError for everything else, and SystemRefusedError where signatures cannot be checked at all.
    """
    from . import libcrypto

    policy = read_policy()
    signature = _signature(path, signature_beside(path) if armored is None else armored)
    signer = _trusted(signature, policy)
    digest, signed_digest = sha256(), sha256() if signature.hash_name == "sha256" else sha512()
    file.seek(0)
    while piece := file.read(_CHUNK):
        digest.update(piece)
        signed_digest.update(piece)
    file.seek(0)
    if not libcrypto.is_signed(signature, signature.signed(signed_digest.digest())):
        raise _invalid("it is not the signature of this payload: one of them was changed, or they belong to others")
    return digest.hexdigest(), signer


def load() -> None:
    """Loads ahead, where signatures are required, what checking one needs: for supervisors that are forked later."""
    from . import libcrypto
    from .wire import allowed_signers, sshsig  # noqa: F401

    libcrypto.load()


def signature_beside(path: str) -> str | None:
    """The text of the signature file beside a payload file, None where there is none. Raises PayloadError.

    It is read by root for other accounts, too: what is no signature is refused and never handed on.
    """
    from .wire import sshsig

    beside = path + sshsig.SUFFIX
    try:
        descriptor = os.open(beside, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _invalid(f"{beside} cannot be read: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _invalid(f"{beside} is not a regular file")
        content = _content(descriptor, sshsig.MAX_BYTES)
    except OSError as error:
        raise _invalid(f"{beside} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    text = content.decode("ascii", "replace")
    if not text.startswith(sshsig.BEGIN):
        return None  # other programs' signatures have the same suffix
    _signature(path, text)
    return text


def read_policy() -> "Policy":
    """What the host's files say. Raises PayloadError `payload.signers_unreadable`."""
    from .wire import allowed_signers

    content = _read(ALLOWED_SIGNERS)
    if content is None:
        raise _unreadable(ALLOWED_SIGNERS, "is gone again")
    revoked = _read(REVOKED_KEYS)
    path = ALLOWED_SIGNERS
    try:
        found = allowed_signers.signers(content, _host_time)
        path = REVOKED_KEYS
        return allowed_signers.Policy(found, allowed_signers.revoked(revoked or b""))
    except allowed_signers.SignersError as error:
        raise _unreadable(path, f"cannot be used: {error}") from None


def _signature(path: str, text: str | None) -> "Signature":
    from .wire import sshsig

    if not text:
        raise PayloadError(
            "payload.unsigned",
            f"this host runs signed payloads only ({ALLOWED_SIGNERS}), and this one came without a signature; "
            f"{NOTHING}; sign it: --sign KEY, or ssh-keygen -Y sign -n {sshsig.NAMESPACE} -f KEY FILE",
        )
    try:
        signature = sshsig.read(text)
    except sshsig.SignatureError as error:
        raise _invalid(f"the signature of {os.path.basename(path)} cannot be used: {error}") from None
    if signature.namespace != sshsig.NAMESPACE:
        raise _invalid(f"it was made for {signature.namespace[:60]!r} and not for {sshsig.NAMESPACE!r}")
    return signature


def _trusted(signature: "Signature", policy: "Policy") -> str:
    """Who has signed, for the record. Raises PayloadError."""
    from .wire import allowed_signers, sshsig

    shown = sshsig.fingerprint(sha256(signature.key.blob).digest())
    try:
        return f"{shown} {policy.signer_of(signature, shown, time.time()).principals}"
    except allowed_signers.UntrustedError as error:
        path = REVOKED_KEYS if error.reason == "revoked" else ALLOWED_SIGNERS
        raise PayloadError(f"payload.signer_{error.reason}", f"by {path}, {error}; {NOTHING}") from None


def _read(path: str) -> bytes | None:
    """The content of one of the host's files; None when there is none. Raises PayloadError."""
    from .wire.allowed_signers import MAX_BYTES

    try:
        for folder in ("/", os.path.dirname(FOLDER), FOLDER):
            _check_owned(folder, os.lstat(folder), is_folder=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from None
    try:
        _check_owned(path, os.fstat(descriptor), is_folder=False)
        return _content(descriptor, MAX_BYTES)
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _content(descriptor: int, limit: int) -> bytes:
    """What a file holds; of one that is larger, a byte more than the limit. Raises OSError."""
    content = b""
    while len(content) <= limit and (piece := os.read(descriptor, limit + 1 - len(content))):
        content += piece
    return content


def _check_owned(path: str, found: os.stat_result, *, is_folder: bool) -> None:
    is_right = stat.S_ISDIR(found.st_mode) if is_folder else stat.S_ISREG(found.st_mode)
    if not is_right:
        raise _unreadable(path, f"is not a {'directory' if is_folder else 'regular file'}")
    if found.st_uid != OWNER:
        raise _unreadable(path, f"belongs to uid {found.st_uid} and not to root")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise _unreadable(path, f"can be written by others than root (mode {mode:04o}; chmod go-w {path})")


def _host_time(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float:
    """By the host's own time zone: an account's TZ must not move the end of a key."""
    chosen = os.environ.pop("TZ", None)
    time.tzset()
    try:
        return time.mktime((year, month, day, hour, minute, second, 0, 0, -1))
    finally:
        if chosen is not None:
            os.environ["TZ"] = chosen
            time.tzset()


def _invalid(why: str) -> PayloadError:
    return PayloadError("payload.signature_invalid", f"the payload's signature is refused: {why}; {NOTHING}")


def _unreadable(path: str, why: str) -> PayloadError:
    return PayloadError(
        "payload.signers_unreadable",
        f"this host runs signed payloads only, and {path} {why}; {NOTHING}; root has to correct that",
    )
