"""known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT): the keys recorded for a name, and a line for a new key.

Files are read as OpenSSH's client reads them: a line that it skips is skipped here and never an error, and a file that
cannot be read is empty. What a record means for a connection is decided in `hostkeys`. No cryptography is done here:
keys are the bytes of their SSH encoding (RFC 4253, section 6.6).
"""

import base64
import contextlib
import fcntl
import functools
import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from cronium_runner.wire.ssh_encoding import Reader, key_type

KEY: Final = b""
AUTHORITY: Final = b"@cert-authority"
REVOKED: Final = b"@revoked"
CERTIFICATE: Final = b"-cert-v01@openssh.com"
"""How the names of OpenSSH's certificate types end."""

_HASHED: Final = b"|1|"
_HASH_BYTES: Final = 20
"""Of SHA-1, and so is a salt."""
_LONGEST_PATTERN: Final = 1022
"""Bytes of one pattern; OpenSSH matches no list with a longer one."""
_CURVES: Final = {b"nistp256": 65, b"nistp384": 97, b"nistp521": 133}
"""Bytes of an uncompressed point on each."""
_PLAIN_TYPES: Final = (
    b"ssh-ed25519",
    *(b"ecdsa-sha2-" + curve for curve in _CURVES),
    b"sk-ssh-ed25519@openssh.com",
    b"sk-ecdsa-sha2-nistp256@openssh.com",
    b"ssh-rsa",
    b"ssh-dss",
)
_TYPES: Final[dict[bytes, bytes]] = {
    **{name: name for name in _PLAIN_TYPES},
    **{name.removesuffix(b"@openssh.com") + CERTIFICATE: name.removesuffix(b"@openssh.com") + CERTIFICATE
       for name in _PLAIN_TYPES},
    b"rsa-sha2-256": b"ssh-rsa",
    b"rsa-sha2-512": b"ssh-rsa",
}  # fmt: skip
"""What a line may say that a key's type is, and the type in the key itself."""
_SMALLEST_RSA: Final = 1024
"""Bits; OpenSSH skips lines with a smaller modulus."""


class Entry(NamedTuple):
    """One key of a name, in SSH's encoding. `marker` is KEY, AUTHORITY or REVOKED."""

    marker: bytes
    path: str
    line: int
    key: bytes


class _Line(NamedTuple):
    """A line before its key is looked at."""

    marker: bytes
    number: int
    rest: bytes


def plain_type(algorithm: bytes) -> bytes:
    """The type of the keys of an algorithm: `ssh-rsa` for `rsa-sha2-512`, and for certificates of such keys."""
    if algorithm.endswith(CERTIFICATE):
        stem = algorithm.removesuffix(CERTIFICATE)
        algorithm = stem + b"@openssh.com" if stem.startswith(b"sk-") else stem
    return _TYPES.get(algorithm, algorithm)


@functools.lru_cache(maxsize=1024)
def read_key(text: bytes) -> bytes | None:
    """The key that a line `TYPE BASE64 [COMMENT]` has; None for what OpenSSH does not take for a public key."""
    words = text.split(None, 2)
    if len(words) < 2 or words[0] not in _TYPES:
        return None
    try:
        blob = base64.b64decode(words[1], validate=True)
    except ValueError:
        return None
    return blob if _is_key(blob, _TYPES[words[0]]) else None


def _is_key(blob: bytes, kind: bytes) -> bool:
    if key_type(blob) != kind:
        return False
    if kind.endswith(CERTIFICATE):
        return True
    try:
        parts = list(Reader(blob).strings())
    except ValueError:
        return False
    if kind.startswith(b"sk-"):
        parts.pop()  # the application
        kind = kind.removeprefix(b"sk-").removesuffix(b"@openssh.com")
    match kind, parts[1:]:
        case b"ssh-ed25519", [key]:
            return len(key) == 32
        case b"ssh-rsa", [_, modulus]:
            return int.from_bytes(modulus, "big").bit_length() >= _SMALLEST_RSA
        case b"ssh-dss", [_, _, _, _]:
            return True
        case _, [curve, point]:
            return kind == b"ecdsa-sha2-" + curve and len(point) == _CURVES.get(curve) and point[:1] == b"\x04"
    return False


