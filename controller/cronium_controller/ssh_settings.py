"""What OpenSSH's configuration says about one host, as values: no file is read and no program is run here.

Every field has the meaning of the keyword in ssh_config(5), with tokens expanded and defaults filled in.
"""

from dataclasses import dataclass
from typing import Final

ASK_AGENT: Final = "SSH_AUTH_SOCK"


@dataclass(frozen=True, slots=True)
class SSHSettings:
    """The resolved settings of one host. Paths are absolute; an empty tuple or None means that there is none."""

    host_name: str
    """HostName: what is connected to."""
    port: int
    user: str
    host_key_alias: str | None = None
    """HostKeyAlias: the name of the host in known_hosts files, in lower case and without a port."""
    user_known_hosts_files: tuple[str, ...] = ()
    """UserKnownHostsFile: a new key is recorded in the first."""
    global_known_hosts_files: tuple[str, ...] = ()
    revoked_host_keys: str | None = None
    """RevokedHostKeys: a file of public keys, one a line, or a key revocation list."""
    strict_host_key_checking: str = "ask"
    """StrictHostKeyChecking: `yes`, `accept-new`, `ask`, or `off`, which is also said for `no`."""
    hash_known_hosts: bool = False
    identity_files: tuple[str, ...] = ()
    """IdentityFile in order, also those that do not exist."""
    are_identities_named: bool = False
    """Whether the configuration names identity files; if not they are OpenSSH's defaults."""
    certificate_files: tuple[str, ...] = ()
    identities_only: bool = False
    identity_agent: str | None = ASK_AGENT
    """IdentityAgent: the path of a socket, ASK_AGENT for the one of that environment variable, None for no agent."""
    proxy_command: str | None = None
    """ProxyCommand with its tokens expanded, for the user's shell."""
    proxy_jump: str | None = None
    """ProxyJump as it is written; None also for `none`, and where a ProxyCommand came first."""
    address_family: str = "any"
    """AddressFamily: `any`, `inet` or `inet6`."""
    bind_address: str | None = None
    connect_timeout: float | None = None
    """ConnectTimeout in seconds."""
    ciphers: str | None = None
    """Ciphers, None where the configuration does not mention it; so are the three that follow."""
    macs: str | None = None
    key_exchanges: str | None = None
    host_key_algorithms: str | None = None
    preferred_authentications: tuple[str, ...] = ()
    pubkey_authentication: bool = True
    password_authentication: bool = True
    keyboard_interactive_authentication: bool = True
    compression: bool = False
    forward_agent: str | None = None
    """ForwardAgent: as `identity_agent`."""
    set_environment: tuple[str, ...] = ()
    """SetEnv: each `NAME=value`."""
    send_environment: tuple[str, ...] = ()
    """SendEnv: patterns of names; those behind `-` are left out again."""
