"""The settings that OpenSSH's configuration gives a host: the one place where they are asked for.

Where nothing in the files can change what matters here, our own reader says so and no program is run. Else `ssh -G` is
asked (`ssh_asking`), and where that is not possible our reader decides everything (`ssh_reader`).
"""

import asyncio
import os
from dataclasses import replace

from .errors import ControllerError
from .hosts import Host
from .ssh_asking import CannotAskError, ask, program
from .ssh_lines import home, is_home_of_account, load, tilde
from .ssh_reader import Asked, Values, read, survey
from .ssh_settings import SSHSettings
from .ssh_values import settings_of


async def ssh_settings_of(host: Host) -> SSHSettings:
    """The settings of a host, with its own port, user and identity in place of the configuration's.

    Raises ControllerError (`host.config`) where OpenSSH would refuse its configuration.
    """
    asked = Asked(host.address, host.port, host.user)
    configuration = load()
    found = survey(configuration, asked)
    settings = settings_of(asked, found.values if found.is_simple else await _values(asked, found.is_lasting), found)
    identity = identity_path(host)
    if identity is None or not os.path.exists(identity):  # as `ssh -i`, which then goes on as without
        return settings
    named = settings.identity_files if settings.are_identities_named else ()
    files = (identity, *(file for file in named if file != identity))
    return replace(settings, identity_files=files, are_identities_named=True)


async def told_by_ssh(ssh: str, host: Host) -> Values:
    """What `ssh -G` says of a host: for connections by that program, whose configuration is not read here.

    Raises ControllerError (`host.config`).
    """
    asked = Asked(host.address, host.port, host.user)
    configuration = load()
    is_lasting = is_home_of_account() and survey(configuration, asked).is_lasting
    try:
        return await ask(ssh, asked, configuration, is_lasting=is_lasting)
    except CannotAskError as error:
        sentence = f"{ssh} is no OpenSSH that can be asked for its settings: {error}; correct PATH"
        raise ControllerError("host.config", sentence, host=host.name) from None


def identity_path(host: Host) -> str | None:
    """The private key that the host names, as an absolute path."""
    if host.identity is None:
        return None
    if host.identity.startswith("/"):
        return os.path.normpath(host.identity)  # most are absolute, and `home` is asked for each of many hosts
    return os.path.abspath(tilde(host.identity, home()))


def why_not_asked() -> str | None:
    """Why `ssh` is not asked here, as a sentence; None when it is."""
    if program() is None:
        return "the ssh program is not installed"
    if not is_home_of_account():
        return "HOME is not the account's home folder, and ssh would look only there"
    return None


async def _values(asked: Asked, is_lasting: bool) -> Values:
    ssh = program()
    if ssh is not None and is_home_of_account():
        try:
            return await ask(ssh, asked, load(), is_lasting=is_lasting)
        except CannotAskError:
            pass
    return await asyncio.to_thread(read, load(), asked)  # may run programs, and ask for addresses
