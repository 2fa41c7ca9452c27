"""`agent --run-as USER`: this process becomes the target's own runner, serving the same standard input and output.

Root becomes the target by itself; everybody else through `sudo -n`. Both run the same two commands as the target: a
shell script that finds or installs the target's runner (`hand_over`), then that runner's `agent`, in this process's
place. So guardian, subreaper and undertaker are the target's own, and nothing of root's stays behind. No secret is
known yet when all this happens: secrets come later, in frames.

Arguments: the target's name. Standard input and output: the agent's channel, which nothing here touches. Exit status:
the agent's, or 125 and one line on standard error.
"""

import contextlib
import functools
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from . import account as accounts
from . import hand_over, install, session
from .account import Account
from .environment import DEFAULT_PATH, login_environment
from .errors import RunnerError
from .wire.text import last_words

FIND_SECONDS: Final = 60.0
"""sudo may have to ask a directory server, and a cold disk the first runner."""
INSTALL_SECONDS: Final = 120.0
MAX_PRINTED: Final = 64 * 1024
"""What the target's side may say to us before we stop listening: all it has to say is one path."""


def serve(name: str) -> int:
    """Becomes the agent of the account `name`, or serves as our own when that is who we are."""
    try:
        target = accounts.other(name)
        if target is not None:
            _check_no_terminal()
            _become_agent(target)
    except RunnerError as error:
        return accounts.say(error)
    from . import greeting

    return greeting.serve()


def _check_no_terminal() -> None:
    """A terminal in the target's hands is one in which it can read what is typed, and write what looks like ours."""
    if any(os.isatty(descriptor) for descriptor in (0, 1)):
        raise RunnerError("usage.invalid", "the agent's channel cannot be a terminal; `run --run-as` is for people")
    if os.isatty(2):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)


def _become_agent(target: Account) -> NoReturn:
    command = [*_runner_of(target), "agent"]
    argv = _as_target(target, command)
    if os.geteuid() == 0:
        session.leave(lambda sentence: sys.stderr.write(f"cronium-runner: warning: {sentence}\n"))  # as only root can
        accounts.become(target)
    else:
        with contextlib.suppress(OSError):
            accounts.leave_terminal()
        os.chdir("/")  # ours may be closed to the target
    try:
        os.execve(argv[0], argv, _environment(target))
    except OSError as error:
        raise RunnerError("run_as.refused", f"{argv[0]} cannot be executed: {error.strerror}") from None


def _runner_of(target: Account) -> list[str]:
    """The command that is the target's runner. Raises RunnerError."""
    own = install.own_bundle()
    if own is None:
        return _runner_from_source(target)
    found = hand_over.answer(
        _said_by(target, hand_over.words("find", target, own), FIND_SECONDS, os.devnull), target, own
    )
    if found is None:
        directory = os.path.dirname(sys.executable)
        packed = hand_over.archive(own, functools.partial(_read, directory))
        try:
            words = hand_over.words("install", target, own, packed.sha256)
            found = hand_over.answer(_said_by(target, words, INSTALL_SECONDS, packed.descriptor), target, own)
        finally:
            os.close(packed.descriptor)
    if found is None:
        raise RunnerError("run_as.no_runner", f"the runner is gone again from {target.name}'s directories; try again")
    return [found]


def _runner_from_source(target: Account) -> list[str]:
    """This very Python and these very files, when the target can read them."""
    program = "import sys; sys.path[:] = sys.argv.pop(1).split(':'); "
    program += "from cronium_runner.__main__ import leave, main; leave(main())"
    command = [sys.executable, "-c", program, ":".join(os.path.abspath(path) for path in sys.path if path)]
    test = f"echo {hand_over.MARK} here; {shlex.join([*command, 'version'])} >/dev/null 2>&1 && echo usable"
    said = _said_by(target, ["/bin/sh", "-c", test], FIND_SECONDS, os.devnull)
    if said.splitlines()[-1:] != [b"usable"]:
        raise RunnerError(
            "run_as.no_runner",
            f"this runner runs from source, by {sys.executable}, which {target.name} cannot use; nothing was started; "
            "build the binary with scripts/build, or put checkout and Python where others may read them",
        )
    return command


