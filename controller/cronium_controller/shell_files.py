"""Files on a host through commands in sh, for hosts without SFTP; and what SFTP can't do: digests."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from . import remote_file, remote_shell, sftp, shell_command
from .remote_file import PIECE, Entry, Found, Partial, Tell
from .sessions import Connection
from .shell_command import NoShellError

_DIGEST: Final = "{ sha256sum || shasum -a 256 || openssl dgst -sha256 -r; } 2>/dev/null | cut -c 1-64"
"""Reads standard input. One of them is on every usual Linux, busybox's included."""
_HASHED_A_SECOND: Final = 4 * 1024 * 1024
"""Bytes that a slow host hashes in a second: what it may take without being given up."""
_MOST_SAID: Final = 64 * 1024
"""Bytes of an answer: a path has 4 KiB at most."""
_LISTED: Final = "export LC_ALL=C; id -u; ls -ldn {0}; ls -An {0}"
_STAT: Final = (
    'if test -d "$t"; then k=folder; elif test -f "$t"; then k=file; elif test -e "$t"; then k=special; else k=none; '
    'fi; test $k = special || s=$(stat -L -c "%s %Y %a" "$t" 2>/dev/null || '
    'echo "$(wc -c < "$t" 2>/dev/null) 0 644"); printf "%s\\n%s\\n%s" "$k" "$s" "$t"'
)
"""Tells of the file $t."""
_TARGET: Final = (
    # Entering the folder has the kernel follow the links on the way, which may refuse those of others.
    'case $t in */*) d=${t%/*}; b=${t##*/};; *) d=.; b=$t;; esac; d=$(CDPATH= cd -P "${d:-/}" && pwd -P) || exit 1; '
    't=${d%/}/$b; if test -L "$t"; then set -- $(LC_ALL=C ls -ldn "$d"); m=$1; o=$3; '
    'set -- $(LC_ALL=C ls -ldn "$t"); case $m in ????????w*) test "$o" = "$3" || '
    '{ printf "link\\n\\n%s" "$t"; exit 0; };; esac; t=$(readlink -f "$t") || exit 1; fi; '
)
"""Makes $t the file that a copy to $t replaces."""


