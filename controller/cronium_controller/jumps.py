"""Which jump hosts stand in front of a host: what ~/.ssh/config says, with those in front of the jump hosts themselves.

`ProxyJump a,b` is a chain, and `a` may have a ProxyJump of its own; that of `b` doesn't count, as for OpenSSH. asyncssh
could connect to all of them by itself; it would check their keys against another file than the host's, name none of
them in its errors, and leave those open behind which a connection fails. So `connection` goes along this list.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from .errors import ControllerError
from .hosts import Host, parse_host
from .ssh_config import may_mention
from .ssh_library import asyncssh

_LONGEST: Final = 16
"""Jump hosts of one host: more than anybody has, few enough to be listed in an error."""


async def jumps(host: Host) -> list[Host]:
    """The jump hosts of a host, in the order in which they are connected to.

    Raises ControllerError for what can't be one, and for a chain that has no end.
    """
    if not may_mention("proxyjump"):
        return []
    return await asyncio.to_thread(_Reader(host.name).before, host, ())  # reads files, and `Match exec` runs programs


@dataclass(frozen=True, slots=True)
class _Reader:
    """For one host, which errors name."""

    name: str

    def before(self, host: Host, behind: tuple[str, ...]) -> list[Host]:
        """What stands in front of `host`, which stands in front of those `behind`."""
        behind = (*behind, _spelled(host))
        written = self._written(host)
        if not written:
            return []
        chain = [self._jump(text) for text in written.split(",")]
        if _spelled(chain[0]) in behind or len(behind) + len(chain) > _LONGEST:
            shown, advice = " -> ".join((*behind, _spelled(chain[0]))), f"Host * !{chain[0].address}"
            raise self._mistake(f"leads in a circle ({shown}); leave the jump host out of its own block: {advice}")
        return [*self.before(chain[0], behind), *chain]

    def _written(self, host: Host) -> str:
        options: dict[str, Any] = {} if host.port is None else {"port": host.port}
        if host.user is not None:
            options["username"] = host.user
        try:
            # Without keys and an agent: they are of no interest here, and take the most time.
            found = asyncssh.SSHClientConnectionOptions(
                host=host.address, config=(), known_hosts=None, client_keys=None, agent_path=None, **options
            )
        except asyncssh.ConfigParseError as error:
            raise self._mistake(f"cannot be used: {error}; mend it") from None
        return found.tunnel if isinstance(found.tunnel, str) else ""

    def _jump(self, text: str) -> Host:
        try:
            return parse_host(text.strip().removeprefix("ssh://"))
        except ControllerError as error:
            raise self._mistake(f"has a ProxyJump of which {error.message}") from None

    def _mistake(self, sentence: str) -> ControllerError:
        return ControllerError("host.config", f"~/.ssh/config {sentence}", host=self.name)


def _spelled(host: Host) -> str:
    user = f"{host.user}@" if host.user else ""
    return f"{user}{host.address}{f':{host.port}' if host.port else ''}"
