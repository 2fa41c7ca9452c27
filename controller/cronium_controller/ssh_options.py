"""What asyncssh is told of the settings of a host: algorithms, compression, environment. It reads no file by itself.

Authentication and the host's key are `login`'s.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from .errors import ControllerError
from .ssh_library import asyncssh
from .ssh_lines import matcher
from .ssh_settings import ASK_AGENT, SSHSettings
from .ssh_values import sent

_CIPHERS: Final = "^aes256-gcm@openssh.com,aes128-gcm@openssh.com"
"""Before asyncssh's own: one call of OpenSSL for a packet, where it puts chacha20-poly1305 together from six (0018)."""
_KNOWN: Final[dict[str, Callable[[], Iterable[bytes]]]] = {
    "encryption_algs": asyncssh.encryption.get_encryption_algs,
    "mac_algs": asyncssh.mac.get_mac_algs,
    "kex_algs": asyncssh.kex.get_kex_algs,
}


def options_of(settings: SSHSettings, name: str) -> dict[str, Any]:
    """Options of `asyncssh.connect`. Raises ControllerError when none of the algorithms that are asked for is known."""
    options: dict[str, Any] = {
        "config": None,
        "port": settings.port,
        "username": settings.user,
        "encryption_algs": _CIPHERS,
        "env": dict(setting.split("=", 1) for setting in settings.set_environment if "=" in setting) or None,
        "send_env": sent(settings.send_environment) or None,
    }
    for option, written in (
        ("encryption_algs", settings.ciphers),
        ("mac_algs", settings.macs),
        ("kex_algs", settings.key_exchanges),
    ):
        if written is not None:
            options[option] = _known(option, written, name)
    if settings.compression:
        options["compression_algs"] = "zlib@openssh.com,zlib,none"
    if settings.forward_agent is not None:
        options["agent_forwarding"] = settings.forward_agent if settings.forward_agent != ASK_AGENT else True
    return options


def _known(option: str, written: str, name: str) -> str:
    """A list of algorithms without those that asyncssh doesn't have, which it would refuse."""
    prefix = written[:1] if written[:1] in "+-^" else ""
    possible = [algorithm.decode() for algorithm in _KNOWN[option]()]
    words = written.removeprefix(prefix).split(",")
    known = [word for word in words if any(map(matcher(word), possible))]
    if known:
        return prefix + ",".join(known)
    if prefix:
        return "default"
    raise ControllerError(
        "host.config",
        f"none of the algorithms {written!r} that the SSH configuration asks for can be used here; add others",
        host=name,
    )
