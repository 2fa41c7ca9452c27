"""What can go wrong between the operator and a host. Each error says what happened, where, and what to do about it.

Every message is one line without controls, whatever was put into it. Exceptions of asyncssh, the operating system and
the database are translated once, where they arise; nothing above `connection`, `channel`, `install` and `store` ever
sees them. `cli` alone turns these into exit statuses.
"""

import os
import re
from typing import Final, Self

from cronium_runner.wire.codes import CODES
from cronium_runner.wire.results import EXIT_RUNNER_FAILED, EXIT_UNREACHABLE

LONGEST_MESSAGE: Final = 4000
"""Characters: several routes or jump hosts, each with its own words, in one sentence."""


def _clean(message: str) -> str:
    from cronium_runner.wire.text import clean  # seldom needed: commands import this module when they start

    return clean(message, LONGEST_MESSAGE)


class ControllerError(Exception):
    """`code` is one of `wire.codes.CODES`; `host` is the host's name, or None when none was involved.

    `phase` is what was being done, for a program or a log line that tells failures apart by it.
    """

    exit_status = EXIT_RUNNER_FAILED
    phase = "prepare"

    def __init__(self, code: str, message: str, *, host: str | None = None) -> None:
        assert code in CODES, f"unlisted error code {code!r}"
        self.message = _clean(message if host is None else f"{host}: {message}")
        super().__init__(self.message)
        self.code = code
        self.host = host

    def about(self, host: str, before: str = "") -> Self:
        """The same of a host as it was asked for, or of one behind this one; `before` stands in front of the reason."""
        again = type(self).__new__(type(self))
        again.__dict__.update(self.__dict__)
        sentence = self.message if self.host is None else self.message.removeprefix(f"{self.host}: ")
        again.message, again.host = _clean(f"{host}: {before}{sentence}"), host
        again.args = (again.message,)
        return again


class UnreachableError(ControllerError):
    """No usable connection to the host, so nothing was started there."""

    exit_status = EXIT_UNREACHABLE
    phase = "connect"


class HostKeyError(UnreachableError):
    """The host's key is not the one we know, or not one we may accept. Final: nothing was sent."""

    phase = "host key"


class HostKeyChangedError(HostKeyError):
    """The host's key is not the recorded one, or is marked as revoked."""

    def __init__(self, message: str, *, host: str | None = None) -> None:
        super().__init__("host.key_changed", message, host=host)


class HostKeyUnknownError(HostKeyError):
    """The host's key is not recorded, and the policy or the file doesn't let us record it."""

    def __init__(self, message: str, *, host: str | None = None) -> None:
        super().__init__("host.key_unknown", message, host=host)


class AuthenticationError(UnreachableError):
    """The host refused us. Final: trying again gets an address banned."""

    phase = "authentication"


class LoginShellError(UnreachableError):
    """What the account's login shell prints before a command has no end. Final: it would print that again."""

    phase = "login shell"

    def __init__(self, message: str, *, host: str | None = None) -> None:
        super().__init__("host.login_shell", message, host=host)


class DeployError(ControllerError):
    """The runner could not be put on the host, or doesn't start there."""

    phase = "deploy"

    def as_final(self) -> "FinalDeployError":
        """The same, and not to be tried again."""
        final = FinalDeployError(self.code, self.message)
        final.host = self.host
        return final


class FinalDeployError(DeployError):
    """Another attempt would end the same way."""


class ChannelLostError(ControllerError):
    """The agent's channel ended. What has happened on the host since is unknown, never failed or succeeded."""

    exit_status = EXIT_UNREACHABLE
    phase = "channel"

    def __init__(self, message: str, *, host: str | None = None, code: str = "channel.lost") -> None:
        super().__init__(code, message, host=host)


class RefusedError(ControllerError):
    """The agent refused a request. Nothing was started by it."""

    phase = "request"


class TunnelError(ControllerError):
    """There is no way from the host to the runtime API here. Nothing was started."""

    phase = "tunnel"


class PayloadError(ControllerError):
    """The script, directory or payload cannot be made into a payload."""


class StoreError(ControllerError):
    """The controller's database cannot be used."""

    def __init__(self, message: str) -> None:
        super().__init__("store.unusable", message)


def reason(error: BaseException) -> str:
    """What an exception says, without its class, in one line; never empty.

    A server chooses the words of some of them, also of one that is not yet known to be the right one.
    """
    from cronium_runner.wire.text import LONGEST_WORDS, clean

    return clean(_said(error), LONGEST_WORDS) or type(error).__name__


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    if isinstance(error, OSError):
        # asyncio tries every address of a name, and puts addresses and error numbers where the reason should be.
        numbers = [error.errno or 0] if error.errno else map(int, re.findall(r"\[Errno (\d+)\]", str(error)))
        told = dict.fromkeys(os.strerror(number) for number in numbers if number > 0)  # a resolver's is negative
        said = ", ".join(told) or error.strerror
        if said:
            return said
    return str(getattr(error, "reason", "") or error)
