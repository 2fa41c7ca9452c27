"""`cronium` and `cronium-runner` as processes that begin where their code is loaded already.

Loading takes most of the processor time of most commands, and the tests start thousands. One process for each program
loads it once; a command is a fork of that with arguments, environment, folder and streams of its own. Its parent is
the process that asked (CLONE_PARENT), so that it is waited for and signalled like any child, and /proc shows its own
command line and environment.

Not for tests of how a program begins: those start an interpreter, as does this where Popen's arguments, or the
environment, say something to the interpreter itself.
"""

import atexit
import ctypes
import errno
import fcntl
import gc
import importlib
import json
import mmap
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

_CLONE_PARENT: Final = 0x8000
_CLONE: Final = {"x86_64": 56, "aarch64": 220}
"""The system call's number."""
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_ABOVE_ALL: Final = 200
"""Received descriptors wait here, above all numbers that they are to have."""
_FOR_PYTHON: Final = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "OPENSSL_", "SSL_")
"""Variables that say something to the interpreter or its libraries."""

COMMANDS: Final = {
    "cronium": (sys.executable, "-c", "from cronium_controller.cli import main; main()"),
    "cronium-runner": (sys.executable, "-m", "cronium_runner"),
}
"""How each is started without this."""
_MODULES: Final = {
    "cronium": [
        f"cronium_controller.{name}"
        for name in (
            *("cli", "connection", "dispatch", "jumps", "payload_versions", "runs", "service_token", "show"),
            "ssh_asking",
        )
    ],
    "cronium api": ["cronium_controller.cli", "jwt", "sqlalchemy.dialects.sqlite", "starlette.applications", "uvicorn"],
    "cronium-runner": [f"cronium_runner.{name}" for name in ("__main__", "agent", "cli", "greeting", "running")],
}
"""Modules that are loaded before a fork: those of `run` and of an agent, and the libraries of `cronium api`.

Modules of ours that only other commands import are not among them, so that tests still see each command import its own.
"""


