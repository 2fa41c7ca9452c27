"""What `ssh` writes to standard error where a call of ours fails: programs written for it look for these words.

Pure text: our own sentence, which says more, stands before it in `SSHResult.stderr`.
"""

import re
from typing import Final

from .errors import AuthenticationError, ControllerError, HostKeyError, UnreachableError
from .hosts import Host

_PORT: Final = 22
_UNRESOLVED: Final = re.compile(
    r"Name or service not known|[Nn]ame resolution|No address associated with hostname|nodename nor servname"
)
_REASONS: Final = re.compile(r"Connection refused|No route to host|Network is unreachable|Connection reset by peer")
_SLOW: Final = re.compile(r"no answer|[Tt]imed? ?out|expired|within [0-9.]+ s")


def words(error: ControllerError, host: Host) -> str | None:
    """What `ssh` would say of this error, in one line; None where it knows no such failure."""
    if isinstance(error, HostKeyError):
        return "Host key verification failed."
    if isinstance(error, AuthenticationError):
        account = f"{host.user}@{host.address}" if host.user else host.address
        return f"{account}: Permission denied (publickey)."
    if error.code == "channel.lost":
        return f"Connection to {host.address} closed by remote host."
    if not isinstance(error, UnreachableError) or error.code != "host.unreachable":
        return None
    if _UNRESOLVED.search(error.message):
        return f"ssh: Could not resolve hostname {host.address}: Name or service not known"
    reason = _REASONS.search(error.message)
    if reason is None and not _SLOW.search(error.message):
        return None
    why = "Connection timed out" if reason is None else reason.group()
    return f"ssh: connect to host {host.address} port {host.port or _PORT}: {why}"
