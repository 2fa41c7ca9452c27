"""The installed forms of the runner that an account has on a host. Lists them; changes and executes nothing there.

A form is a folder `VERSION-DIGEST` below an install root. The controller installs below one root; a one-file binary
that was started by hand may have chosen another one, in the order of the runner's `location`.
"""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cronium_runner.wire.names import INSTALL_ROOT
from cronium_runner.wire.text import clean, last_words

from .. import remote_shell
from ..errors import DeployError

if TYPE_CHECKING:
    from ..sessions import Connection

FOLDER: Final = re.compile(r"[A-Za-z0-9._+-]{1,200}-[0-9a-f]{12}")
SOURCE: Final = "source"
"""Folders of this name and a digest hold the helpers of runners that run from source."""
OTHER_ROOTS: Final = (
    ".cache/cronium-runner",
    "/var/tmp/cronium-runner-$uid",  # noqa: S108 - only read
    "/run/user/$uid/cronium-runner-$uid",
    "/dev/shm/cronium-runner-$uid",  # noqa: S108
    "/tmp/cronium-runner-$uid",  # noqa: S108
)
"""Where a runner installs itself when it cannot use the first root, as words of sh."""
MOST_FORMS: Final = 50
"""A host keeps three, and those that are in use."""
LONGEST_NAME: Final = 300
"""Characters of a host's name for a file that are shown."""


@dataclass(frozen=True, slots=True)
class InstalledForm:
    """One installed form. `root` is absolute or relative to the home directory, `folder` a name below it."""

    root: str
    folder: str

    def __str__(self) -> str:
        return self.path

    @property
    def path(self) -> str:
        """The form's folder, for a shell that starts in the home directory."""
        return f"{self.root}/{self.folder}"

    @property
    def version(self) -> str:
        """The version that its name says."""
        return version_of(self.folder)


@dataclass(frozen=True, slots=True)
class RootContents:
    """What is below the install roots of an account.

    `forms` come root by root, the newest first in each. `leftovers` are paths of uploads and installations that were
    cut off, or are under way. `others` are paths of everything else. Names in both are as the host has them: clean them
    (`shown`) before they are shown.
    """

    forms: list[InstalledForm]
    leftovers: list[str]
    others: list[str]


def version_of(folder: str) -> str:
    """The version in the name of an installed form."""
    return folder.rpartition("-")[0]


def is_form(name: str) -> bool:
    """Whether an entry of an install root is named like an installed form."""
    return FOLDER.fullmatch(name) is not None and version_of(name) != SOURCE


async def list_forms(connection: "Connection", root: str) -> RootContents:
    """What the account has below the install root `root`; below the runner's other roots too, unless one was chosen.

    Raises DeployError and UnreachableError.
    """
    mark = f"cronium-{os.urandom(8).hex()}:"  # no file of the host can be called so
    others = " ".join(f'"{other}"' for other in OTHER_ROOTS) if root == INSTALL_ROOT else ""
    script = (
        f'uid=$(id -u); for root in "$1" {others}; do [ -d "$root/." ] || continue; '
        f'echo "{mark}$root"; LC_ALL=C ls -at "$root" || exit 1; done; echo {mark}'
    )
    done = await connection.run(remote_shell.in_sh(script, root))
    _, is_marked, listing = done.stdout.decode("utf-8", "surrogateescape").partition(mark)  # rc files print before it
    if done.exit_status != 0 or not f"{is_marked}{listing}".endswith(f"{mark}\n"):
        why = last_words(done.stderr) or "the list was cut off"
        raise DeployError(
            "deploy.unreadable", f"the installed runners cannot be listed: {why}", host=connection.host.name
        )
    found = RootContents([], [], [])
    for part in listing.split(mark)[:-1]:
        there, *names = part.split("\n")
        for name in names:
            if name not in (".", "..", ""):
                _sort_in(found, there, name)
    if len(found.forms) > MOST_FORMS:
        raise DeployError(
            "deploy.unreadable",
            f"{len(found.forms)} installed runners, more than {MOST_FORMS}; remove what no deployment has put there",
            host=connection.host.name,
        )
    return found


def _sort_in(found: RootContents, root: str, name: str) -> None:
    if is_form(name):
        found.forms.append(InstalledForm(root, name))
    elif name.startswith(".upload-") or name.endswith((".tmp", ".tmp.old")):
        found.leftovers.append(f"{root}/{name}")
    else:
        found.others.append(f"{root}/{name}")


def shown(path: str) -> str:
    """A path of a host, safe to be shown."""
    return clean(path, LONGEST_NAME)
