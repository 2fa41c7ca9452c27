"""Leaving the login's session, so that its end does not end us: systemd's KillUserProcesses.

A login's processes are in a scope `session-N.scope`, and where logind.conf says KillUserProcesses=yes, logind ends all
that are in it at logout, whatever session and parent they have. So the agent, or a one-shot run, leaves it once, before
it starts anything. Root moves itself into a group of ours. An ordinary account may not; it starts itself again in a
scope of its own user manager, where that answers. Where neither can be done it is said once, in a sentence.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from . import cgroup

GROUP: Final = "sessionless"
"""Beside the groups of executions: everything of root's that has left a login's session."""
LOGIND_SETTINGS: Final = (
    "/usr/lib/systemd/logind.conf.d/*.conf",
    "/etc/systemd/logind.conf",
    "/run/systemd/logind.conf.d/*.conf",
    "/etc/systemd/logind.conf.d/*.conf",
)
"""Later ones win (logind.conf(5))."""
_HIERARCHIES: Final = ("0::", "name=systemd:")
"""Where systemd keeps its scopes: version 2, or a hierarchy of its own beside version 1."""


def leave(say: Callable[[str], object]) -> None:
    """Leaves the login's session if its end would end us; says one sentence when it can't. May start us again."""
    scopes = _session_scopes()
    if not scopes:
        return
    if os.geteuid() == 0:
        # Whatever logind says: it excepts root by default, but not with an empty KillExcludeUsers.
        left = [_move(hierarchy) for hierarchy in scopes]
        if not all(left):
            say("this process could not leave the login's session; systemd may end it when the login ends")
    elif kills_user_processes(LOGIND_SETTINGS):
        _start_again(say)


def kills_user_processes(patterns: Sequence[str]) -> bool:
    """What logind's settings say about KillUserProcesses; it is off unless they turn it on."""
    import glob  # an agent outside of a login session doesn't get here

    found = False
    for pattern in patterns:
        for path in sorted(glob.glob(pattern)):
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    name, _, value = line.strip().partition("=")
                    if name.strip() == "KillUserProcesses":
                        found = value.strip().lower() in ("yes", "true", "on", "1")
    return found


def _session_scopes() -> list[str]:
    """The hierarchies in which we are in the scope of a login."""
    # Without /proc, or a descriptor for it, there is no session that we could leave, and nothing to fail for.
    lines: list[str] = []
    with (
        contextlib.suppress(OSError),
        open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file,
    ):
        lines = file.read().split("\n")
    return [hierarchy for hierarchy in _HIERARCHIES if _is_in_session(_path(lines, hierarchy))]


def _is_in_session(path: str) -> bool:
    return any(part.startswith("session-") and part.endswith(".scope") for part in path.split("/"))


def _path(lines: Sequence[str], hierarchy: str) -> str:
    for line in lines:
        # The number of a version 1 hierarchy differs from boot to boot: 9:name=systemd:/user.slice/…
        if line.startswith(hierarchy) or line.partition(":")[2].startswith(hierarchy):
            return line.rpartition(":")[2]
    return ""


def _move(hierarchy: str) -> bool:
    mount = cgroup.mount_point() if hierarchy == "0::" else cgroup.mount_point(systemd=True)
    if mount is None:
        return False
    group = os.path.join(mount, cgroup.FOLDER, GROUP)
    try:
        os.makedirs(group, 0o755, exist_ok=True)
        with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    except OSError:
        return False
    return True


def _start_again(say: Callable[[str], object]) -> None:
    """Becomes the same command in a scope of the account's own manager. Returns when that can't be done."""
    import shutil
    import subprocess

    program = shutil.which("systemd-run")
    words = [program or "systemd-run", "--user", "--scope", "--quiet", "--collect", "--property=Delegate=yes"]
    answer = 1
    if program is not None:
        # Tried with nothing first: we can't come back from an exec that fails.
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            answer = subprocess.run([*words, "true"], timeout=10, check=False, **quiet).returncode  # type: ignore[call-overload]
    if answer != 0:
        say(
            "systemd ends this account's processes when it logs out (KillUserProcesses=yes), and its user manager does "
            "not answer; jobs end with the login. Turn lingering on: loginctl enable-linger"
        )
        return
    if not os.path.exists(f"/var/lib/systemd/linger/{_account()}"):
        say(
            "systemd ends this account's processes at its last logout (KillUserProcesses=yes without lingering); "
            "for jobs to go on: loginctl enable-linger"
        )
    with contextlib.suppress(OSError):
        os.execv(words[0], [*words, *_own_command()])


def _account() -> str:
    from . import password_database

    try:
        return password_database.by_uid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _own_command() -> list[str]:
    """The command that this process was started with."""
    return [sys.executable, *sys.argv[1:]] if getattr(sys, "frozen", False) else [sys.executable, *sys.orig_argv[1:]]
