"""A hostile host: a program behind a real OpenSSH server that answers SFTP, and commands, as it was told to.

sshd runs it as ForceCommand for the subsystem and for every command: real bytes over a real connection. The file
FOLDER/behaviour has the name of one of BEHAVIOURS; everything else that it is asked is answered properly, from the real
file system, so that a copy gets as far as the one answer that is a lie. Only the standard library is used: it starts
with every session.

    options = hostile_sftp.options(folder)      # lines of sshd_config
    hostile_sftp.behave(folder, "endless file")

Sessions are in $HOME, which sshd has to set (SetEnv).
"""

import os
import select
import shlex
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BEHAVIOURS = {
    "honest": "answers everything properly",
    "another name": "realpath answers with another base name in the same folder",
    "name with dots": "realpath answers with a path that leads out with ..",
    "name with NUL": "realpath answers with a NUL in the path",
    "name with escapes": "realpath answers with newlines and terminal escapes in the path",
    "relative name": "realpath answers with a relative path",
    "two names": "realpath answers with two names",
    "very many names": "realpath answers with 300,000 names in one packet",
    "no names": "realpath answers with no name at all",
    "name that is no text": "realpath answers with bytes that are not UTF-8",
    "set-id mode": "stat says that the file is set-uid, set-gid, sticky and writable by all",
    "size too small": "stat says that the file is shorter than it is",
    "size too large": "stat says that the file has more bytes than any disk",
    "size much too large": "stat says that the file has twenty times the bytes that it has",
    "type of a folder": "stat says that it is a folder",
    "type of a device": "stat says that it is a device",
    "endless file": "a read never says that the file has ended, and stat says that it has 10 bytes",
    "short reads": "a read is answered with half of what was asked for at most",
    "more than asked": "a read is answered with more than was asked for",
    "hole in the middle": "a read in the middle says that the file has ended there",
    "other bytes": "a read is answered with other bytes than the file has",
    "wrong digest": "the digest that is computed on the host is wrong",
    "packet too large": "a packet's header says that it has 4 GiB",
    "packet cut short": "a packet ends in the middle of a field",
    "never answers": "the version is never answered",
    "never answers a read": "no read is ever answered",
    "never answers a write": "no write is ever answered",
    "answers in odd order": "reads are answered in the opposite order",
    "unknown request": "an answer is to a request that was never made",
    "handle used twice": "every file that is opened has the same handle, that of the last one",
    "error with escapes": "a read fails with newlines and terminal escapes in the reason",
    "drops what is written": "a write is answered with success, and nothing is written",
    "full disk": "a write is answered with an error, for want of space",
    "mkdir makes a link": "a folder that was to be made is a link to another one",
    "mkdir makes it open": "a folder that was to be made can be written to by all, whatever was asked for",
    "endless listing": "a folder's listing never ends",
    "shell without end": "no SFTP, and each command prints without end before it does anything",
    "shell file without end": "no SFTP, and a command that reads a file prints without end",
    "shell errors without end": "no SFTP, and each command prints errors without end",
    "shell with another name": "no SFTP, and commands that find a file answer with another name",
    "shell name with escapes": "no SFTP, and commands that find a file answer with terminal escapes in the path",
    "shell never answers": "no SFTP, and a command says nothing for ever",
}

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT, _SETSTAT, _OPENDIR, _READDIR, _REMOVE = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13,
)  # fmt: skip
_MKDIR, _RMDIR, _REALPATH, _STAT, _STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED = (
    14, 15, 16, 17, 101, 102, 103, 104, 105, 200,
)  # fmt: skip
_OK, _EOF, _NO_SUCH_FILE, _DENIED, _FAILURE, _UNSUPPORTED = 0, 1, 2, 3, 4, 8
_FLAGS = {0x1: os.O_RDONLY, 0x2: os.O_WRONLY, 0x3: os.O_RDWR}
ESCAPES = "\x1b]52;c;aGk=\x07\x1b[2K\rcronium: all hosts ok\n\x9b31m"
"""What must never reach a terminal."""
OTHER = b"\xa5"
"""The bytes of a file that is a lie."""


def options(folder: Path) -> list[str]:
    """sshd_config's lines for a host whose behaviour FOLDER/behaviour has."""
    program = f"{shlex.quote(sys.executable)} -I -S {shlex.quote(__file__)} {shlex.quote(str(folder))}"
    return [f"Subsystem sftp {program}", f"ForceCommand {program}"]


