"""What `ssh` says when it fails, as errors of ours with the same codes as for connections by asyncssh.

ssh has one exit status (255) for all of it, so its words decide. They are those of OpenSSH 7 to 10, which does not
translate them.
"""

import re
from typing import Final

from cronium_runner.wire.text import clean

from .errors import (
    AuthenticationError,
    ControllerError,
    HostKeyChangedError,
    HostKeyUnknownError,
    UnreachableError,
)
from .hosts import Host

_SHOWN: Final = 600
"""Characters of ssh's words in an error: a banner's end, and the reason behind it."""
_CHANGED: Final = ("REMOTE HOST IDENTIFICATION HAS CHANGED", "REVOKED HOST KEY", "is marked as revoked")
_UNKNOWN: Final = ("Host key verification failed", "host key is known for", "differs from the key for the IP address")
_REFUSED: Final = (
    "Permission denied", "Too many authentication failures", "No more authentication methods",
    "no mutual signature", "Authentication failed", "we did not send a packet, disable method",
)  # fmt: skip
_CONFIGURATION: Final = (
    "Bad configuration option", "terminating, ", "Bad owner or permissions on", "configuration requires",
    "command-line line ", "Can't open user config file", "Unsupported option", "Missing argument", "Bad yes/no",
    "keyword ", "Include ", "no argument after keyword",
)  # fmt: skip
_UNRESOLVED: Final = "Could not resolve hostname"
_KEY: Final = re.compile(r'Load key "([^"\r\n]*)": ([^\r\n]*)')
_NOISE: Final = re.compile(r"@{5,}|Warning: Permanently added |It is also possible that a host key|Someone could be")


def failure(said: bytes, host: Host) -> ControllerError:
    """The error for an `ssh` that ended with 255, and wrote `said`."""
    text = said.decode("utf-8", "replace")
    words = _words(text)
    if any(sign in text for sign in _CHANGED):
        return HostKeyChangedError(
            f"the host's key is not the one in known_hosts, or is revoked ({words}); the connection may be "
            "intercepted; if the host was set up anew, remove the old key with ssh-keygen -R",
            host=host.name,
        )
    if any(sign in text for sign in _UNKNOWN):
        return HostKeyUnknownError(
            f"the host's key is not in known_hosts and unknown keys are refused ({words}); compare it with the host's "
            "own and add it",
            host=host.name,
        )
    unusable = _KEY.search(text)
    if unusable is not None and host.identity is not None and "Permission denied" in text:
        sentence = f"the private key cannot be used: {unusable[1]}: {unusable[2]}; give another with --identity"
        return ControllerError("host.config", sentence, host=host.name)
    if any(sign in text for sign in _REFUSED):
        return AuthenticationError(
            "host.auth_failed",
            f"the host refused our authentication ({words}); check the user and offer a key with --identity",
            host=host.name,
        )
    if any(sign in text for sign in _CONFIGURATION):
        sentence = f"ssh cannot use its configuration: {words}; correct it"
        return ControllerError("host.config", sentence, host=host.name)
    advice = (
        "check the name; one of your hosts file is given with --on"
        if _UNRESOLVED in text
        else "check the address, and that SSH answers there"
    )
    return UnreachableError("host.unreachable", f"cannot connect to {host.address}: {words}; {advice}", host=host.name)


def has_words(said: bytes) -> bool:
    """Whether ssh has said something else than that it has recorded a key."""
    return bool(_told(said.decode("utf-8", "replace")))


def leads_no_further(said: bytes) -> bool:
    """Whether a jump host was reached, and could not connect to what is behind it."""
    return b"stdio forwarding failed" in said


def warnings(said: bytes) -> list[str]:
    """What ssh says of a connection that it has made, and a person should know."""
    lines = said.decode("utf-8", "replace").splitlines()
    return [clean(line) for line in lines if line.startswith(("Failed to add the host", "Failed to update"))]


def _words(text: str) -> str:
    """The end of what ssh has said, in one line."""
    return clean(_told(text)[-_SHOWN:], _SHOWN) or "ssh ended without a word"


def _told(text: str) -> str:
    lines = [line.strip().removeprefix("ssh: ") for line in text.splitlines()]
    return "; ".join(line.rstrip(".") for line in lines if line and not _NOISE.search(line))
