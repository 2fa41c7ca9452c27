"""Which jump hosts stand in front of a host: its ProxyJump, with those in front of the jump hosts themselves.

`ProxyJump a,b` is a chain, and `a` may have a ProxyJump or a ProxyCommand of its own; those of `b` don't count, as for
OpenSSH. asyncssh could connect to all of them by itself; it would check their keys against another file than the
host's, name none of them in its errors, and leave those open behind which a connection fails. So `connection` goes
along this list.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from .errors import ControllerError
from .hosts import Host, parse_host

_LONGEST: Final = 16
"""Jump hosts of one host: more than anybody has, few enough to be listed in an error."""


class Configured(Protocol):
    """The settings of a host."""

    @property
    def proxy_jump(self) -> str | None: ...


Settings = TypeVar("Settings", bound=Configured)


class Jump(NamedTuple, Generic[Settings]):
    """One jump host and its own settings, the ProxyJump excepted."""

    host: Host
    settings: Settings


async def jumps(
    host: Host, settings: Settings, settings_of: Callable[[Host], Awaitable[Settings]]
) -> list[Jump[Settings]]:
    """The jump hosts of a host with these settings, in the order in which they are connected to.

    Raises ControllerError for what can't be one, and for a chain that has no end.
    """
    if settings.proxy_jump is None:
        return []
    return await _Reader(host.name, settings_of).before(host, settings.proxy_jump, ())


@dataclass(frozen=True, slots=True)
class _Reader(Generic[Settings]):
    """For one host, which errors name."""

    name: str
    settings_of: Callable[[Host], Awaitable[Settings]]

    async def before(self, host: Host, written: str, behind: tuple[str, ...]) -> list[Jump[Settings]]:
        """What stands in front of `host`, whose ProxyJump is given and which stands in front of those `behind`."""
        behind = (*behind, _spelled(host))
        chain = [self._jump(text) for text in written.split(",")]
        if _spelled(chain[0]) in behind or len(behind) + len(chain) > _LONGEST:
            shown, advice = " -> ".join((*behind, _spelled(chain[0]))), f"Host * !{chain[0].address}"
            raise self._mistake(f"leads in a circle ({shown}); leave the jump host out of its own block: {advice}")
        first, *others = [Jump(jump, await self.settings_of(jump)) for jump in chain]
        jump = first.settings.proxy_jump
        return [*([] if jump is None else await self.before(first.host, jump, behind)), first, *others]

    def _jump(self, text: str) -> Host:
        try:
            return parse_host(text.strip().removeprefix("ssh://"))
        except ControllerError as error:
            raise self._mistake(f"has a ProxyJump of which {error.message}") from None

    def _mistake(self, sentence: str) -> ControllerError:
        return ControllerError("host.config", f"the SSH configuration {sentence}", host=self.name)


def _spelled(host: Host) -> str:
    user = f"{host.user}@" if host.user else ""
    return f"{user}{host.address}{f':{host.port}' if host.port else ''}"
