"""Which names of hosts and users may be used: OpenSSH's own rules, for every name before it is used anywhere.

A name ends in a ProxyCommand (%h, %n, %r), in argument vectors, in known_hosts and on screens. The rules are those of
`valid_hostname` and `valid_ruser` in OpenSSH's ssh.c since 9.6 (CVE-2023-51385), with control characters in user names
refused as since 10.1 (CVE-2025-61984); its ProxyJump parser applies them to jump hosts. Beyond them invisible
characters are refused, as a person can't see what such a name is. `hosts.Host` is the gate that calls this.
"""

import re
from typing import Final

LONGEST: Final = 1024
"""Characters: NI_MAXHOST, and more than any name has."""
_IN_NO_HOST: Final = re.compile(r"""['`"$\\;&<>|(){},\s\x00-\x1f\x7f]""")
_IN_NO_USER: Final = re.compile(r"""['`";&<>|(){}\x00-\x1f\x7f]|[ ](?=-)|\\\Z""")


def wrong_with_host(name: str) -> str | None:
    """What makes OpenSSH refuse the name or address of a host, as the end of a sentence; None when nothing does."""
    return _wrong(name, _IN_NO_HOST)


def wrong_with_user(name: str) -> str | None:
    """The same of the name of a user on a host."""
    return _wrong(name, _IN_NO_USER)


def wrong_with_label(name: str) -> str | None:
    """The same of what a host is called here: it is only shown."""
    return _wrong(name, _NOTHING)


_NOTHING: Final = re.compile(r"(?!)")


def _wrong(name: str, refused: re.Pattern[str]) -> str | None:
    if len(name) > LONGEST:
        return f"it is longer than {LONGEST} characters"
    if name.startswith("-") and refused is not _NOTHING:
        return "it begins with '-', as ssh's options do"
    found = refused.search(name)
    if found is not None:
        return f"it has {found.group()!r}, which ssh refuses"
    if name.isascii() and name.isprintable() and "\\" not in name:
        return None  # most names, and those of this machine at the start of every command
    from cronium_runner.wire.text import visible

    return None if visible(name) == name else "it has an invisible character"
