"""Connections that OpenSSH's own program holds: the master process of one, with a control socket in a folder of ours.

A master is used by the process that started it, and ends with it, unless it is to persist: then it has a name that
follows from all settings which it was made under, and a later process with the same settings finds it. Control sockets
and their folder are `openssh_sockets`', their protocol `openssh_mux`'s; ssh's command line is `openssh_command`'s, what
it says when it fails `openssh_words`'s.
"""

import asyncio
import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from cronium_runner.wire.text import last_words

from .access import Access, HostKeyPolicy
from .errors import AuthenticationError, ControllerError, UnreachableError, reason
from .hosts import Host
from .jumps import Jump, jumps
from .openssh_command import Settings, carrier_of, host_key_options, options_of, route_options, settings_by, through
from .openssh_mux import Control, MasterGoneError, MuxError
from .openssh_sockets import MOST_MASTERS, NAME_BYTES, Note, folder, published, sweep, used
from .openssh_words import failure, has_words, leads_no_further, warnings
from .ssh_asking import WHOLE
from .transport import ATTEMPT_SECONDS, DIRECT, Route

_ORPHAN_SECONDS: Final = 10
"""Seconds after which a master without clients ends by itself, as its process was killed. It counts from the login,
before we are its client: a process that begins many connections at once on a busy machine may take a while to that."""
_END_SECONDS: Final = 5.0
"""For a master to end that was told to. It has nothing to wait for."""
_AGENT: Final = ("SSH_AUTH_SOCK", "KRB5CCNAME")
"""Environment variables that say which keys and tickets there are."""
_KEPT_WORDS: Final = 16 * 1024
"""Bytes of what ssh says: the reason of a failure is at the end, the first sign of it some lines above."""
_STEPS: Final = 2
"""Times the connect timeout that connecting and logging in may take together, as with asyncssh; so for each host."""
_ASKING_SECONDS: Final = 300.0
"""For logging in where ssh may ask for a passphrase or password on the terminal."""
_WORDS_SECONDS: Final = 1.0
"""For the last words of an ssh that has ended, and for the end of one that was told to."""


@dataclass(slots=True)
class Master:
    """A master that answers at `path`. `watch` is a connection that ends with it."""

    path: str
    watch: Control
    settings: Settings
    persist: float
    """Seconds that it goes on for after its last client has gone; 0 when it ends with us."""
    note: Note

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
        self._forget(goes_on=False)

    async def leave(self) -> None:
        """Ends it, or lets go of it where it persists."""
        if not self.persist and not self.is_gone:
            self.end()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.watch.ended), _END_SECONDS)
        self._forget(goes_on=not self.is_gone)
        self.watch.close()

    def _forget(self, *, goes_on: bool) -> None:
        used.discard(self.path)
        self.note.leave(goes_on=goes_on)


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
    carrier = carrier_of(way, host, settings, environment)
    words = route_options(way, host, settings)
    words += [*options_of(host, access), *host_key_options(access, settings)]
    chain = await jumps(host, settings, partial(settings_by, ssh)) if way.transport == DIRECT else []
    persist = _persist(host, access, settings)
    where = folder(host.name)
    told = {
        "host": host.name, "address": host.address, "user": host.user or settings.first("user"),
        "port": host.port or int(settings.first("port", "22")), "transport": way.transport,
        "since": time.time(), "persist": _noted(persist),
    }  # fmt: skip
    name = None
    if persist:
        name = _name(ssh, [*way, *words], host, settings, chain)
        for number in range(MOST_MASTERS):
            path = f"{where}/{name}{number}"
            if path not in used:
                used.add(path)  # before anything is awaited: a parallel call takes the next one
                try:
                    watch = await _watched(path)
                    return Master(path, watch, settings, persist, Note(path, told, is_new=False))
                except (MasterGoneError, OSError):
                    used.discard(path)
                break
    sweep(where)
    path = f"{where}/{os.urandom(NAME_BYTES).hex()}"
    hops = [(jump, f"{path}.{number}") for number, jump in enumerate(chain)]
    command = [ssh, "-f", "-N", "-x", "-S", path.replace("%", "%%"), *words, *through(ssh, hops, access, timeout)]
    if carrier is not None and not hops:
        command += carrier.options(f"{path}.{carrier.name}")
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
    carried = None if carrier is None else (carrier.name, f"{path}.{carrier.name}")
    starting = _Starting(host, access, [(jump.host, said) for jump, said in hops], carried)
    try:
        await starting.run(command, environment, timeout * (1 + len(hops)))
    finally:
        starting.forget_words()
    try:
        if name is not None:
            shared = published(path, f"{where}/{name}")
            path, persist = shared, persist if shared != path else 0.0
        watch = await _watched(path)
    except (MasterGoneError, OSError) as error:
        used.discard(path)
        sentence = f"the connection ended as soon as it was made: {reason(error)}"
        raise UnreachableError("host.unreachable", sentence, host=host.name) from None
    return Master(path, watch, settings, persist, Note(path, told | {"persist": _noted(persist)}, is_new=True))


