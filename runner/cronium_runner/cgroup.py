"""Control groups, version 2: where this account can make some, one for an execution, and what ends everything in it.

A process cannot leave its group, whatever it forks, calls or cleans from its environment, so `cgroup.kill` ends a tree
at once and completely. Whether an execution gets a group is `containment`'s decision. Version 1 hierarchies, which
have no cgroup.kill, are only read here.
"""

import contextlib
import errno
import functools
import os
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

FOLDER: Final = "cronium-runner"
"""Root's groups are made in one of this name at the top of the hierarchy, outside everybody's login session."""
PREFIX: Final = "cronium-"
WANTED_CONTROLLERS: Final = ("memory", "pids", "cpu")
_ESCAPES: Final = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}
"""How mountinfo writes what would break its lines (proc(5)); the backslash comes last."""
REMOVE_TRIES: Final = 50
"""A group whose last process has just ended is busy for a moment; 50 × 10 ms, then the next contact removes it."""


class Place(NamedTuple):
    """A directory in which groups with cgroup.kill can be made, and the controllers that those have."""

    path: str
    controllers: frozenset[str]


class Group:
    """One execution's group, by the path of its directory."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"<Group {self.path}>"

    @classmethod
    def make(cls, place: Place, settings: Mapping[str, str]) -> "Group":
        """A new, empty group with these limits (file name: what to write). Raises OSError, and leaves none then."""
        group = cls(os.path.join(place.path, PREFIX + os.urandom(8).hex()))
        os.mkdir(group.path, 0o755)
        try:
            for name, text in settings.items():
                _write(os.path.join(group.path, name), text)
        except OSError:
            group.remove()
            raise
        return group

    def open_entrance(self) -> int:
        """A descriptor that moves the process into the group that writes `0` to it."""
        return os.open(os.path.join(self.path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)

    def processes(self) -> list[int]:
        """Who is in it, or in a group that the script has made below it."""
        found: list[int] = []
        for folder, _, _ in os.walk(self.path):
            found += _pids(folder)
        return found

    def kill(self) -> None:
        """SIGKILL to everything in it and below, at once: also to what is being forked meanwhile."""
        with contextlib.suppress(OSError):
            _write(os.path.join(self.path, "cgroup.kill"), "1")

    def count(self, file: str, event: str) -> int:
        """How often an event has happened, from a file like memory.events; 0 where there is no such file."""
        for line in _read(os.path.join(self.path, file)).splitlines():
            name, _, value = line.partition(" ")
            if name == event and value.isdigit():
                return int(value)
        return 0

    def number(self, file: str) -> int | None:
        """The number in a file like memory.peak; None where there is none."""
        text = _read(os.path.join(self.path, file)).strip()
        return int(text) if text.isdigit() else None

    def remove(self) -> None:
        """Removes it, and what was made below it, once it is empty. What can't be removed now is left for `sweep`."""
        for _ in range(REMOVE_TRIES):
            try:
                for folder, _, _ in os.walk(self.path, topdown=False):
                    os.rmdir(folder)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    return
            time.sleep(0.01)


def reopened(path: object) -> Group | None:
    """The group of a recorded path, while there is one. Its name is random, so it is never another execution's."""
    if not isinstance(path, str) or not os.path.basename(path).startswith(PREFIX):
        return None
    return Group(path) if os.path.exists(os.path.join(path, "cgroup.kill")) else None


@functools.cache
def place() -> Place | None:
    """Where we can make groups; None where we can't. Looked up once: an agent does it for all whom it forks."""
    mount = mount_point()
    own = own_path()
    if mount is None or own is None:
        return None
    path = os.path.join(mount, FOLDER) if os.geteuid() == 0 else mount + own.rstrip("/")
    try:
        if os.geteuid() == 0:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o755)
        controllers = _enable(path)
        probe = Group.make(Place(path, controllers), {})
    except OSError:
        return None
    try:
        # Before Linux 5.14 there is no cgroup.kill. An account that may make groups in its own, but was not handed
        # cgroup.procs of it, cannot move anybody into them.
        if not os.path.exists(os.path.join(probe.path, "cgroup.kill")) or not _can_enter(path):
            return None
    finally:
        probe.remove()
    return Place(path, controllers)


def sweep(older_than: float = 3600.0) -> None:
    """Removes empty groups of executions that nobody removed, once they are certainly nobody's (seconds)."""
    found = place()
    if found is None:
        return
    with contextlib.suppress(OSError), os.scandir(found.path) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.stat(follow_symlinks=False).st_mtime < time.time() - older_than:
                with contextlib.suppress(OSError):  # not empty: somebody is at it
                    os.rmdir(entry.path)


def mount_point(mountinfo: str = "/proc/self/mountinfo", *, systemd: bool = False) -> str | None:
    """Where cgroup2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside version 1.

    With `systemd` the version 1 hierarchy that has no controller but systemd's own names.
    """
    for line in _read(mountinfo).splitlines():
        fields, _, described = line.partition(" - ")
        kind, *_, options = described.split(" ") if described else ("", "")
        if (kind == "cgroup" and "name=systemd" in options.split(",")) if systemd else kind == "cgroup2":
            path = fields.split(" ")[4]
            for escape, character in _ESCAPES.items():
                path = path.replace(escape, character)
            return path
    return None


def own_path(hierarchy: str = "0::") -> str | None:
    """Our own group, as a path below the mount point."""
    for line in _read("/proc/self/cgroup").splitlines():
        if line.startswith(hierarchy):
            return line[len(hierarchy) :]
    return None


def _enable(path: str) -> frozenset[str]:
    """Hands on to the groups below `path` whatever controllers there are; returns those that they have."""
    available = set(_read(os.path.join(path, "cgroup.controllers")).split())
    subtree = os.path.join(path, "cgroup.subtree_control")
    missing = [name for name in WANTED_CONTROLLERS if name in available and name not in _read(subtree).split()]
    if missing and _pids(path) == [os.getpid()]:
        # Controllers are handed on only by a group without processes of its own. A scope that systemd made for us
        # alone has just us, so we step down.
        leaf = os.path.join(path, PREFIX + "self")
        with contextlib.suppress(FileExistsError):
            os.mkdir(leaf, 0o755)
        _write(os.path.join(leaf, "cgroup.procs"), "0")
    for name in missing:
        with contextlib.suppress(OSError):  # EBUSY: somebody else is in it
            _write(subtree, f"+{name}")
    return frozenset(_read(subtree).split()) & set(WANTED_CONTROLLERS)


def _can_enter(path: str) -> bool:
    return os.geteuid() == 0 or os.access(os.path.join(path, "cgroup.procs"), os.W_OK)


def _pids(folder: str) -> list[int]:
    return [int(word) for word in _read(os.path.join(folder, "cgroup.procs")).split()]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    opened = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(opened, text.encode("ascii"))
    finally:
        os.close(opened)
