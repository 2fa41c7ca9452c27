"""Containers of podman without root, with its default filter of system calls, for the table of hosts. For root only.

All that podman writes and starts is in namespaces that end with the command: this machine has neither its account nor
its files afterwards.
"""

import os
from pathlib import Path
from typing import Final

import host_roots as roots

_UID: Final = 64242
"""The account that has the container; root in it."""
_SUBORDINATE: Final = 3_000_000, 65_536
"""Ids of this machine that are 1 to 65,536 in the container."""
_NAME: Final = "cronium-container"
_AT: Final = "/mnt"
"""A directory of every Linux system, where a file system in memory is mounted for one command."""

_SCRIPT: Final = f"""
mount -t tmpfs -o mode=755 none {_AT}
mkdir {_AT}/root {_AT}/home
mount --rbind "$1" {_AT}/root
mount --bind "$2/passwd" /etc/passwd
mount --bind "$2/subids" /etc/subuid
mount --bind "$2/subids" /etc/subgid
chown {_UID}:{_UID} {_AT}/home
[ ! -e /sys/fs/cgroup/unified ] || mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup
shift 2
exec "$@"
"""
"""Where both versions of cgroups are mounted, crun refuses to start; it then sees the newer one alone."""


class Container:
    """`root` belongs to the container's accounts from now on; `folder` gets files of its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        for name in ("podman", "crun", "newuidmap", "setpriv"):
            roots.tool(name)
        self._root = root
        self._folder = folder
        accounts = Path("/etc/passwd").read_text()
        (folder / "passwd").write_text(f"{accounts}{_NAME}:x:{_UID}:{_UID}::{_AT}/home:/bin/sh\n")
        (folder / "subids").write_text(f"{_NAME}:{_SUBORDINATE[0]}:{_SUBORDINATE[1]}\n")
        (folder / "passwd").chmod(0o644)
        (folder / "subids").chmod(0o644)
        _give(root)

    def words(self, variables: dict[str, str]) -> list[str]:
        """What stands in front of a command that is run in a container of its own."""
        home = f"{_AT}/home"
        own = {"HOME": home, "XDG_RUNTIME_DIR": home, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        return [
            *("unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc"),
            *("sh", "-ec", _SCRIPT, "sh", str(self._root), str(self._folder)),
            *("setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"),
            *("env", "-i", "-C", "/", *(f"{name}={value}" for name, value in own.items())),
            *("podman", "--log-level=error", "--cgroup-manager=cgroupfs", "--runtime=crun"),
            *("run", "--rm", "--network=none", "--cgroups=disabled"),
            *(f"--env={name}={value}" for name, value in variables.items()),
            *("--rootfs", f"{_AT}/root"),
        ]


def _give(root: Path) -> None:
    """Gives all files to the ids that the container's accounts have on this machine."""
    for folder, names, files in os.walk(root):
        for path in (folder, *(os.path.join(folder, name) for name in (*names, *files))):
            found = os.lstat(path)
            if found.st_uid in (_UID, *range(_SUBORDINATE[0], sum(_SUBORDINATE))):
                continue  # a directory is met twice
            os.lchown(path, _shifted(found.st_uid), _shifted(found.st_gid))
            if not os.path.islink(path):
                os.chmod(path, found.st_mode & 0o7777)  # chown takes set-uid away


def _shifted(number: int) -> int:
    return _UID if number == 0 else _SUBORDINATE[0] + number - 1