def behave(folder: Path, behaviour: str) -> None:
    """Says how sessions that are opened from now on behave."""
    assert behaviour in BEHAVIOURS, behaviour
    (folder / "behaviour").write_text(behaviour)


# -- the program ------------------------------------------------------------------------------------------------------


def main(folder: str) -> None:
    """One session."""
    behaviour = Path(folder, "behaviour").read_text()
    command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    if __file__ not in command:
        _answer_command(behaviour, command, folder)
    elif behaviour.startswith("shell"):
        sys.exit(1)  # there is no SFTP
    else:
        os.chdir(os.environ["HOME"])
        _Server(behaviour).serve()


def _answer_command(behaviour: str, command: str, folder: str) -> None:
    if behaviour == "shell never answers":
        hung_up = select.poll()
        hung_up.register(1, 0)
        hung_up.poll()  # until sshd has closed its end
    if behaviour == "shell without end":
        _print_for_ever(1)
    if behaviour == "shell errors without end":
        _print_for_ever(2)
    if behaviour == "shell file without end" and "tail -c" in command:
        words = command.partition("echo ")[2]
        os.write(1, words[:16].encode() + b"\n")
        _print_for_ever(1)
    path = os.environ.get("PATH", "")
    if behaviour == "wrong digest":
        for name in ("sha256sum", "shasum", "openssl"):
            liar = Path(folder, "bin", name)
            liar.parent.mkdir(exist_ok=True)
            liar.write_text("#!/bin/sh\ncat > /dev/null\necho " + "0" * 64 + "\n")
            liar.chmod(0o755)
        path = f"{folder}/bin:{path}"
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "PATH": path}, stdout=subprocess.PIPE)
    said: bytes = done.stdout
    if behaviour.startswith("shell") and "name" in behaviour and b"\nfile\n" in b"\n" + said:
        before, _, found = said.rpartition(b"\n")
        told = os.path.dirname(found) + (f"/{ESCAPES}".encode() if "escapes" in behaviour else b"/.bashrc")
        if not os.path.exists(told):  # the file of the other name is there, too
            os.link(found, told)
        said = before + b"\n" + told
    os.write(1, said)
    sys.exit(done.returncode)


def _print_for_ever(descriptor: int) -> None:
    while True:
        os.write(descriptor, b"x" * 65536)


