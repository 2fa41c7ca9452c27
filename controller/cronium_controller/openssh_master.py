"""Connections that OpenSSH's own program holds: the master process of one, with a control socket in a folder of ours.

A master is used by the process that started it, and ends with it, unless it is to persist: then it has a name that
follows from all settings which it was made under, and a later process with the same settings finds it. The control
socket's protocol is `openssh_mux`'s, what ssh says when it fails `openssh_words`'s.
"""

import asyncio
import contextlib
import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from . import ssh_asking
from .access import Access, HostKeyPolicy
from .errors import AuthenticationError, ControllerError, UnreachableError, reason
from .hosts import Host
from .jumps import jump_host
from .openssh_mux import Control, MasterGoneError, MuxError
from .openssh_words import failure, warnings
from .own_files import is_open_key, open_key_phrase, stranger
from .service_token import with_token
from .ssh_asking import WHOLE
from .ssh_config import told_by_ssh
from .ssh_reader import Values
from .ssh_values import sent
from .state_path import default_path
from .transport import ATTEMPT_SECONDS, CLOUDFLARE, CLOUDFLARED, DIRECT, TAILSCALE, Route

FOREVER: Final = math.inf
"""Seconds that a master persists whose configuration has `ControlPersist yes`."""
_LONGEST_PATH: Final = 107 - 17
"""Bytes of a control socket's path: what a Unix socket takes, less what ssh appends for its temporary name."""
_NAME_BYTES: Final = 8
_ORPHAN_SECONDS: Final = 1
"""Seconds after which a master without clients ends by itself, as its process was killed. The least that ssh takes."""
_MOST_MASTERS: Final = 10
"""Persisting masters of the same settings: as many as the pool opens connections."""
_END_SECONDS: Final = 5.0
"""For a master to end that was told to. It has nothing to wait for."""
_SWEEP_SECONDS: Final = 60.0
"""Age of a socket from which on it is removed when no master answers there."""
_AGENT: Final = ("SSH_AUTH_SOCK", "KRB5CCNAME")
"""Environment variables that say which keys and tickets there are."""
_KEPT_WORDS: Final = 16 * 1024
"""Bytes of what ssh says: the reason of a failure is at the end, the first sign of it some lines above."""
_STEPS: Final = 2
"""Times the connect timeout that connecting and logging in may take together, as with asyncssh."""
_ASKING_SECONDS: Final = 300.0
"""For logging in where ssh may ask for a passphrase or password on the terminal."""
_WORDS_SECONDS: Final = 1.0
"""For the last words of an ssh that has ended, and for the end of one that was told to."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What `ssh -G` says of a host: the values of each keyword, in lower case, in order."""

    values: Values

    def first(self, keyword: str, default: str = "") -> str:
        """The value of a keyword that has one."""
        return self.values.get(keyword, [default])[0]

    @property
    def persist(self) -> float:
        """Seconds of ControlPersist, 0 when it is off."""
        told = self.first("controlpersist", "no")
        if told == "yes":
            return FOREVER
        return float(told) if told.isdigit() else 0.0

    @property
    def forwards_agent(self) -> bool:
        """ForwardAgent; the path of another agent's socket counts as well."""
        return self.first("forwardagent", "no") != "no"

    def environment(self) -> list[bytes]:
        """SetEnv, and what SendEnv lets through of our environment, as NAME=VALUE."""
        found = {name: os.environ[name] for name in sent(self.values.get("sendenv", ()))}
        found |= dict(words.split("=", 1) for words in self.values.get("setenv", ()) if "=" in words)
        return [os.fsencode(f"{name}={value}") for name, value in found.items()]


