"""Whether a host is the one we know: known_hosts, read and written as OpenSSH does, under one of three policies.

asyncssh does the cryptography and asks here about the key. A changed key is refused under every policy but `off`,
on every connection, and the refusal is final. No connection is made here.
"""

import contextlib
import fcntl
import functools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .access import HostKeyPolicy
from .errors import ControllerError, HostKeyChangedError, HostKeyError, HostKeyUnknownError, reason
from .ssh_library import asyncssh

DEFAULT_PORT: Final = 22


class HostKeyCheck:
    """The check of one connection: asyncssh asks `trusted` which keys are recorded, and `accept` about any other.

    After a refusal `refusal` says which error it was.
    """

    def __init__(self, policy: HostKeyPolicy, path: str, warn: Callable[[str], None], *, host: str) -> None:
        self._policy = policy = HostKeyPolicy(policy)  # a plain "strict" must not pass for something laxer
        self._path = path
        self._warn = warn
        self._host = host
        self._keys: list[asyncssh.SSHKey] = []
        self._authorities: list[asyncssh.SSHKey] = []
        self._without_port: list[asyncssh.SSHKey] = []
        self._name = host
        self._accepted: asyncssh.SSHKey | None = None
        self.refusal: HostKeyError | None = None
        # A file that can't be read is found before anything is sent.
        self._known = None if policy is HostKeyPolicy.OFF else self._load()

    def trusted(self, host: str, _address: str, port: int | None) -> tuple[list[Any], list[Any], list[Any]]:
        """Keys, certificate authorities and revoked keys recorded for the host, as asyncssh wants them."""
        if self._policy is HostKeyPolicy.OFF:
            return [], [], []
        self._name = _name(host, port)
        keys, authorities, revoked = _matches(self._known, self._name)
        self._keys, self._authorities = keys, authorities
        if self._name != _name(host, None) and not self.has_record():
            # As OpenSSH: an entry without a port vouches for the same key on another port, and for no other key.
            self._without_port, _, revoked_without_port = _matches(self._known, _name(host, None))
            revoked += revoked_without_port
        return keys, authorities, revoked

    def accept(self, key: asyncssh.SSHKey) -> bool:
        """Decides about the key that the server shows. Records it when it is new and that is the policy."""
        if key == self._accepted or key in self._keys:  # keys are renewed after a gigabyte, and we are asked again
            return True
        if self._policy is HostKeyPolicy.OFF:
            self._warn(
                f"{self._host}: host key {key.get_fingerprint()} accepted unchecked; "
                "anybody could be answering (--host-keys off)"
            )
            accepted = True
        elif self.has_record():
            accepted = self._refuse_changed(f"is now {key.get_fingerprint()} and not the one")
        elif key in self._without_port:
            accepted = True
        elif self._policy is HostKeyPolicy.STRICT:
            self.refusal = HostKeyUnknownError(
                f"the host's key {key.get_fingerprint()} is not in {self._path} and unknown keys are refused "
                "(--host-keys strict); compare it with the host's own and add it",
                host=self._host,
            )
            accepted = False
        else:
            accepted = self._record(key)
        self._accepted = key if accepted else None
        return accepted

    def explain(self, reason: str) -> HostKeyError:
        """The error for a refusal, also for one that asyncssh decided by itself: `reason` is what it said."""
        if self.refusal is not None:
            return self.refusal
        if "revoked" in reason:
            self._refuse_changed("is marked as revoked", remove=False)
        else:
            self.refusal = HostKeyUnknownError(
                f"the host's key could not be verified ({reason}); compare it with the host's own, and look at "
                f"{self._path}",
                host=self._host,
            )
        assert self.refusal is not None
        return self.refusal

    def has_record(self) -> bool:
        """Whether a key of this host is recorded."""
        return bool(self._keys or self._authorities)

    def _refuse_changed(self, what: str, *, remove: bool = True) -> bool:
        advice = (
            f"somebody may be in between; if the host was set up anew, remove the old key with: "
            f"ssh-keygen -f {shlex.quote(self._path)} -R '{self._name}'"
            if remove
            else "do not connect before its administrator has given it a new one"
        )
        self.refusal = HostKeyChangedError(f"the host's key {what} in {self._path}; {advice}", host=self._host)
        return False

    def _load(self) -> asyncssh.SSHKnownHosts | None:
        try:
            return _parsed(Path(self._path).expanduser().read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ControllerError(
                "host.config", f"{self._path} cannot be read as known_hosts: {reason(error)}; mend it", host=self._host
            ) from None

    def _record(self, key: asyncssh.SSHKey) -> bool:
        """Appends the key, unless another process has recorded one in the meantime: then that one decides."""
        try:
            folder = os.path.dirname(os.path.abspath(self._path))
            with contextlib.suppress(FileExistsError):
                os.makedirs(folder, mode=0o700)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._keys, self._authorities, _ = _matches(self._load(), self._name)
                if self.has_record():
                    return key in self._keys or self._refuse_changed(f"is {key.get_fingerprint()} and not the one")
                content = file.read()
                algorithm, encoded = key.export_public_key("openssh").split()[:2]
                line = b" ".join((self._name.encode(), algorithm, encoded)) + b"\n"
                file.write(line if content.endswith(b"\n") or not content else b"\n" + line)
        except OSError as error:
            self.refusal = HostKeyUnknownError(
                f"the host's new key could not be recorded in {self._path} ({error.strerror}); name another file with "
                "--known-hosts",
                host=self._host,
            )
            return False
        return True


@functools.lru_cache(maxsize=2)
def _parsed(content: str) -> asyncssh.SSHKnownHosts:
    """What a file says. It is read for every connection, and taken apart only when it says something else than before.

    With 200 hosts, taking it apart twice a connection was a third of all that a fan-out cost here. Raises ValueError.
    """
    return asyncssh.import_known_hosts(content)


def _matches(
    known: asyncssh.SSHKnownHosts | None, name: str
) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
    """Keys, authorities and revoked keys recorded under a name, which carries its port.

    asyncssh's own port argument falls back to entries without one, and then a key recorded for port 22 would make
    another machine's key behind a forwarded port a changed one.
    """
    if known is None:
        return [], [], []
    keys, authorities, revoked, *_ = known.match(name, "", None)
    return list(keys), list(authorities), list(revoked)


def _name(host: str, port: int | None) -> str:
    """The host as known_hosts spells it, in lower case: `host`, or `[host]:port` for any port but 22."""
    host = host.lower()
    return host if port in (None, DEFAULT_PORT) else f"[{host}]:{port}"