class ByShell:
    """Through commands in sh. Each has a session of its own."""

    name = "shell"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Nothing is open between commands."""

    async def find_source(self, remote: str) -> Found:
        absolute = 'case $t in /*) ;; *) t=$(pwd)/$t;; esac; r=$(readlink -f "$t" 2>/dev/null) && t=$r; '
        return await self._find(f"t={remote_shell.path(remote)}; {absolute}{_STAT}", remote)

    async def find_target(self, remote: str, name: str) -> Found:
        into = f'test -d "$t" -o {int(remote.endswith("/"))} = 1 && t="${{t%/}}"/{shlex.quote(name)}; '
        return await self._find(f"t={remote_shell.path(remote)}; {into}{_TARGET}{_STAT}", remote)

    async def _find(self, script: str, remote: str) -> Found:
        told = (await self._run(script, remote)).decode("utf-8", "surrogateescape")
        kind, numbers, path = (*told.split("\n", 2), "", "")[:3]
        if not path.startswith("/") or "\0" in path:
            raise self._odd(remote)
        if kind in _REFUSED:
            raise _REFUSED[kind](self._connection, path)
        if kind == "none":
            return Found(path, None)
        try:
            size, changed, mode = numbers.split()
            return Found(path, int(size[:20]), int(changed[:20]), int(mode[:8], 8) & 0o777)
        except ValueError:
            raise self._odd(remote) from None

    def _odd(self, path: str) -> Exception:
        return sftp.refused(self._connection, path, "the host's shell did not answer what was asked; try again")

    async def begin(self, folder: str) -> Partial:
        quoted = shlex.quote(folder)
        said = await self._run(f"umask 077; mkdir -m 700 {quoted} || exit 1; {_LISTED.format(quoted)}", folder)
        uid, made, _ = _listing(said)
        if made is None or not remote_file.is_written_by_us_alone(made, uid):
            await self._run(f"rmdir {quoted} 2>/dev/null; :", folder)
            raise remote_file.open_folder_error(self._connection, folder)
        return Partial(folder, uid)

    async def usable(self, partial: Partial) -> int | None:
        script = f"{_LISTED.format(shlex.quote(partial.folder))}; :"
        uid, folder, inside = _listing(await self._run(f"exec 2>/dev/null; {script}", partial.folder))
        return None if folder is None else remote_file.usable_size(folder, inside, uid)

    async def write(self, partial: Partial, source: BinaryIO, offset: int | None, tell: Tell) -> None:
        """At the offset and not at the end: another copy of the same bytes may be under way there."""
        quoted = shlex.quote(partial.file)
        seek = f"dd bs=1 seek={offset} count=0 conv=notrunc 2>/dev/null; "
        script = f"set -C; cat > {quoted}" if offset is None else f"test -f {quoted} && {{ {seek}cat; }} 1<> {quoted}"
        pieces = _pieces(source, offset or 0, tell)
        await self._run(f"umask 077; {script}", partial.file, pieces)

    async def read(self, path: str, target: BinaryIO, offset: int, size: int, tell: Tell) -> None:
        at = offset

        def put(piece: bytes) -> None:
            nonlocal at
            os.pwrite(target.fileno(), piece, at)
            at += len(piece)
            if at > size + remote_file.MOST_GROWTH:
                raise remote_file.endless_error(self._connection, path, size)
            tell(at)

        await shell_command.run(self._connection, f"tail -c +{offset + 1} < {shlex.quote(path)}", path, put)

    async def discard(self, partial: Partial) -> None:
        quoted, part = shlex.quote(partial.folder), shlex.quote(partial.file)
        is_own = f"test -d {quoted} && test ! -L {quoted}"
        await self._run(f"{{ {is_own} && rm -f {part} {part}.* && rmdir {quoted}; }} 2>/dev/null; :", partial.folder)

    async def digest(self, path: str, size: int) -> str | None:
        """The SHA-256 of a file; None where there is no shell, or nothing in it that computes one."""
        script = f"{{ {_DIGEST}; }} < {shlex.quote(path)}"
        try:
            said = await self._run(script, path, seconds=size / _HASHED_A_SECOND)
        except NoShellError:
            return None
        found = re.fullmatch(rb"([0-9a-f]{64})\s*", said)
        return found[1].decode() if found else None

    async def place(self, partial: Partial, target: str, mode: int, sha256: str | None, size: int = 0) -> bool | None:
        """`size` is the file's, in bytes: hashing takes time.

        It gets a name that no other copy knows before it is looked at: another copy of the same bytes may be under way
        under the old one. The host goes on with that when the connection is lost meanwhile.
        """
        setting = (
            f"trap '' HUP PIPE; d() {{ {_DIGEST}; }}; f={shlex.quote(partial.folder)}; p={shlex.quote(partial.file)}; "
            f"t={shlex.quote(target)}; m={shlex.quote(partial.claimed())}; "
        )
        checking = (
            # Gone: another copy has claimed it, and may have placed it already.
            f'mv "$p" "$m" 2>/dev/null || {{ test "$(d < "$t")" = {sha256} && echo placed || echo wrong; exit 0; }}; '
            's=$(d < "$m"); test -n "$s" || { mv "$m" "$p"; exit 0; }; '
            f'test "$s" = {sha256} || {{ rm -f "$m"; rmdir "$f"; echo wrong; exit 0; }}; '
        )
        placing = (
            # A link to a folder, put there meanwhile, must not be followed; not every mv has -T.
            f'chmod {mode:o} "$m" && {{ mv -fT "$m" "$t" 2>/dev/null || {{ test ! -d "$t" && mv -f "$m" "$t"; }}; }} '
            '&& { rmdir "$f" 2>/dev/null; echo placed; exit 0; }; rm -f "$m"; rmdir "$f"; exit 1'
        )
        script = setting + ("m=$p; " if sha256 is None else checking) + placing
        try:
            said = await self._run(script, target, seconds=size / _HASHED_A_SECOND)
        except NoShellError:
            return None
        return {b"placed": True, b"wrong": False}.get(said.strip())

    async def _run(self, script: str, path: str, pieces: Iterable[bytes] = (), seconds: float = 0.0) -> bytes:
        said = bytearray()

        def take(piece: bytes) -> None:
            if len(said) + len(piece) > _MOST_SAID:
                raise self._odd(path)
            said.extend(piece)

        await shell_command.run(self._connection, script, path, take, pieces=pieces, seconds=seconds)
        return bytes(said)


_REFUSED: Final = {
    "folder": remote_file.folder_error,
    "special": remote_file.special_error,
    "link": remote_file.link_error,
}


def _pieces(source: BinaryIO, at: int, tell: Tell) -> Iterator[bytes]:
    while piece := os.pread(source.fileno(), PIECE, at):
        yield piece
        at += len(piece)
        tell(at)


def _listing(said: bytes) -> tuple[int | None, Entry | None, list[Entry]]:
    """What _LISTED prints: our own id, a folder (None: there is none), what is in it."""
    lines = said.decode("utf-8", "replace").splitlines()
    if len(lines) < 2 or not re.fullmatch(r"\d{1,10}", lines[0]):
        return None, None, []
    folder, *inside = [_entry(line) for line in lines[1:] if not line.startswith("total ")]
    return int(lines[0]), folder, [entry for entry in inside if entry is not None]


def _entry(line: str) -> Entry | None:
    words = line.split(None, 8)
    if len(words) < 9 or not all(re.fullmatch(r"\d{1,20}", words[n]) for n in (1, 2, 4)):
        return Entry(line, "?", None, None, 0)  # a device, say: it is there, and never what we have made
    return Entry(words[8], words[0], int(words[1]), int(words[2]), int(words[4]))