@dataclass(slots=True)
class Master:
    """A master that answers at `path`. `watch` is a connection that ends with it."""

    path: str
    watch: Control
    settings: Settings
    persist: float
    """Seconds that it goes on for after its last client has gone; 0 when it ends with us."""

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self.watch.ended.done()

    async def is_alive(self) -> bool:
        """Whether it answers."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                control = await Control.open(self.path)
                try:
                    await control.ask_alive()
                finally:
                    control.close()
        except (MuxError, OSError):
            return False
        return True

    def end(self) -> None:
        """Has it end now."""
        self.watch.terminate()
        _used.discard(self.path)

    async def leave(self) -> None:
        """Ends it, or lets go of it where it persists."""
        if not self.persist and not self.is_gone:
            self.end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.watch.ended), _END_SECONDS)
        _used.discard(self.path)
        self.watch.close()


_used: set[str] = set()
"""The sockets of masters that this process uses. A further connection to the same host is another master."""


async def settings_of(host: Host) -> tuple[str, Settings]:
    """The ssh program, and what its configuration says of a host. Raises ControllerError."""
    ssh = ssh_asking.program()
    if ssh is None:
        sentence = "OpenSSH's client is not installed here; install it, or take out `connection: openssh`"
        raise ControllerError("host.config", sentence, host=host.name)
    return ssh, Settings(await told_by_ssh(ssh, host))


def connect_seconds(host: Host, access: Access, settings: Settings) -> float:
    """The connect timeout of a host."""
    told = settings.first("connecttimeout")
    return access.connect_seconds(host, float(told) if told.isdigit() else None)


def attempt_seconds(access: Access, timeout: float) -> float:
    """Seconds that one attempt over all routes may take."""
    return _ASKING_SECONDS if access.passphrase is not None else max(ATTEMPT_SECONDS, timeout)


async def open_master(ssh: str, host: Host, access: Access, settings: Settings, way: Route, timeout: float) -> Master:
    """A master for a host: one of an earlier process where it is to persist, else a new one.

    `timeout` is for each step of connecting, in seconds. Raises HostKeyError, AuthenticationError and UnreachableError,
    and ControllerError for what cannot be used here.
    """
    environment = dict(os.environ)
    words = _options(host, access)
    words += _way(way, host, settings, environment)
    words += _host_key_options(access, settings)
    persist = _persist(host, access, settings)
    folder = _folder(host)
    name = None
    if persist:
        name = await _name(ssh, words, host, settings)
        for number in range(_MOST_MASTERS):
            path = f"{folder}/{name}{number}"
            if path not in _used:
                _used.add(path)  # before anything is awaited: a parallel call takes the next one
                try:
                    return Master(path, await _watched(path), settings, persist)
                except (MasterGoneError, OSError):
                    _used.discard(path)
                break
    _sweep(folder)
    path = f"{folder}/{os.urandom(_NAME_BYTES).hex()}"
    command = [ssh, "-f", "-N", "-x", "-S", path.replace("%", "%%"), *words]
    command += [
        "-o",
        f"ConnectTimeout={math.ceil(timeout)}",
        "-o",
        "ControlMaster=yes",
        "-o",
        f"ControlPersist={_persist_word(persist)}",
        "--",
        host.address,
    ]
    starting = _Starting(host, access)
    await starting.run(command, environment, timeout)
    try:
        if name is not None:
            published = _published(path, f"{folder}/{name}")
            path, persist = published, persist if published != path else 0.0
        watch = await _watched(path)
    except (MasterGoneError, OSError) as error:
        _used.discard(path)
        sentence = f"the connection ended as soon as it was made: {reason(error)}"
        raise UnreachableError("host.unreachable", sentence, host=host.name) from None
    return Master(path, watch, settings, persist)


def _persist(host: Host, access: Access, settings: Settings) -> float:
    for chosen in (access.persist, host.persist):
        if chosen is not None:
            return chosen
    return settings.persist


def _persist_word(persist: float) -> str:
    return "yes" if math.isinf(persist) else str(math.ceil(persist) or _ORPHAN_SECONDS)


async def _watched(path: str) -> Control:
    """A connection to a master that answers. Raises MasterGoneError and OSError."""
    watch = await Control.open(path)
    try:
        async with asyncio.timeout(_END_SECONDS):
            await watch.ask_alive()
    except (MuxError, TimeoutError) as error:
        watch.close()
        raise MasterGoneError(reason(error)) from None
    except BaseException:
        watch.close()
        raise
    return watch


# -- the command line ------------------------------------------------------------------------------------------------


def _options(host: Host, access: Access) -> list[str]:
    """What the host and the access say, as ssh's options. They win over ssh's configuration."""
    words: list[str] = []
    if host.user is not None:
        words += ["-l", host.user]
    if host.port is not None:
        words += ["-p", str(host.port)]
    if host.identity is not None:
        words += ["-i", _key(host.identity, host).replace("%", "%%")]
    if access.host_keys is HostKeyPolicy.OFF:
        words += ["-o", "UserKnownHostsFile=/dev/null", "-o", "GlobalKnownHostsFile=/dev/null"]
    elif access.known_hosts is not None:
        words += ["-o", f"UserKnownHostsFile={_quoted(access.known_hosts, host)}"]
    interval = host.keepalive_seconds or access.keepalive_seconds
    given = {
        "BatchMode": "yes" if access.passphrase is None else "no",
        "ConnectionAttempts": 1,
        "ServerAliveInterval": math.ceil(interval),
        "ServerAliveCountMax": host.keepalive_count or access.keepalive_count,
        "ClearAllForwardings": "yes",
        "RemoteCommand": "none",
        "LogLevel": "INFO",
    }
    return [*words, *(word for name, value in given.items() for word in ("-o", f"{name}={value}"))]


def _key(identity: str, host: Host) -> str:
    path = os.path.abspath(os.path.expanduser(identity))
    if not os.path.isfile(path):
        raise ControllerError("host.config", f"no private key at {identity}; correct --identity", host=host.name)
    if is_open_key(path):
        raise ControllerError("host.config", f"the private key {path} {open_key_phrase(path)}", host=host.name)
    return path


def _quoted(path: str, host: Host) -> str:
    """A path as a value of ssh's configuration. Raises ControllerError for one that it cannot have there."""
    path = os.path.abspath(os.path.expanduser(path))
    if '"' in path or "${" in path or "\\" in path or not path.isprintable():
        sentence = f"ssh cannot be given the path {path}: it has a quote, a backslash or '${{'; name another"
        raise ControllerError("host.config", sentence, host=host.name)
    return '"' + path.replace("%", "%%") + '"'