class Started(subprocess.Popen[bytes]):
    """A process that ends with its `with` block, should that fail: else leaving it would wait, perhaps for ever."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


class Preloaded(Started):
    """`Preloaded("cronium", words, env=…)`: a started `cronium WORDS`; the other arguments are Popen's."""

    def __init__(self, program: str, words: list[str], **options: Any) -> None:
        self._program = "cronium api" if words[:1] == ["api"] else program
        super().__init__([*COMMANDS[program], *words], **options)

    def _execute_child(self, arguments: list[str], *given: Any) -> None:
        """Popen's own step between making the pipes and waiting."""
        (executable, preexec_fn, _, pass_fds, cwd, env, _, _, shell) = given[:9]
        (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _, gid, gids, uid, umask) = given[9:20]
        (is_session, group) = given[20:]
        is_plain = all(option is None for option in (executable, preexec_fn, gid, gids, uid)) and not shell
        loaded = _loaded(self._program) if is_plain and umask < 0 and group < 0 else None
        environment = dict(os.environ if env is None else env)
        if loaded is None or not loaded.is_fit_for(environment):
            super()._execute_child(arguments, *given)  # type: ignore[misc]
            return
        streams = [given if given >= 0 else own for given, own in ((p2cread, 0), (c2pwrite, 1), (errwrite, 2))]
        wanted = {
            "command": arguments,
            "environment": environment,
            "folder": os.path.abspath(cwd or "."),
            "descriptors": [0, 1, 2, *pass_fds],
            "is_session": is_session,
        }
        self.pid = loaded.fork(wanted, [*streams, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def run(
    program: str, words: Sequence[object], *, input: Any = None, timeout: float | None = None, **options: Any
) -> "subprocess.CompletedProcess[Any]":
    """Runs it to its end, as subprocess.run does; both streams are captured unless they are given."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Preloaded(program, [*map(str, words)], **options) as process:
        stdout, stderr = process.communicate(input, timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


class _Loaded:
    """The process that has loaded a program, a child of ours."""

    def __init__(self, program: str) -> None:
        ours, its = socket.socketpair()
        self._control = ours
        self._lock = threading.Lock()
        self._for_python = _for_python(dict(os.environ))
        with its:
            self._process = subprocess.Popen(
                [sys.executable, __file__, program, str(its.fileno())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                # Nothing of the test that happens to be the first: hosts know their processes by the environment.
                env={"PATH": os.environ.get("PATH", os.defpath), **self._for_python},
            )
        self.is_able = ours.recv(1) == b"1"
        """Whether the kernel lets it do all that it is for."""

    def is_fit_for(self, environment: dict[str, str]) -> bool:
        """Whether an interpreter would start in that environment as this one did."""
        return _for_python(environment) == self._for_python

    def fork(self, wanted: dict[str, Any], descriptors: list[int]) -> int:
        """Starts a command; its process id."""
        content = json.dumps(wanted).encode()
        with self._lock:
            socket.send_fds(self._control, [len(content).to_bytes(4, "big")], descriptors)
            self._control.sendall(content)
            pid = int.from_bytes(self._control.recv(4, socket.MSG_WAITALL), "big")
        if pid == 0:
            raise FileNotFoundError(errno.ENOENT, "no such folder, or the preloaded program has ended")
        return pid

    def close(self) -> None:
        """It ends when nobody can ask any more."""
        self._control.close()
        self._process.wait()


def _for_python(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_FOR_PYTHON)}


_all: dict[str, _Loaded | None] = {}
_all_lock = threading.Lock()


def _loaded(program: str) -> _Loaded | None:
    """The one of this process, made by the first test that needs it; None where the kernel can't do it."""
    with _all_lock:
        if program not in _all:
            made = _Loaded(program)
            atexit.register(made.close)
            _all[program] = made if made.is_able else None
        return _all[program]


# -- the process itself ------------------------------------------------------------------------------------------------


def _load(program: str) -> None:
    for name in _MODULES[program]:
        importlib.import_module(name)
    if program == "cronium api":
        return
    if program == "cronium":
        from cronium_controller.ssh_library import asyncssh

        asyncssh.connect  # noqa: B018 - its first use loads it
    else:
        from cronium_runner import guardian

        guardian.import_what_supervisors_need()


def _serve(control: socket.socket) -> None:
    """Forks a command for each request. Returns in the commands alone."""
    gc.collect()
    gc.freeze()
    while True:
        header, descriptors, _, _ = socket.recv_fds(control, 4, 32)
        if not header:
            os._exit(0)
        content = bytearray()
        while len(content) < int.from_bytes(header, "big"):
            content += control.recv(1 << 16)
        wanted = json.loads(content)
        if not os.path.isdir(wanted["folder"]):
            pid = 0
        elif (pid := _fork()) == 0:
            control.close()
            _become(wanted, descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(pid.to_bytes(4, "big"))


def _fork() -> int:
    """As os.fork, but the child is our parent's."""
    python = ctypes.pythonapi  # the calls that os.fork makes around its own
    call = ctypes.PyDLL(None, use_errno=True).syscall
    python.PyOS_BeforeFork()
    pid = int(call(_CLONE[platform.machine()], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return pid


def _become(wanted: dict[str, Any], descriptors: list[int]) -> None:
    """Takes on what a started process is given."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_ALL) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(high, wanted["descriptors"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if wanted["is_session"]:
        os.setsid()
    os.chdir(wanted["folder"])
    _show(wanted["command"], wanted["environment"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    time.tzset()
    sys.orig_argv[:] = wanted["command"]
    sys.argv[1:] = wanted["command"][3:]
    sys.path[0] = "" if wanted["command"][1] == "-c" else wanted["folder"]
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        was = getattr(sys, name)
        stream = open(descriptor, mode, encoding=was.encoding, errors=was.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)


_kept: list[mmap.mmap] = []


def _show(command: list[str], environment: dict[str, str]) -> None:
    """Has /proc/PID/cmdline and environ show these."""
    words = b"".join(os.fsencode(word) + b"\0" for word in command)
    variables = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    shown = mmap.mmap(-1, len(words) + len(variables) + 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shown.write(words + variables)
    _kept.append(shown)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(shown))
    middle, end = begin + len(words), begin + len(words) + len(variables)
    fields = Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()  # the third is the first here
    start_code, end_code, start_stack = (int(fields[number - 3]) for number in (26, 27, 28))
    start_data, end_data, start_brk = (int(fields[number - 3]) for number in (45, 46, 47))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    values = [start_code, end_code, start_data, end_data, start_brk, libc.sbrk(0), start_stack]
    values += [begin, middle, middle, end]  # struct prctl_mm_map of linux/prctl.h
    described = (ctypes.c_uint64 * 13)(*values, 0, 0xFFFFFFFF << 32)  # no auxv, no other executable
    size = ctypes.c_ulong(ctypes.sizeof(described))
    if libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(described), size, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_MM_MAP)")


def _is_able() -> bool:
    try:
        _show(sys.orig_argv, dict(os.environ))  # needs a kernel with CHECKPOINT_RESTORE, as those of distributions are
    except OSError:
        return False
    return platform.machine() in _CLONE


def _main() -> None:
    program = sys.argv[1]
    sys.path[0] = ""
    with socket.socket(fileno=int(sys.argv[2])) as control:
        control.sendall(b"1" if _is_able() else b"0")
        _load(program)
        sys.argv[:] = ["-c"]
        _serve(control)
    if program != "cronium-runner":
        from cronium_controller.cli import main

        main()
    else:
        from cronium_runner import __main__ as runner

        sys.argv[0] = str(runner.__file__)
        runner.leave(runner.main())


if __name__ == "__main__":
    _main()