class KnownHosts:
    """What one file says, by the names in it."""

    def __init__(self, content: bytes, path: str) -> None:
        self._names: dict[bytes, list[_Line]] = {}
        self._patterns: list[tuple[bytes, _Line]] = []
        self._hashes: list[tuple[bytes, bytes, _Line]] = []
        self._path = path
        for number, line in enumerate(content.split(b"\n"), 1):
            self._take(line.lstrip(b" \t"), number)

    def _take(self, line: bytes, number: int) -> None:
        if not line or line.startswith(b"#"):
            return
        marker = KEY
        if line.startswith(b"@"):
            marker, _, line = line.replace(b"\t", b" ", 1).partition(b" ")
            line = line.lstrip(b" \t")
            if marker not in (AUTHORITY, REVOKED) or line.startswith(b"@"):
                return
        hosts, *rest = re.split(rb"[ \t]+", line, maxsplit=1)
        if not rest:
            return
        entry = _Line(marker, number, rest[0])
        if hosts.startswith(b"|"):
            with contextlib.suppress(ValueError):
                salt, digest = hosts.removeprefix(_HASHED).split(b"|")
                salt, digest = base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)
                if len(salt) == _HASH_BYTES and hosts.startswith(_HASHED):
                    self._hashes.append((salt, digest, entry))
        elif any(sign in hosts for sign in b"*?!") or len(hosts) > _LONGEST_PATTERN:
            self._patterns.append((hosts.lower(), entry))
        else:
            for name in hosts.lower().split(b","):
                self._names.setdefault(name, []).append(entry)

    def find(self, name: str) -> list[Entry]:
        """The keys of a name (`host` or `[host]:port`), in the order of the file; lines without a key are skipped."""
        lower = os.fsencode(name).lower()
        found = list(self._names.get(lower, ()))
        found += [entry for patterns, entry in self._patterns if is_in(lower, patterns)]
        found += [entry for salt, digest, entry in self._hashes if hmac.digest(salt, lower, "sha1") == digest]
        found = sorted(set(found), key=lambda line: line.number)
        keys = ((line, read_key(line.rest)) for line in found)
        return [Entry(line.marker, self._path, line.number, key) for line, key in keys if key is not None]


def is_in(name: bytes, patterns: bytes) -> bool:
    """Whether a list of patterns has the name; one that is negated and matches excludes it."""
    found = False
    for pattern in patterns.split(b","):
        wanted = pattern.removeprefix(b"!")
        if len(wanted) > _LONGEST_PATTERN:
            return False
        if _pattern(wanted).fullmatch(name):
            if pattern.startswith(b"!"):
                return False
            found = True
    return found


@functools.lru_cache(maxsize=1024)
def _pattern(pattern: bytes) -> "re.Pattern[bytes]":
    parts = re.split(rb"(\*+|\?)", pattern)
    return re.compile(
        b"".join(
            b".*" if part.startswith(b"*") else b"." if part == b"?" else re.escape(part) for part in parts
        ),
        re.DOTALL,
    )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _parsed(path: str, content: bytes) -> KnownHosts:
    """What a file says. It is read for each connection, and parsed only when its content is new."""
    return KnownHosts(content, path)


def read(path: str) -> tuple[KnownHosts, OSError | None]:
    """What a file says now, and why it could not be read: then it is empty, as for OpenSSH. A missing one is empty."""
    try:
        with open(path, "rb") as file:
            return _parsed(path, file.read()), None
    except FileNotFoundError:
        return _parsed(path, b""), None
    except OSError as error:
        return _parsed(path, b""), error


def _hashed(name: bytes) -> bytes:
    """A name as HashKnownHosts writes it, with a new salt."""
    salt = os.urandom(_HASH_BYTES)
    return _HASHED + base64.b64encode(salt) + b"|" + base64.b64encode(hmac.digest(salt, name, hashlib.sha1))


def record(path: str, name: str, key: bytes, *, is_hashed: bool) -> Sequence[Entry]:
    """Appends a key, unless the file has a line for the name by now: then those lines are returned.

    Locked against other processes of ours. Raises OSError.
    """
    folder = os.path.dirname(os.path.abspath(path))
    with contextlib.suppress(FileExistsError):
        os.makedirs(folder, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        content = file.read()
        recorded = [entry for entry in _parsed(path, content).find(name) if entry.marker == KEY]
        if recorded:
            return recorded
        written = os.fsencode(name).lower()
        name_written = _hashed(written) if is_hashed else written
        line = b" ".join((name_written, key_type(key), base64.b64encode(key))) + b"\n"
        file.write(line if content.endswith(b"\n") or not content else b"\n" + line)
    return ()