def _host_key_options(access: Access, settings: Settings) -> list[str]:
    if access.host_keys is HostKeyPolicy.OFF:
        chosen = "no"
    elif access.host_keys is HostKeyPolicy.STRICT or (
        access.host_keys is None and settings.first("stricthostkeychecking") in ("yes", "true")
    ):
        chosen = "yes"
    else:  # also where the configuration says no: a changed key is refused all the same
        chosen = "accept-new"
    return ["-o", f"StrictHostKeyChecking={chosen}"]


def _way(way: Route, host: Host, settings: Settings, environment: dict[str, str]) -> list[str]:
    """The options for a route, by which the host has the same name in known_hosts as by a direct one."""
    if way.transport == DIRECT:
        return []
    known_as = settings.first("hostkeyalias") or settings.first("hostname", host.address)
    port = settings.first("port", "22")
    if not settings.first("hostkeyalias") and port != "22":
        known_as = f"[{known_as}]:{port}"
    words = ["-o", f"HostKeyAlias={known_as}", "-o", "ProxyJump=none"]
    if way.transport == TAILSCALE:
        return [*words, "-o", "ProxyCommand=none", "-o", f"HostName={way.address}"]
    assert way.transport == CLOUDFLARE, way
    program = shutil.which(CLOUDFLARED)
    if program is None:
        sentence = f"{CLOUDFLARED} is not installed here, and the route needs it; install it"
        raise UnreachableError("host.unreachable", sentence, host=host.name)
    through = with_token(host)
    if through.cloudflare_service_token_id and through.cloudflare_service_token_secret:
        environment["TUNNEL_SERVICE_TOKEN_ID"] = through.cloudflare_service_token_id
        environment["TUNNEL_SERVICE_TOKEN_SECRET"] = through.cloudflare_service_token_secret
    carried = f"exec {shlex.quote(program)} access ssh --hostname {shlex.quote(way.address)}"
    return [*words, "-o", f"ProxyCommand={carried.replace('%', '%%')}"]


