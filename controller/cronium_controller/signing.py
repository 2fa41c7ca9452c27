"""Signing a payload with an SSH key: `ssh-keygen -Y sign` does it, so a key is what it is to ssh.

A private key in a file, with a passphrase or on a security key, or a public key whose private half an agent holds. The
signature is a file beside the payload, `NAME.tar.gz.sig`, and a field of the submission. Whether it is trusted is each
host's to say (docs/signatures.md).
"""

import contextlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cronium_runner.wire import sshsig

from .errors import PayloadError

if TYPE_CHECKING:
    from .payloads import Payload

PROGRAM: Final = "ssh-keygen"


def signature_path(path: Path) -> Path:
    """Where a payload file's signature is."""
    return path.with_name(path.name + sshsig.SUFFIX)


def signature_beside(path: Path) -> str | None:
    """The text of the signature beside a payload file; None where there is none of OpenSSH's.

    Raises PayloadError for one that no host would take, and OSError.
    """
    beside = signature_path(path)
    if not beside.is_file():
        return None
    with beside.open("rb") as file:
        text = file.read(sshsig.MAX_BYTES + 1).decode("ascii", "replace")
    if not text.startswith(sshsig.BEGIN):  # other programs' signatures have the same suffix
        return None
    check(text, str(beside))
    return text


def check(text: str, name: str) -> None:
    """Raises PayloadError unless the text is a signature for payloads; whose, and of what, is not looked at."""
    try:
        namespace = sshsig.read(text).namespace
    except sshsig.SignatureError as error:
        raise PayloadError("payload.signature_invalid", f"{name} is not a signature that hosts take: {error}") from None
    if namespace != sshsig.NAMESPACE:
        raise PayloadError(
            "payload.signature_invalid",
            f"{name} was made for {namespace[:60]!r}; sign payloads for {sshsig.NAMESPACE!r}",
        )


def sign(pieces: Iterable[bytes], key: str) -> str:
    """The signature of these bytes by the key in the file `key`. Raises PayloadError.

    ssh-keygen asks for a passphrase, and for a touch, on the terminal; its own words appear on standard error.
    """
    path = os.path.expanduser(key)
    command = [PROGRAM, "-q", "-Y", "sign", "-n", sshsig.NAMESPACE, "-f", path]
    try:
        if not os.path.exists(path):
            raise PayloadError("payload.signing", f"there is no key {path} to sign with; name a private or public key")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:  # it has given up, and says why
                for piece in pieces:
                    process.stdin.write(piece)
            text = process.stdout.read().decode("ascii", "replace")
    except FileNotFoundError:
        raise PayloadError("payload.signing", f"{PROGRAM} is not installed here; install OpenSSH's client") from None
    except OSError as error:
        raise PayloadError("payload.signing", f"{PROGRAM} cannot be used: {error.strerror}") from None
    if process.returncode != 0:
        raise PayloadError(
            "payload.signing", f"{PROGRAM} did not sign with {path}: what it said is above; nothing was sent"
        )
    check(text, f"what {PROGRAM} made with {path}")
    return text


def sign_payload(payload: "Payload", key: str) -> None:
    """Gives a payload a signature by the key in the file `key`, in place of one that it came with. As `sign`."""
    payload.signature = sign(payload.pieces(), key)


def is_signature_of(path: Path) -> bool:
    """Whether the signature beside a payload file is one of that file, by any key. Raises OSError."""
    command = [PROGRAM, "-Y", "check-novalidate", "-n", sshsig.NAMESPACE, "-s", str(signature_path(path))]
    with path.open("rb") as file:
        return subprocess.run(command, stdin=file, capture_output=True, check=False).returncode == 0
