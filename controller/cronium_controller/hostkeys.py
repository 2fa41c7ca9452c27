"""Whether a host is the one we know: decided as OpenSSH decides it, over all the files that `ssh` would read.

asyncssh does the cryptography and asks here about each key. A changed key is refused under every policy but `off`, on
every connection, and the refusal is final. No connection is made here.
"""

import functools
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from cronium_runner.wire.ssh_encoding import key_type

from . import known_hosts, revoked_keys
from .access import HostKeyPolicy
from .errors import ControllerError, HostKeyChangedError, HostKeyError, HostKeyUnknownError, reason
from .known_hosts import AUTHORITY, CERTIFICATE, KEY, REVOKED, Entry, plain_type
from .ssh_library import asyncssh
from .ssh_settings import SSHSettings

_PORT: Final = 22
_ELLIPTIC: Final = (b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp521")
_PLAIN: Final = (b"ssh-ed25519", *_ELLIPTIC)
_HARDWARE: Final = (b"sk-ssh-ed25519", b"sk-ecdsa-sha2-nistp256")
_RSA: Final = (b"rsa-sha2-512", b"rsa-sha2-256")
ALGORITHMS: Final = (
    *(name + CERTIFICATE for name in (*_PLAIN, *_HARDWARE, *_RSA)),
    *_PLAIN,
    *(name + b"@openssh.com" for name in _HARDWARE),
    *_RSA,
)
"""OpenSSH's default for HostKeyAlgorithms, in its order: it decides which of a server's keys is recorded."""
_WEAK_SIGNATURES: Final = (b"ssh-rsa", b"ssh-dss")
"""Of certificates; not in OpenSSH's default for CASignatureAlgorithms."""


def policy_of(settings: SSHSettings) -> HostKeyPolicy:
    """What StrictHostKeyChecking asks for. `no` and `off` count as `accept-new`: a changed key is always refused."""
    return HostKeyPolicy.STRICT if settings.strict_host_key_checking == "yes" else HostKeyPolicy.ACCEPT_NEW


class _Verdict(Enum):
    KNOWN = "known"
    NEW = "new"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a server shows: a plain key in SSH's encoding, and the certificate that it is in, if it is in one."""

    key: bytes
    certificate: "asyncssh.public_key.SSHOpenSSHCertificate | None"
    public: asyncssh.SSHKey

    @property
    def authority(self) -> bytes | None:
        return None if self.certificate is None else self.certificate.signing_key.public_data


class HostKeyCheck:
    """The check of one connection: `algorithms` are what the server is asked for, `validate` decides about its key.

    `policy` and `path` (a file instead of UserKnownHostsFile) are options of ours and win over the settings. After a
    refusal `refusal` says which error it was.
    """

    def __init__(
        self,
        settings: SSHSettings,
        warn: Callable[[str], None],
        *,
        host: str,
        policy: HostKeyPolicy | None = None,
        path: str | None = None,
    ) -> None:
        self._policy = policy_of(settings) if policy is None else HostKeyPolicy(policy)
        self._files = (os.path.expanduser(path),) if path else settings.user_known_hosts_files
        self._settings = settings
        self._warn = warn
        self._host = host
        self._address = settings.host_name.lower()
        self._alias = settings.host_key_alias.lower() if settings.host_key_alias else None  # as ssh does
        self._name = self._alias or _name(self._address, settings.port)
        self._found: dict[str, list[Entry]] = {}
        self._accepted: bytes | None = None
        self._is_configured = policy is None
        self.refusal: HostKeyError | None = None

    def algorithms(self) -> list[str]:
        """What the server is asked for, in this order: ssh's list, the kinds of key first that the host is known by.

        Raises ControllerError when HostKeyAlgorithms names none that asyncssh has.
        """
        is_known = self._policy is not HostKeyPolicy.OFF
        recorded = _kinds(self._entries(self._name)) if is_known else _NOTHING_RECORDED
        found = _algorithms(self._settings.host_key_algorithms, *recorded)
        if not found:
            raise ControllerError(
                "host.config",
                f"none of the algorithms of HostKeyAlgorithms {self._settings.host_key_algorithms!r} can be used here; "
                "add others",
                host=self._host,
            )
        return list(found)

    def validate(self, key_data: bytes) -> asyncssh.SSHKey:
        """The key that a server shows, when it may be used. Records one that is new when that is the policy.

        Raises asyncssh.HostKeyNotVerifiable.
        """
        shown = _decoded(key_data)
        if key_data == self._accepted:  # keys are renewed after a gigabyte, and we are asked again
            return shown.public
        if self._policy is HostKeyPolicy.OFF:
            self._warn(
                f"{self._host}: host key {shown.public.get_fingerprint()} accepted unchecked; "
                "its identity is not verified (--host-keys off)"
            )
        else:
            self.refusal = self._refusal(shown)
            if self.refusal is not None:
                raise asyncssh.HostKeyNotVerifiable(self.refusal.message)
        self._accepted = key_data
        return shown.public

    def explain(self, said: str) -> HostKeyError:
        """The error for a refusal, also for one that asyncssh decided by itself: `said` is what it said."""
        if self.refusal is None:
            self.refusal = HostKeyUnknownError(
                f"the host's key cannot be verified ({said}); compare it with the host's own", host=self._host
            )
        return self.refusal

    def _refusal(self, shown: _Shown) -> HostKeyError | None:
        """Why the key may not be used; None when it may, and then it is recorded if it is new."""
        if self._settings.revoked_host_keys is not None:
            refusal = self._revoked(shown, self._settings.revoked_host_keys)
            if refusal is not None:
                return refusal
        verdict = self._judge(shown, self._name)
        if verdict is _Verdict.REVOKED:
            marked = (entry for entry in self._entries(self._name) if entry.marker == REVOKED)
            return self._forbidden(f"is marked as revoked in {next(marked).path}")
        if verdict is _Verdict.CHANGED:
            return self._changed(shown, [entry for entry in self._entries(self._name) if entry.marker == KEY])
        return None if verdict is _Verdict.KNOWN else self._unknown(shown)

    def _judge(self, shown: _Shown, name: str) -> _Verdict:
        """OpenSSH's order: the certificate, then the key in it; each under the name, then under that without a port."""
        entries = self._entries(name)
        if shown.certificate is not None:
            verdict = _verdict(entries, shown.key, shown.authority)
            if verdict is _Verdict.REVOKED or (verdict is _Verdict.KNOWN and self._vouches(shown.certificate)):
                return verdict
            if verdict is _Verdict.NEW and self._is_known_without_port(shown, name):
                return _Verdict.KNOWN
        verdict = _verdict(entries, shown.key)
        if verdict is _Verdict.NEW and self._is_known_without_port(_Shown(shown.key, None, shown.public), name):
            return _Verdict.KNOWN
        return verdict

    def _is_known_without_port(self, shown: _Shown, name: str) -> bool:
        """Whether a record without a port vouches for the key on another port. It makes no other key a changed one."""
        has_port = name != self._address and self._alias is None
        return has_port and self._judge(shown, self._address) is _Verdict.KNOWN

    def _vouches(self, certificate: "asyncssh.public_key.SSHOpenSSHCertificate") -> bool:
        """Whether a certificate of a known authority is good for this host, now."""
        try:
            certificate.validate(asyncssh.public_key.CERT_TYPE_HOST, self._alias or self._address)
        except ValueError:
            return False
        return _signature_type(certificate) not in _WEAK_SIGNATURES

    def _entries(self, name: str) -> list[Entry]:
        """The keys of all files for a name."""
        if name not in self._found:
            self._found[name] = found = []
            for path in (*self._files, *self._settings.global_known_hosts_files):
                lines, error = known_hosts.read(path)
                if error is not None and path not in _unreadable:
                    _unreadable.add(path)
                    self._warn(f"{path} cannot be read ({error.strerror}), so the host keys in it are not known")
                found += lines.find(name)
        return self._found[name]

    def _revoked(self, shown: _Shown, path: str) -> HostKeyError | None:
        try:
            revoked = revoked_keys.read(path)
        except (OSError, ValueError) as error:
            return HostKeyUnknownError(
                f"the host's key cannot be looked up in RevokedHostKeys {path} ({reason(error)}), and no host is "
                "connected to without that; correct the file",
                host=self._host,
            )
        certificate = None
        if shown.certificate is not None and shown.authority is not None:
            its: Any = shown.certificate
            certificate = revoked_keys.Certificate(shown.authority, its._serial, its._key_id.encode())
        return self._forbidden(f"is revoked by {path}") if revoked.has(shown.key, certificate) else None

    def _unknown(self, shown: _Shown) -> HostKeyError | None:
        what = f"the host's key {shown.public.get_fingerprint()}"
        if self._policy is HostKeyPolicy.STRICT:
            where = " or ".join((*self._files, *self._settings.global_known_hosts_files)) or "any known_hosts file"
            asked = "StrictHostKeyChecking yes" if self._is_configured else "--host-keys strict"
            return HostKeyUnknownError(
                f"{what} is not in {where} and unknown keys are refused ({asked}); compare it with the host's own "
                "and add it",
                host=self._host,
            )
        if not self._files:
            return HostKeyUnknownError(
                f"{what} is unknown and UserKnownHostsFile names no file to record it in; name one with --known-hosts",
                host=self._host,
            )
        path = self._files[0]
        try:
            lines = known_hosts.record(path, self._name, shown.key, is_hashed=self._settings.hash_known_hosts)
        except OSError as error:
            self._warn(
                f"{self._host}: the new host key {shown.public.get_fingerprint()} cannot be recorded in {path} "
                f"({error.strerror}), so a changed one will not be noticed; name another file with --known-hosts"
            )
            return None
        is_recorded = not lines or any(entry.key == shown.key for entry in lines)
        return None if is_recorded else self._changed(shown, lines)

    def _changed(self, shown: _Shown, recorded: Sequence[Entry]) -> HostKeyError:
        entry = recorded[0]
        return HostKeyChangedError(
            f"the host's key is now {shown.public.get_fingerprint()} and not the one in {entry.path} line {entry.line}"
            "; the connection may be intercepted; if the host was set up anew, remove the old key with: "
            f"ssh-keygen -f {shlex.quote(entry.path)} -R {shlex.quote(self._name)}",
            host=self._host,
        )

    def _forbidden(self, what: str) -> HostKeyError:
        return HostKeyChangedError(
            f"the host's key {what}; do not connect before its administrator has given it a new one", host=self._host
        )


_unreadable: set[str] = set()
"""Files of which a warning has told."""


def _verdict(entries: Iterable[Entry], key: bytes, authority: bytes | None = None) -> _Verdict:
    """What the lines of a name say about a key, or with `authority` about a certificate of that key."""
    if any(entry.marker == REVOKED and entry.key in (key, authority) for entry in entries):
        return _Verdict.REVOKED
    if authority is not None:
        vouching = any(entry.marker == AUTHORITY and entry.key == authority for entry in entries)
        return _Verdict.KNOWN if vouching else _Verdict.NEW
    recorded = [entry.key for entry in entries if entry.marker == KEY]
    if key in recorded:
        return _Verdict.KNOWN
    return _Verdict.CHANGED if recorded else _Verdict.NEW


_NOTHING_RECORDED: Final[tuple[frozenset[bytes], bool]] = (frozenset(), False)


def _kinds(entries: Sequence[Entry]) -> tuple[frozenset[bytes], bool]:
    """The kinds of the recorded keys of a host, and whether an authority is recorded that may have signed its key."""
    revoked = {entry.key for entry in entries if entry.marker == REVOKED}
    first: dict[bytes, bytes] = {}
    for entry in entries:
        if entry.marker == KEY:
            first.setdefault(key_type(entry.key), entry.key)
    kinds = frozenset(plain_type(kind) for kind, key in first.items() if key not in revoked)
    return kinds, any(entry.marker == AUTHORITY for entry in entries)


@functools.lru_cache(maxsize=64)
def _algorithms(written: str | None, kinds: frozenset[bytes], has_authority: bool) -> tuple[str, ...]:
    """HostKeyAlgorithms in asyncssh's words, as far as it has them: the same for most of many hosts."""
    wanted, is_ordered = _wanted(written)
    if is_ordered:
        wanted = _preferred(wanted, kinds, has_authority)
    supported = _supported()
    return tuple(name.decode() for name in wanted if name in supported)


def _preferred(algorithms: list[bytes], kinds: frozenset[bytes], has_authority: bool) -> list[bytes]:
    """The same algorithms, those first that go with the recorded keys, so that the server shows one that is known."""
    if algorithms and plain_type(algorithms[0]) in kinds:
        return algorithms

    def is_last(name: bytes) -> bool:
        return not (plain_type(name) in kinds or (has_authority and name.endswith(CERTIFICATE)))

    return sorted(algorithms, key=is_last)  # stable: otherwise in the order that was asked for


def _wanted(written: str | None) -> tuple[list[bytes], bool]:
    """What HostKeyAlgorithms asks for, and whether recorded kinds go first: not where it is a list of its own."""
    if not written:
        return list(ALGORITHMS), True
    sign, names = written[0], written.lstrip("+-^").encode().split(b",")
    if sign == "+":
        return list(dict.fromkeys((*ALGORITHMS, *names))), True
    if sign == "-":
        return [name for name in ALGORITHMS if not known_hosts.is_in(name, b",".join(names))], True
    if sign == "^":
        return list(dict.fromkeys((*names, *ALGORITHMS))), False
    usual = [name for name in names if name in ALGORITHMS]
    is_amended = usual == names[: len(usual)] and usual == sorted(usual, key=ALGORITHMS.index)
    return names, is_amended and 2 * len(usual) >= len(ALGORITHMS)  # as `ssh -G` prints `+` and `-`


@functools.cache
def _supported() -> frozenset[bytes]:
    """The algorithms that asyncssh has."""
    return frozenset((*asyncssh.public_key.get_public_key_algs(), *asyncssh.public_key.get_certificate_algs()))


def _decoded(blob: bytes) -> _Shown:
    """Raises asyncssh.HostKeyNotVerifiable."""
    try:
        if key_type(blob).endswith(CERTIFICATE):
            certificate = asyncssh.public_key.decode_ssh_certificate(blob)
            assert isinstance(certificate, asyncssh.public_key.SSHOpenSSHCertificate), "of such an algorithm"
            return _Shown(certificate.key.public_data, certificate, certificate.key)
        public = asyncssh.public_key.decode_ssh_public_key(blob)
        return _Shown(blob, None, public)
    except asyncssh.KeyImportError as error:
        raise asyncssh.HostKeyNotVerifiable(f"it cannot be decoded: {error}") from None


def _signature_type(certificate: "asyncssh.public_key.SSHOpenSSHCertificate") -> bytes:
    """The algorithm that an authority signed with: the first string of the signature, which is the last of all."""
    blob, authority = certificate.public_data, certificate.signing_key.public_data
    return key_type(blob[blob.rindex(authority) + len(authority) + 4 :])


def _name(host: str, port: int) -> str:
    """The host as known_hosts spells it: `host`, or `[host]:port` for any port but 22."""
    return host if port == _PORT else f"[{host}]:{port}"