# -- the name of a master --------------------------------------------------------------------------------------------


async def _name(ssh: str, words: Sequence[str], host: Host, settings: Settings) -> str:
    """The name of a master with these settings: equal where all is equal that decides whom it reaches, and as whom."""
    found: list[object] = [os.uname().nodename, ssh, host.address, *words]
    found += [(name, os.environ.get(name)) for name in _AGENT]
    found.append(_stamps([host.identity] if host.identity is not None else []))
    asked = set()
    waiting = [settings]
    while waiting:
        one = waiting.pop()
        found.append(one.first(WHOLE))
        found.append(_stamps([*one.values.get("identityfile", ()), *one.values.get("certificatefile", ())]))
        for jump in filter(None, one.first("proxyjump", "none").split(",")):
            if jump != "none" and jump not in asked:
                asked.add(jump)
                waiting.append(Settings(await told_by_ssh(ssh, jump_host(jump, host.name))))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[: 2 * _NAME_BYTES] + "-"


def _stamps(keys: Sequence[str]) -> list[object]:
    """What changes when one of the keys, or the certificate beside it, is exchanged."""
    return [_stamp(path) for key in keys for path in (key, f"{key}-cert.pub")]


def _stamp(path: str) -> tuple[int, ...] | None:
    """What changes when a key or certificate is exchanged; None when there is none."""
    try:
        found = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


# -- sockets ---------------------------------------------------------------------------------------------------------


def _folder(host: Host) -> str:
    """The folder of control sockets, which no other user can look into or exchange. Raises ControllerError."""
    folder = str(default_path().parent / "ssh")
    longest = f"{folder}/{'0' * (2 * _NAME_BYTES)}-0"
    if len(os.fsencode(longest)) > _LONGEST_PATH or "${" in folder:
        folder = f"/tmp/cronium-ssh-{os.geteuid()}"  # noqa: S108 - checked below
    try:
        os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        why = _why_unsafe(folder)
    except OSError as error:
        why = reason(error)
    if why is not None:
        sentence = f"the folder of control sockets cannot be used: {why}; correct that, or set CRONIUM_CONTROLLER_STATE"
        raise ControllerError("host.config", sentence, host=host.name)
    return folder


def _why_unsafe(folder: str) -> str | None:
    """How another user could reach or exchange a folder, None when none can. Raises OSError."""
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        return f"{folder} is not a directory of this account with mode 0700"
    above = os.path.realpath(os.path.dirname(folder))
    while True:
        found = os.stat(above)
        is_sticky = found.st_uid == 0 and bool(found.st_mode & stat.S_ISVTX)
        if not is_sticky and (why := stranger(found)) is not None:
            return f"{above} {why}"
        if above == "/":
            return None
        above = os.path.dirname(above)


def _published(path: str, shared: str) -> str:
    """Gives a master the first of its shared names that no other master has. Under it, later processes find it."""
    for number in range(_MOST_MASTERS):
        name = f"{shared}{number}"
        if name in _used:
            continue
        try:
            os.link(path, name)
        except FileExistsError:
            if _answers(name):  # another process has just made one: ours ends with us
                return path
            os.replace(path, name)
        else:
            os.unlink(path)
        _used.add(name)
        return name
    return path