def _noted(persist: float) -> float | None:
    return None if math.isinf(persist) else persist


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


# -- the name of a master --------------------------------------------------------------------------------------------


def _name(ssh: str, words: Sequence[str], host: Host, settings: Settings, chain: Sequence[Jump[Settings]]) -> str:
    """The name of a master with these settings: equal where all is equal that decides whom it reaches, and as whom."""
    found: list[object] = [os.uname().nodename, ssh, *words, *([name, os.environ.get(name)] for name in _AGENT)]
    found += _stamps([] if host.identity is None else [host.identity])
    for jump, told in ((host, settings), *chain):
        found += [(jump.address, jump.port, jump.user), told.first(WHOLE)]
        found += _stamps([*told.values.get("identityfile", ()), *told.values.get("certificatefile", ())])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[: 2 * NAME_BYTES] + "-"


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


# -- starting --------------------------------------------------------------------------------------------------------


class _Starting(asyncio.SubprocessProtocol):
    """A master on its way: ssh in the foreground, until it has logged in and goes on in the background."""

    def __init__(
        self, host: Host, access: Access, hops: Sequence[tuple[Host, str]], carried: tuple[str, str] | None
    ) -> None:
        """`hops` are the jump hosts, each with the file of its words; `carried`: the program that carries the route."""
        self._host = host
        self._access = access
        self._hops = hops
        self._carried = carried
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
        for sentence in warnings(b"\n".join([*(_content(path) for _, path in self._hops), self._said])):
            self._access.warn(f"{self._host.name}: {sentence}")
        if self._access.host_keys == HostKeyPolicy.OFF:
            sentence = "host key accepted unchecked; its identity is not verified (--host-keys off)"
            self._access.warn(f"{self._host.name}: {sentence}")

    async def _failure(self) -> ControllerError:
        error = self._reason()
        identity = self._host.identity
        if isinstance(error, AuthenticationError) and identity is not None and await _is_encrypted(identity):
            sentence = (
                f"the private key cannot be used: {identity} has a passphrase, which cannot be asked for here; "
                "give another with --identity, or use ssh-agent"
            )
            return ControllerError("host.config", sentence, host=self._host.name)
        return error

    def _reason(self) -> ControllerError:
        """What failed, at the host or at one of the jump hosts: the first of them that says something knows why."""
        names = [host.name for host, _ in self._hops]
        for number, (jump, path) in enumerate(self._hops):
            said = _content(path)
            if not has_words(said):
                continue
            reached, told = jump, f"at the jump host {jump}: "
            if leads_no_further(said):
                reached, told = self._host, f"through {', '.join(names[: number + 1])}: "
                if number + 1 < len(self._hops):
                    reached = self._hops[number + 1][0]
                    told = f"at the jump host {reached}: "
            return failure(said, reached).about(self._host.name, told)
        error = failure(bytes(self._said), self._host)
        if self._carried is not None and type(error) is UnreachableError:
            name, path = self._carried
            told = last_words(_content(path))
            if told:
                return UnreachableError("host.unreachable", f"{name} said: {told}", host=self._host.name)
        return error.about(self._host.name, f"through {', '.join(names)}: ") if names else error

    def forget_words(self) -> None:
        """Removes the files of what was said by others than ssh itself."""
        for _, path in (*self._hops, *([] if self._carried is None else [self._carried])):
            with contextlib.suppress(OSError):
                os.unlink(path)

    async def _stop(self, ssh: asyncio.SubprocessTransport, *, is_group: bool) -> None:
        """Ends an ssh that has not logged in, with the program that carries its route."""
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ssh.get_pid(), signal.SIGTERM) if is_group else ssh.terminate()
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(self._exited), _WORDS_SECONDS)
        ssh.close()


def _content(path: str) -> bytes:
    """The end of a file of words; empty where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()[-_KEPT_WORDS:]
    except OSError:
        return b""


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