def _as_target(target: Account, command: Sequence[str]) -> list[str]:
    """The words that run `command` with the target's environment alone; root has become the target before."""
    settings = [f"{name}={value}" for name, value in target.environment().items()]
    cleaned = [_env(target), "-i", *settings, *command]
    return cleaned if os.geteuid() == 0 else [_sudo(target), "-n", "-H", "-u", target.name, "--", *cleaned]


def _env(target: Account) -> str:
    """The path of `env`. Looked for before the target is become: later, nobody could say that it is not there."""
    for path in ("/usr/bin/env", "/bin/env"):
        if os.access(path, os.X_OK):
            return path
    raise _refused(target, "there is no env on this host, in /usr/bin or /bin")


def _environment(target: Account) -> dict[str, str]:
    """For `env` or sudo, which both hand on something else."""
    return target.environment() if os.geteuid() == 0 else login_environment(os.environ)


def _sudo(target: Account) -> str:
    for folder in f"{os.environ.get('PATH', '')}:{DEFAULT_PATH}".split(":"):
        path = os.path.join(folder, "sudo")
        if folder.startswith("/") and os.access(path, os.X_OK):
            return path
    raise _refused(target, "there is no sudo on this host")


def _said_by(target: Account, words: Sequence[str], seconds: float, source: str | int) -> bytes:
    """What the command prints as the target, on both streams. Raises RunnerError when it isn't let run, or hangs."""
    argv = _as_target(target, words)
    how: dict[str, Any] = {"start_new_session": True}
    if os.geteuid() == 0:
        how = {"preexec_fn": functools.partial(_become_or_say, target)}
    stdin = os.open(source, os.O_RDONLY | os.O_CLOEXEC) if isinstance(source, str) else source
    try:
        how |= {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(argv, env=_environment(target), cwd="/", **how)
    except (OSError, subprocess.SubprocessError) as error:
        raise _refused(target, getattr(error, "strerror", None) or str(error)) from None
    finally:
        if isinstance(source, str):
            os.close(stdin)
    assert process.stdout is not None
    try:
        printed = _heard(process.stdout.fileno(), seconds)
        if printed is None or not _ends(process):
            with contextlib.suppress(OSError):  # sudo is root's, and not ours to end
                process.kill()
            raise _refused(target, f"no end within {seconds:g} s, or too much said")
    finally:
        process.stdout.close()
    if not hand_over.was_reached(printed):
        raise _refused(target, last_words(printed) or "no word from it")
    return printed


def _become_or_say(target: Account) -> None:
    try:
        accounts.become(target)
    except BaseException as error:  # noqa: BLE001 - subprocess would not tell what it was
        os.write(1, f"{error}".encode())
        os._exit(125)


def _heard(descriptor: int, seconds: float) -> bytes | None:
    """All that is printed until the end of it; None when that doesn't come, or is too much."""
    until = time.monotonic() + seconds
    printed = b""
    while len(printed) <= MAX_PRINTED:
        if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            return None
        piece = os.read(descriptor, MAX_PRINTED)
        if not piece:
            return printed
        printed += piece
    return None


def _ends(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(5.0)  # it has closed its output: it is about to end
    except subprocess.TimeoutExpired:
        return False
    return True


def _refused(target: Account, said: str) -> RunnerError:
    if os.geteuid() == 0:
        return RunnerError("run_as.refused", f"{target.name} was not reached: {said}; nothing was started")
    me = accounts.own_name()
    return RunnerError(
        "run_as.refused",
        f"{me} may not run as {target.name} without a password: '{said}'; nothing was started; this line, added with "
        f"`visudo -f /etc/sudoers.d/cronium-{me}`, allows it: {me} ALL=({target.name}) NOPASSWD: ALL",
    )


def _read(directory: str, path: str) -> bytes:
    with open(os.path.join(directory, path), "rb") as file:
        return file.read()