def _answers(path: str) -> bool:
    """Whether a process listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:  # its queue is full
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def _sweep(folder: str) -> None:
    """Removes sockets at which no master answers any more: those of masters that were killed, or that persisted."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                is_old = time.time() - entry.stat(follow_symlinks=False).st_mtime >= _SWEEP_SECONDS
                if is_old and not _answers(entry.path):
                    os.unlink(entry.path)


# -- starting --------------------------------------------------------------------------------------------------------


class _Starting(asyncio.SubprocessProtocol):
    """A master on its way: ssh in the foreground, until it has logged in and goes on in the background."""

    def __init__(self, host: Host, access: Access) -> None:
        self._host = host
        self._access = access
        loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[None] = loop.create_future()
        self._heard: asyncio.Future[None] = loop.create_future()
        self._said = bytearray()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        del fd  # there is one
        self._said += data
        del self._said[:-_KEPT_WORDS]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        del fd, exc
        if not self._heard.done():
            self._heard.set_result(None)

    def process_exited(self) -> None:
        if not self._exited.done():
            self._exited.set_result(None)

    async def run(self, command: Sequence[str], environment: Mapping[str, str], timeout: float) -> None:
        """Returns when the master is in the background. Raises what ssh's failure means."""
        is_asking = self._access.passphrase is not None
        loop = asyncio.get_running_loop()
        try:
            ssh, _ = await loop.subprocess_exec(
                lambda: self, *command, env=environment, start_new_session=not is_asking,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            sentence = f"ssh cannot be started here: {reason(error)}"
            raise UnreachableError("host.unreachable", sentence, host=self._host.name) from None
        seconds = _ASKING_SECONDS if is_asking else _STEPS * timeout
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._exited)
        except TimeoutError:
            await self._stop(ssh, is_group=not is_asking)
            sentence = f"cannot connect to {self._host.address}: no answer within {seconds:g} s"
            raise UnreachableError("host.unreachable", sentence, host=self._host.name) from None
        except BaseException:
            await self._stop(ssh, is_group=not is_asking)
            raise
        with contextlib.suppress(TimeoutError):  # a master of an old version keeps its standard error open
            await asyncio.wait_for(asyncio.shield(self._heard), _WORDS_SECONDS)
        status = ssh.get_returncode()
        ssh.close()
        if status != 0:
            raise await self._failure()
        for sentence in warnings(bytes(self._said)):
            self._access.warn(f"{self._host.name}: {sentence}")
        if self._access.host_keys is HostKeyPolicy.OFF:
            sentence = "host key accepted unchecked; its identity is not verified (--host-keys off)"
            self._access.warn(f"{self._host.name}: {sentence}")

    async def _failure(self) -> ControllerError:
        error = failure(bytes(self._said), self._host)
        identity = self._host.identity
        if isinstance(error, AuthenticationError) and identity is not None and await _is_encrypted(identity):
            sentence = (
                f"the private key cannot be used: {identity} has a passphrase, which cannot be asked for here; "
                "give another with --identity, or use ssh-agent"
            )
            return ControllerError("host.config", sentence, host=self._host.name)
        return error

    async def _stop(self, ssh: asyncio.SubprocessTransport, *, is_group: bool) -> None:
        """Ends an ssh that has not logged in, with the program that carries its route."""
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ssh.get_pid(), signal.SIGTERM) if is_group else ssh.terminate()
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(self._exited), _WORDS_SECONDS)
        ssh.close()


async def _is_encrypted(identity: str) -> bool:
    """Whether a private key has a passphrase."""
    program = shutil.which("ssh-keygen")
    if program is None:
        return False
    asking = await asyncio.create_subprocess_exec(
        program, "-y", "-P", "", "-f", os.path.expanduser(identity),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await asking.communicate()
    return asking.returncode != 0 and b"passphrase" in said
