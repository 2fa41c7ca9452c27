"""Identity files: the public half of each, and its private half when it can be had. No host or agent is asked.

A file may hold a private key, with KEY.pub and KEY-cert.pub beside it, or a public key whose private half an agent has.
Read as OpenSSH reads them, with asyncssh for the private halves.
"""

import base64
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cronium_runner.wire.ssh_encoding import Reader, key_type

from .errors import reason
from .known_hosts import CERTIFICATE, read_key
from .own_files import is_open_key, open_key_phrase
from .ssh_library import asyncssh

MISSING: Final = "does not exist"
ENCRYPTED: Final = "needs its passphrase, and no agent holds it (add it with ssh-add)"
_PUBLIC_ONLY: Final = "is a public key whose private half no agent holds"
_SECURITY_KEY: Final = "belongs to a security key (add it with ssh-add)"
_MAGIC: Final = b"openssh-key-v1\0"
_LINE: Final = b"-----"
_LONGEST: Final = 1 << 20
"""Bytes of a key file, as for OpenSSH."""

Passphrase = Callable[[str], str]


class UnusableKeyError(Exception):
    """There is no private half to sign with; the words go behind the file's name."""


@dataclass(slots=True)
class KeyFile:
    """One identity file. `public` is the public key in SSH's encoding, None where only the private half tells it.

    `wrong` says why there is no private half, as words behind the file's name.
    """

    path: str
    public: bytes | None = None
    content: bytes = b""
    wrong: str | None = None
    is_encrypted: bool = False
    _private: asyncssh.SSHKey | None = None

    def unlock(self, passphrase: Passphrase | None) -> asyncssh.SSHKey:
        """The private key. Raises UnusableKeyError."""
        if self.wrong is not None:
            raise UnusableKeyError(self.wrong)
        if self._private is None:
            if self.is_encrypted and passphrase is None:
                raise UnusableKeyError(ENCRYPTED)
            try:
                if self.is_encrypted and passphrase is not None:
                    self._private = asyncssh.import_private_key(self.content, passphrase(self.path))
                else:
                    self._private = _imported(self.content)
            except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
                self.wrong = f"cannot be read as a private key ({reason(error)})"
                raise UnusableKeyError(self.wrong) from None
        return self._private


@functools.lru_cache(maxsize=16)
def _imported(content: bytes) -> asyncssh.SSHKey:
    """Parsed once, and not for each of a thousand hosts. Raises KeyImportError, also when it is encrypted."""
    return asyncssh.import_private_key(content)


def read_key_file(path: str) -> KeyFile:
    """What a file has; `wrong` where it has no private half."""
    try:
        content = _content(path)
    except FileNotFoundError:
        return KeyFile(path, _public_beside(path), wrong=MISSING)
    except OSError as error:
        return KeyFile(path, _public_beside(path), wrong=f"cannot be read ({error.strerror})")
    if _LINE not in content:
        public = read_key(content.strip())
        return KeyFile(path, public, wrong="is not a private key" if public is None else _PUBLIC_ONLY)
    if is_open_key(path):
        return KeyFile(path, _public_beside(path), wrong=open_key_phrase(path))
    found = KeyFile(path, content=content)
    try:
        found.public = found.unlock(None).public_data
    except UnusableKeyError as error:
        found.public = _public_beside(path) or _public_inside(content)
        found.is_encrypted = "assphrase" in str(error)
        if found.is_encrypted:
            found.wrong = None
    if found.public is not None and key_type(found.public).startswith(b"sk-"):
        found.wrong = _SECURITY_KEY
    return found


def read_certificate(path: str) -> "asyncssh.public_key.SSHOpenSSHCertificate | None":
    """The user certificate in a file; None where there is none."""
    try:
        content = _content(path)
    except OSError:
        return None
    return _certificate(content)


@functools.lru_cache(maxsize=16)
def _certificate(content: bytes) -> "asyncssh.public_key.SSHOpenSSHCertificate | None":
    blob = read_key(content.strip())
    if blob is None or not key_type(blob).endswith(CERTIFICATE):
        return None
    try:
        certificate = asyncssh.public_key.decode_ssh_certificate(blob)
        certificate.validate(asyncssh.public_key.CERT_TYPE_USER, None)  # type: ignore[attr-defined]
    except ValueError:
        return None
    return certificate if isinstance(certificate, asyncssh.public_key.SSHOpenSSHCertificate) else None


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_LONGEST)


def _public_beside(path: str) -> bytes | None:
    try:
        return read_key(_content(f"{path}.pub").strip())
    except OSError:
        return None


def _public_inside(content: bytes) -> bytes | None:
    """The public half that OpenSSH's own format has in front of the encrypted one."""
    try:
        _, _, rest = content.partition(b"-----BEGIN OPENSSH PRIVATE KEY-----")
        reader = Reader(base64.b64decode(rest.partition(_LINE)[0]))
        if reader.take(len(_MAGIC)) != _MAGIC:
            return None
        for _ in range(3):  # cipher, derivation, its options
            reader.string()
        return reader.string() if reader.number(4) == 1 else None
    except ValueError:
        return None
