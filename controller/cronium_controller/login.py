"""Getting in: the host's key, our keys and what the host says to them, for one SSH connection.

asyncssh asks the `LoginClient` of a connection; `Login.failure` says whether an error of asyncssh is a refusal, which
is final, and tells it with the host's own words. Errors of the network are `connection`'s.
"""

from collections.abc import Callable
from typing import Any, Final

from cronium_runner.wire.text import last_words

from .access import HostKeyPolicy
from .errors import AuthenticationError, ControllerError, UnreachableError, reason
from .hostkeys import HostKeyCheck
from .identities import Identities
from .key_files import MISSING, Passphrase
from .ssh_library import asyncssh
from .ssh_settings import SSHSettings

_CLOSED: Final = "Connection lost"
"""What asyncssh says where the other end closed the connection in order; a reset is an OSError."""
_KEPT_BANNER: Final = 16 * 1024
"""Characters of what a host says before we are in."""


class Login:
    """One attempt. `identity` is the path that --identity names; `policy` and `known_hosts` are options of ours."""

    def __init__(
        self,
        settings: SSHSettings,
        warn: Callable[[str], None],
        *,
        host: str,
        identity: str | None = None,
        policy: HostKeyPolicy | None = None,
        known_hosts: str | None = None,
        passphrase: Passphrase | None = None,
    ) -> None:
        self.check = HostKeyCheck(settings, warn, host=host, policy=policy, path=known_hosts)
        self._identities = Identities(settings, passphrase)
        self._settings = settings
        self._warn = warn
        self._host = host
        self._identity = identity
        self._has_begun = False
        self._banner = ""

    async def prepare(self, seconds: float) -> None:
        """Finds our keys. Raises ControllerError where one was named that cannot be used, and there is no other."""
        await self._identities.prepare(seconds)
        if self._identity is not None and self._identity not in self._settings.identity_files:
            self._identities.skipped[self._identity] = MISSING
        if self._identity is not None and self._identities.is_empty() and self._identities.skipped:
            told = "; ".join(f"{path} {why}" for path, why in self._identities.skipped.items())
            raise ControllerError(
                "host.config",
                f"there is no key to offer: {told}; give another with --identity, or use ssh-agent",
                host=self._host,
            )
        warning = self._identities.new_warning()
        if warning is not None:
            self._warn(warning)

    def options(self) -> dict[str, Any]:
        """Options of `asyncssh.connect`: it reads no file of keys or hosts and asks no agent by itself."""
        return {
            "known_hosts": _no_keys,
            "server_host_key_algs": self.check.algorithms(),
            "x509_trusted_certs": None,
            "client_keys": None,
            "preferred_auth": self._settings.preferred_authentications or (),
            "public_key_auth": self._settings.pubkey_authentication,
            "password_auth": self._settings.password_authentication,
            "kbdint_auth": self._settings.keyboard_interactive_authentication,
            "utf8_decode_errors": "surrogateescape",
        }

    def following_key(self) -> asyncssh.SSHKeyPair | None:
        """The next key to offer: the host has answered, so what it says from now on is about our authentication."""
        self._has_begun = True
        return self._identities.following()

    def hear(self, banner: str) -> None:
        """Keeps what the host says before we are in."""
        self._banner = (self._banner + banner)[-_KEPT_BANNER:]

    def close(self) -> None:
        """Ends it, whether we got in or not."""
        self._identities.close()
        if (warning := self._identities.new_warning()) is not None:
            self._warn(warning)

    def failure(self, error: Exception) -> UnreachableError | None:
        """The refusal that an error of asyncssh is; None for any other."""
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return self.check.explain(reason(error))
        if isinstance(error, asyncssh.PermissionDenied):
            return self._refused(reason(error))
        if isinstance(error, asyncssh.ConnectionLost):
            # As sshd does for an account that PAM lets in no further: expired, or a nologin file.
            is_refusal = self._identities.has_signed and error.reason == _CLOSED
            return self._refused("it closed the connection") if is_refusal else None
        if isinstance(error, asyncssh.DisconnectError) and self._has_begun:
            return self._refused(reason(error))
        return None

    def _refused(self, why: str) -> AuthenticationError:
        said = last_words(self._banner)
        parts = [
            f"the host refused our authentication ({why})",
            *([f"it said: {said}"] if said else []),
            *(f"{path} {words}" for path, words in self._identities.skipped.items()),
            "check the user and offer a key with --identity",
        ]
        return AuthenticationError("host.auth_failed", "; ".join(parts), host=self._host)


class LoginClient(asyncssh.SSHClient):
    """What asyncssh asks and tells while we get in."""

    def __init__(self, login: Login) -> None:
        self._login = login

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """The host's key is decided about by us alone."""
        conn.validate_server_host_key = self._login.check.validate  # type: ignore[method-assign]

    def auth_banner_received(self, msg: str, lang: str) -> None:
        """What the host says to everybody, or to us, before we are in."""
        del lang
        self._login.hear(msg)

    def public_key_auth_requested(self) -> asyncssh.SSHKeyPair | None:
        """The next key."""
        return self._login.following_key()


def _no_keys(_host: str, _address: str, _port: int | None) -> tuple[list[Any], list[Any], list[Any]]:
    return [], [], []