class _Server:
    """SFTP, version 3, over standard input and output."""

    def __init__(self, behaviour: str) -> None:
        self._behaviour = behaviour
        self._files: dict[bytes, int] = {}
        self._listings: dict[bytes, list[str]] = {}
        self._held_back: list[bytes] = []
        self._answers: dict[int, Callable[[_Fields], bytes]] = {
            _OPEN: self._open, _CLOSE: self._close, _READ: self._read, _WRITE: self._write, _STAT: self._stat,
            _LSTAT: self._lstat, _FSTAT: self._fstat, _SETSTAT: self._setstat, _OPENDIR: self._opendir,
            _READDIR: self._readdir, _REMOVE: self._remove, _MKDIR: self._mkdir, _RMDIR: self._rmdir,
            _REALPATH: self._realpath, _EXTENDED: self._extended,
        }  # fmt: skip

    def serve(self) -> None:
        """Until the client leaves."""
        while (packet := _received()) is not None:
            if packet[0] == _INIT:
                if self._behaviour != "never answers":
                    _send(bytes([_VERSION]) + struct.pack(">I", 3) + _text("posix-rename@openssh.com") + _text("1"))
                continue
            self._serve_one(packet[0], _Fields(packet[1:]))

    def _serve_one(self, kind: int, fields: "_Fields") -> None:
        number = fields.number()
        if self._behaviour == {_READ: "never answers a read", _WRITE: "never answers a write"}.get(kind):
            return
        try:
            answer = self._answers.get(kind, _unsupported)(fields)
        except FileNotFoundError:
            answer = _status(_NO_SUCH_FILE)
        except PermissionError:
            answer = _status(_DENIED)
        except OSError as error:
            answer = _status(_FAILURE, str(error))
        if self._behaviour == "unknown request" and kind == _READ:
            number += 77
        packet = answer[:1] + struct.pack(">I", number) + answer[1:]
        if self._behaviour == "packet too large" and kind == _READ:
            os.write(1, b"\xff\xff\xff\xf0" + packet)
            while True:
                os.write(1, OTHER * 65536)
        if self._behaviour == "packet cut short" and kind == _READ:
            packet = packet[:7]
        if self._behaviour == "answers in odd order" and kind == _READ:
            self._held_back.append(packet)
            if _is_waiting() and len(self._held_back) < 8:
                return
            for held in reversed(self._held_back):
                _send(held)
            self._held_back.clear()
            return
        _send(packet)

    # -- files -------------------------------------------------------------------------------------------------------

    def _open(self, fields: "_Fields") -> bytes:
        path, flags = fields.path(), fields.number()
        mode = fields.mode()
        wanted = _FLAGS[flags & 3] | os.O_CREAT * bool(flags & 8) | os.O_TRUNC * bool(flags & 16)
        descriptor = os.open(path, wanted | os.O_EXCL * bool(flags & 32), 0o666 if mode is None else mode)
        handle = b"handle" if self._behaviour == "handle used twice" else b"%d" % descriptor
        self._files[handle] = descriptor
        return bytes([_HANDLE]) + _text(handle)

    def _close(self, fields: "_Fields") -> bytes:
        handle = fields.text()
        self._listings.pop(handle, None)
        if handle in self._files:
            os.close(self._files.pop(handle))
        return _status(_OK)

    def _read(self, fields: "_Fields") -> bytes:
        handle, offset, count = fields.text(), fields.long(), fields.number()
        if self._behaviour == "error with escapes":
            return _status(_FAILURE, ESCAPES)
        if self._behaviour == "endless file":
            return bytes([_DATA]) + _text(OTHER * count)
        if self._behaviour == "hole in the middle" and 2**18 <= offset < 2**19:
            return _status(_EOF)
        if self._behaviour == "short reads":
            count = max(1, count // 2)
        piece = os.pread(self._files[handle], count, offset)
        if self._behaviour == "more than asked" and piece:
            piece = piece.ljust(count, OTHER) + OTHER * 100_000
        if self._behaviour == "other bytes":
            piece = OTHER * len(piece)
        return bytes([_DATA]) + _text(piece) if piece else _status(_EOF)

    def _write(self, fields: "_Fields") -> bytes:
        handle, offset = fields.text(), fields.long()
        if self._behaviour == "full disk":
            return _status(_FAILURE, "No space left on device")
        if self._behaviour == "drops what is written":
            return _status(_OK)
        os.pwrite(self._files[handle], fields.text(), offset)
        return _status(_OK)

    def _stat(self, fields: "_Fields") -> bytes:
        return bytes([_ATTRS]) + self._attributes(os.stat(fields.path()), is_told=True)

    def _lstat(self, fields: "_Fields") -> bytes:
        return bytes([_ATTRS]) + self._attributes(os.lstat(fields.path()))

    def _fstat(self, fields: "_Fields") -> bytes:
        return bytes([_ATTRS]) + self._attributes(os.fstat(self._files[fields.text()]), is_told=True)

    def _attributes(self, found: os.stat_result, *, is_told: bool = False) -> bytes:
        size, mode = found.st_size, found.st_mode
        if is_told and stat.S_ISREG(mode):
            size = {
                "size too small": size // 2,
                "size too large": 10**18,
                "size much too large": 20 * size,
                "endless file": 10,
            }.get(self._behaviour, size)
            kind = {"type of a folder": stat.S_IFDIR, "type of a device": stat.S_IFCHR}.get(self._behaviour)
            mode = mode if kind is None else kind | stat.S_IMODE(mode)
            mode = stat.S_IFREG | 0o7777 if self._behaviour == "set-id mode" else mode
        times = int(found.st_atime), int(found.st_mtime)
        return struct.pack(">IQIIIII", 0xF, size, found.st_uid, found.st_gid, mode, *times)

    def _setstat(self, fields: "_Fields") -> bytes:
        path, mode = fields.path(), fields.mode()
        if mode is not None and self._behaviour != "mkdir makes it open":
            os.chmod(path, mode)
        return _status(_OK)

    # -- folders and names -------------------------------------------------------------------------------------------

    def _opendir(self, fields: "_Fields") -> bytes:
        path = fields.path()
        self._listings[path] = [f"{os.fsdecode(path)}/{name}" for name in [".", "..", *os.listdir(os.fsdecode(path))]]
        return bytes([_HANDLE]) + _text(path)

    def _readdir(self, fields: "_Fields") -> bytes:
        handle = fields.text()
        names, self._listings[handle] = self._listings[handle], []
        if self._behaviour == "endless listing":
            names = [f"{os.fsdecode(handle)}/part"] * 100
        if not names:
            return _status(_EOF)
        told = bytearray(struct.pack(">I", len(names)))
        for path in names:
            found = os.lstat(path)
            longname = (
                f"{stat.filemode(found.st_mode)} {found.st_nlink} {found.st_uid} {found.st_gid} {found.st_size} x"
            )
            told += _text(os.path.basename(path)) + _text(longname) + self._attributes(found)
        return bytes([_NAME]) + bytes(told)

    def _remove(self, fields: "_Fields") -> bytes:
        os.unlink(fields.path())
        return _status(_OK)

    def _mkdir(self, fields: "_Fields") -> bytes:
        path, mode = fields.path(), fields.mode()
        if self._behaviour == "mkdir makes a link":
            os.mkdir("elsewhere")
            os.symlink(os.path.abspath("elsewhere"), path)
        elif self._behaviour == "mkdir makes it open":
            os.mkdir(path)
            os.chmod(path, 0o777)
        else:
            os.mkdir(path, 0o777 if mode is None else mode)
        return _status(_OK)

    def _rmdir(self, fields: "_Fields") -> bytes:
        os.rmdir(fields.path())
        return _status(_OK)

    def _realpath(self, fields: "_Fields") -> bytes:
        path = os.fsdecode(os.path.realpath(fields.path()))
        folder = os.path.dirname(path)
        lies: dict[str, list[str | bytes]] = {
            "another name": [f"{folder}/.bashrc"],
            "name with dots": [f"{folder}/../.bashrc"],
            "name with NUL": [f"{path}\0.bashrc"],
            "name with escapes": [f"{folder}/{ESCAPES}"],
            "relative name": ["../.bashrc"],
            "two names": [path, f"{folder}/.bashrc"],
            "very many names": [path, *[""] * 300_000],
            "no names": [],
            "name that is no text": [os.fsencode(path) + b"\xff\xfe"],
        }
        told = lies.get(self._behaviour, [path])
        if self._behaviour in ("another name", "name with dots", "name with escapes") and os.path.isfile(path):
            name = os.path.normpath(os.fsdecode(told[0]))
            if not os.path.exists(name):  # the file of the other name is there, too
                os.link(path, name)
        names = b"".join(_text(name) + _text("") + struct.pack(">I", 0) for name in told)
        return bytes([_NAME]) + struct.pack(">I", len(told)) + names

    def _extended(self, fields: "_Fields") -> bytes:
        if fields.text() != b"posix-rename@openssh.com":
            return _status(_UNSUPPORTED)
        os.rename(fields.path(), fields.path())
        return _status(_OK)


class _Fields:
    """The fields of a request, one after the other."""

    def __init__(self, packet: bytes) -> None:
        self._rest = packet

    def _bytes(self, count: int) -> bytes:
        found, self._rest = self._rest[:count], self._rest[count:]
        return found

    def number(self) -> int:
        return int.from_bytes(self._bytes(4), "big")

    def long(self) -> int:
        return int.from_bytes(self._bytes(8), "big")

    def text(self) -> bytes:
        return self._bytes(self.number())

    def path(self) -> bytes:
        return self.text() or b"."

    def mode(self) -> int | None:
        """The permissions of attributes, if they are told."""
        flags = self.number()
        self._bytes(8 * bool(flags & 1) + 8 * bool(flags & 2))
        return self.number() & 0o7777 if flags & 4 else None


def _text(text: str | bytes) -> bytes:
    encoded = os.fsencode(text) if isinstance(text, str) else text
    return struct.pack(">I", len(encoded)) + encoded


def _status(code: int, why: str = "") -> bytes:
    return bytes([_STATUS]) + struct.pack(">I", code) + _text(why) + _text("")


def _unsupported(_fields: _Fields) -> bytes:
    return _status(_UNSUPPORTED)


def _send(packet: bytes) -> None:
    whole = memoryview(_text(packet))
    while whole:
        whole = whole[os.write(1, whole) :]


def _received() -> bytes | None:
    length = _taken(4)
    return None if length is None else _taken(int.from_bytes(length, "big"))


def _taken(count: int) -> bytes | None:
    found = b""
    while len(found) < count:
        piece = os.read(0, count - len(found))
        if not piece:
            return None
        found += piece
    return found


def _is_waiting() -> bool:
    """Whether the client sends another request."""
    return bool(select.select([0], [], [], 0.2)[0])


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except BrokenPipeError:
        os._exit(1)  # the client has left
