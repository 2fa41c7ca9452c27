"""The settings of one host, from what the configuration sets: tokens and defaults filled in, names checked.

The same for what `ssh -G` prints and for what our own reader finds.
"""

import fnmatch
import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Final

from . import host_names
from .errors import ControllerError
from .ssh_lines import home, port_of, tilde
from .ssh_reader import Asked, Survey, Values
from .ssh_settings import ASK_AGENT, SSHSettings
from .ssh_tokens import Tokens, local_user

DEFAULT_IDENTITIES: Final = tuple(
    f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ecdsa_sk", "ed25519", "ed25519_sk", "xmss", "dsa")
)
_USER_KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_GLOBAL_KNOWN_HOSTS: Final = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LOCALE: Final = ("LANG", "LANGUAGE", "LC_*")
"""Not sent to a host though many systems' ssh_config asks for it: a script's locale is that of its host."""
_YES: Final = ("yes", "true")
_NO: Final = ("no", "false")


def settings_of(asked: Asked, values: Values, found: Survey) -> SSHSettings:
    """What the values mean for a host. Raises ControllerError (`host.config`)."""

    first = {keyword: told[0] for keyword, told in values.items() if told and told[0].lower() not in ("", "none")}
    one = first.get

    def mentioned(keyword: str) -> str | None:
        return one(keyword) if keyword in found.mentioned else None

    def is_on(keyword: str) -> bool:
        return first.get(keyword, "no").lower() in _YES

    port, user = asked.port or port_of(one("port") or "22") or 22, asked.user or one("user") or local_user()
    host, alias = one("hostname") or asked.name.lower(), one("hostkeyalias")
    alias = None if alias is None else alias.lower()  # as ssh does, which looks names up and records them like that
    _refuse(host, "HostName", host_names.wrong_with_host, asked)
    _refuse(user, "User", host_names.wrong_with_user, asked)
    tokens = Tokens.of_connection(asked.name, host, str(port), user, alias)
    folder = home()

    def paths(keyword: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        written = tuple(values.get(keyword) or default)
        if not written:
            return ()
        together = "".join(written)
        if "%" not in together and "${" not in together:
            return _absolute(written, folder, "/" if _are_anchored(written) else os.getcwd())
        return _absolute(tuple(map(tokens.replaced_all, written)), folder, os.getcwd())

    identities = values.get("identityfile") or list(DEFAULT_IDENTITIES)
    are_named = "identityfile" in found.mentioned and identities != list(DEFAULT_IDENTITIES)
    revoked = paths("revokedhostkeys")
    command, jump = one("proxycommand"), one("proxyjump")
    if "proxyusefdpass" in found.mentioned and command is not None and is_on("proxyusefdpass"):
        raise ControllerError(
            "host.config",
            "the SSH configuration asks for ProxyUseFdpass, which only ssh itself can do; use --connection openssh",
            host=asked.name,
        )
    carried = tokens.only("hknpr")
    return SSHSettings(
        host_name=host,
        port=port,
        user=user,
        host_key_alias=alias,
        user_known_hosts_files=paths("userknownhostsfile", _USER_KNOWN_HOSTS),
        global_known_hosts_files=paths("globalknownhostsfile", _GLOBAL_KNOWN_HOSTS),
        revoked_host_keys=revoked[0] if revoked else None,
        strict_host_key_checking=_strictness((one("stricthostkeychecking") or "ask").lower()),
        hash_known_hosts=is_on("hashknownhosts"),
        identity_files=paths("identityfile", identities),
        are_identities_named=are_named,
        certificate_files=paths("certificatefile"),
        identities_only=is_on("identitiesonly"),
        identity_agent=_agent(values, tokens, folder),
        proxy_command=None if command is None or jump is not None else carried.replaced(command),
        proxy_jump=None if jump is None else carried.replaced(jump),
        address_family=(one("addressfamily") or "any").lower(),
        bind_address=one("bindaddress"),
        connect_timeout=_seconds(one("connecttimeout"), asked),
        ciphers=mentioned("ciphers"),
        macs=mentioned("macs"),
        key_exchanges=mentioned("kexalgorithms"),
        host_key_algorithms=mentioned("hostkeyalgorithms"),
        preferred_authentications=tuple(filter(None, (one("preferredauthentications") or "").split(","))),
        pubkey_authentication=one("pubkeyauthentication") not in _NO,
        password_authentication=one("passwordauthentication") not in _NO,
        keyboard_interactive_authentication=one("kbdinteractiveauthentication") not in _NO,
        compression=is_on("compression"),
        forward_agent=_forwarded(one("forwardagent")),
        set_environment=tuple(values.get("setenv", [])),
        send_environment=tuple(values.get("sendenv", [])),
    )


@functools.lru_cache(maxsize=64)
def _are_anchored(written: tuple[str, ...]) -> bool:
    """Whether none of the paths depends on the working directory."""
    return all(text[:1] in "/~" for text in written)


@functools.lru_cache(maxsize=64)
def _absolute(written: tuple[str, ...], folder: str, here: str) -> tuple[str, ...]:
    """Paths below the working directory `here`; the same for most of many hosts."""
    named = [text for text in written if text.lower() != "none"]
    return tuple(os.path.normpath(os.path.join(here, tilde(text, folder))) for text in named)


def sent(patterns: Sequence[str]) -> list[str]:
    """The variables of our environment that SendEnv sends to the host."""
    names: list[str] = []
    for pattern in patterns:
        if pattern in _LOCALE:
            continue
        if pattern.startswith("-"):
            names = [name for name in names if not fnmatch.fnmatchcase(name, pattern[1:])]
        else:
            names += [name for name in os.environ if fnmatch.fnmatchcase(name, pattern) and name not in names]
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _LOCALE)]


def _strictness(value: str) -> str:
    return {"true": "yes", "no": "off", "false": "off"}.get(value, value)


def _agent(values: Values, tokens: Tokens, folder: str) -> str | None:
    written = (values.get("identityagent") or [ASK_AGENT])[0]
    if written == ASK_AGENT:
        return ASK_AGENT
    if written.lower() == "none":
        return None
    if written.startswith("$") and not written.startswith("${"):
        return os.environ.get(written[1:]) or None
    return os.path.abspath(tilde(tokens.replaced_all(written), folder))


def _forwarded(written: str | None) -> str | None:
    if written is None or written.lower() in _NO:
        return None
    if written.lower() in _YES:
        return ASK_AGENT
    return os.environ.get(written[1:]) or None if written.startswith("$") else written


def _seconds(written: str | None, asked: Asked) -> float | None:
    """A time as ssh_config(5) writes it: seconds, or 1m30s. 0 is none."""
    if written is None:
        return None
    parts = re.findall(r"([0-9]+)([smhdw]?)", written.lower())
    if "".join(number + unit for number, unit in parts) != written.lower():
        raise ControllerError(
            "host.config",
            f"the SSH configuration has the ConnectTimeout {written!r}, which is no time",
            host=asked.name,
        )
    return sum(int(number) * _UNITS[unit] for number, unit in parts) or None


def _refuse(value: str, keyword: str, wrong_with: Callable[[str], str | None], asked: Asked) -> None:
    wrong = wrong_with(value)
    if wrong is not None:
        raise ControllerError(
            "host.config", f"the SSH configuration has the {keyword} {value!r}: {wrong}; correct it", host=asked.name
        )
