"""Whether a host is the one we know: known_hosts, read and written as OpenSSH does, under one of three policies.

asyncssh does the cryptography and asks here about the key. A changed key is refused under every policy but `off`,
on every connection, and the refusal is final. No connection is made here.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import asyncssh

DEFAULT_PORT: Final = 22


class HostKeyPolicy(StrEnum):
    """What to do about a host's key."""

    ACCEPT_NEW = "accept-new"
    """An unknown one is recorded, a changed one refused; OpenSSH's meaning."""
    STRICT = "strict"
    """An unknown one is refused as well."""
    OFF = "off"
    """Anything is accepted, with a warning each time."""


def default_known_hosts() -> str:
    """OpenSSH's own file, so that a host we met is known to `ssh` and the other way round."""
    return os.path.expanduser("~/.ssh/known_hosts")


class HostKeyCheck:
    """The check of one connection: give `trusted` to asyncssh as known_hosts, and ask `accept` about other keys.

    After a refusal `problem` is (error code, sentence).
    """

    def __init__(self, policy: HostKeyPolicy, path: str, warn: Callable[[str], None]) -> None:
        self._policy = policy
        self._path = path
        self._warn = warn
        self._recorded: list[asyncssh.SSHKey] = []
        self.problem: tuple[str, str] | None = None

    def trusted(self, host: str, _address: str, port: int | None) -> tuple[list[Any], list[Any], list[Any]]:
        """Keys, certificate authorities and revoked keys recorded for the host, as asyncssh wants them."""
        if self._policy is HostKeyPolicy.OFF:
            return [], [], []
        keys, authorities, revoked = self._read(_name(host, port))
        self._recorded = [*keys, *authorities]
        return keys, authorities, revoked

    def accept(self, host: str, port: int | None, key: asyncssh.SSHKey) -> bool:
        """Decides about a key that is not among the trusted ones. Records it when that is the policy."""
        name = _name(host, port)
        fingerprint = key.get_fingerprint()
        if self._policy is HostKeyPolicy.OFF:
            self._warn(
                f"{name}: host key {fingerprint} accepted unchecked; anybody could be answering (--host-keys off)"
            )
            return True
        if self._recorded:
            self.problem = (
                "host.key_changed",
                f"the host's key is now {fingerprint} and not the one in {self._path}; somebody may be in between. "
                f"If the host was reinstalled, remove the old key with: ssh-keygen -f {self._path} -R '{name}'",
            )
            return False
        if self._policy is HostKeyPolicy.STRICT:
            self.problem = (
                "host.key_unknown",
                f"the host's key {fingerprint} is not in {self._path} and unknown keys are refused (--host-keys strict); "
                "compare it with the host's own and add it",
            )
            return False
        try:
            return self._record(name, key)
        except OSError as error:
            self.problem = (
                "host.key_unknown",
                f"the host's new key could not be recorded in {self._path}: {error.strerror}",
            )
            return False

    def _read(self, name: str) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
        try:
            found = asyncssh.read_known_hosts(self._path)
        except FileNotFoundError:
            return [], [], []
        # The name already carries the port: asyncssh's own port argument falls back to entries without one, and an
        # entry for port 22 says nothing about what answers on another.
        keys, authorities, revoked, *_ = found.match(name, "", None)
        return list(keys), list(authorities), list(revoked)

    def _record(self, name: str, key: asyncssh.SSHKey) -> bool:
        """Appends the key, unless another process has recorded one in the meantime: then that one decides."""
        folder = os.path.dirname(self._path)
        if folder:
            with contextlib.suppress(FileExistsError):
                os.makedirs(folder, mode=0o700)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            recorded, authorities, _ = self._read(name)
            if recorded or authorities:
                self._recorded = [*recorded, *authorities]
                return key in recorded or self.accept(*_split(name), key)
            content = file.read()
            line = name.encode() + b" " + key.export_public_key("openssh").split(b" ", 2)[0]
            line += b" " + key.export_public_key("openssh").split(b" ", 2)[1].strip() + b"\n"
            file.write((b"" if not content or content.endswith(b"\n") else b"\n") + line)
        self._recorded = [key]
        return True


def _name(host: str, port: int | None) -> str:
    """The host as known_hosts spells it: `host`, or `[host]:port` for any port but 22."""
    return host if port in (None, DEFAULT_PORT) else f"[{host}]:{port}"


def _split(name: str) -> tuple[str, int | None]:
    if not name.startswith("["):
        return name, None
    host, _, port = name[1:].rpartition("]:")
    return host, int(port)
