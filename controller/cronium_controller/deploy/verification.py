"""Whether the installed forms on a host are as they were built. Asks the host for digests; decides from values.

What a host says of its files is compared with what our own binaries install (`known_builds`), never with the list of
contents on the host. The host's shell and its tools are believed: an account that controls them decides what they say.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from cronium_runner.wire import contents
from cronium_runner.wire.text import last_words

from .. import remote_shell
from ..errors import DeployError, LoginShellError
from ..sessions import Connection
from .installed_forms import InstalledForm, list_forms, shown
from .known_builds import KnownBuild

HASH_SECONDS: Final = 120.0
"""For the digests of one form, some 25 MB, on a slow disk."""
CHANGED: Final = "changed"
EXCHANGED: Final = "exchanged by its owner"
_LONGEST_LIST: Final = 256 * 1024
"""Bytes of a list of contents, of which there are some 20 KiB."""
MOST_TOLD: Final = 100
"""Differences of a form that are kept; the first tells enough."""
_DIGEST_LINE: Final = re.compile(r"\\?([0-9a-f]{64}) [ *]\./(.+)")
"""A line of sha256sum, `openssl dgst -r` or shasum."""
_COMPILED: Final = re.compile(r"helpers/[a-z]+/__pycache__(?:/[A-Za-z0-9_.-]+\.pyc)?")
"""What a script's Python keeps of the helpers that it imports: it differs from one Python to the next."""


class State(StrEnum):
    """What a form was found to be."""

    AGREES = "agrees"
    ADOPTED = "adopted"
    """Nothing differs but libraries that its owner has exchanged, and recorded (`cronium-runner install --adopt`)."""
    DIFFERS = "differs"
    UNKNOWN = "unknown build"


@dataclass(frozen=True, slots=True)
class Difference:
    """A file of a form that is not as it was built. `path` is below the form's folder, cleaned."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class VerifiedForm:
    """An installed form, compared. `files` counts those that were hashed; `skipped` names compiled helpers."""

    path: str
    version: str
    state: State
    files: int
    differences: list[Difference]
    skipped: list[str]

    def to_json(self) -> dict[str, Any]:
        """For `cronium deploy --verify --json`."""
        return {
            "path": self.path, "version": self.version, "state": self.state.value, "files": self.files,
            "differences": [{"path": one.path, "what": one.what} for one in self.differences],
            "notCompared": self.skipped,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verification:
    """All installed forms of an account on a host. `others` are entries of its install roots that are no such form."""

    forms: list[VerifiedForm]
    others: list[str]

    @property
    def agrees(self) -> bool:
        """Whether every form is as one of our own binaries installs it, and nothing else is there."""
        return not self.others and all(form.state is State.AGREES for form in self.forms)


@dataclass(slots=True)
class Tree:
    """What a host says of a form's files, by path below its folder."""

    digests: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    specials: set[str] = field(default_factory=set)
    """What is no file, folder or link."""
    writable: set[str] = field(default_factory=set)
    """What another account can write, or owns."""
    unclear: bool = False
    """Whether something was said that cannot be read, or twice: a name with a newline, for one."""


async def verify(connection: Connection, root: str, known: Mapping[str, KnownBuild]) -> Verification:
    """Compares what is below the install root (and those that a runner chooses by itself) with the known builds.

    `known` has builds by folder names. Raises DeployError and UnreachableError.
    """
    found = await list_forms(connection, root)
    forms = []
    for form in found.forms:
        tree = Tree()
        differences: list[Difference] = []
        skipped: list[str] = []
        build = known.get(form.folder)
        try:
            tree = await read_tree(connection, form)
            if build is not None:
                differences, skipped = compared(build, tree)
        except LoginShellError:
            differences = [Difference(".", "it has more names than any build")]
        except DeployError as error:
            differences = [Difference(".", f"it cannot be read: {error.message}")]
        state = State.UNKNOWN if build is None else State.DIFFERS if differences else State.AGREES
        if build is not None and (exchanged := may_be_adopted(tree, differences)):
            text = await _read_list(connection, form)
            if is_adopted(build, tree, exchanged, text):
                state, differences = State.ADOPTED, [Difference(path, EXCHANGED) for path in sorted(exchanged)]
        told = differences[:MOST_TOLD]
        forms.append(VerifiedForm(shown(form.path), form.version, state, len(tree.digests), told, skipped[:MOST_TOLD]))
    return Verification(forms, [shown(path) for path in found.others[:MOST_TOLD]])


def may_be_adopted(tree: Tree, differences: list[Difference]) -> set[str]:
    """The files that differ from a build, when nothing else does but the list of contents; else nothing."""
    changed = {one.path for one in differences if one.what == CHANGED and one.path in tree.digests}
    if contents.FILE not in changed or len(changed) < len(differences) or changed & tree.writable:
        return set()
    return changed - {contents.FILE}


def is_adopted(build: KnownBuild, tree: Tree, exchanged: set[str], text: str) -> bool:
    """Whether a form's list of contents is the build's, with these libraries and no others as what they are now."""
    try:
        listed = contents.parse(text)
    except ValueError:
        return False
    found = {path: tree.digests[path] for path in exchanged}
    return (
        _sha256(text) == tree.digests[contents.FILE]
        and _sha256(contents.as_built(text)) == build.files[contents.FILE]
        and listed.adopted == found
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


async def _read_list(connection: Connection, form: InstalledForm) -> str:
    """A form's list of contents, as the host has it; empty where it cannot be had. Raises UnreachableError."""
    script = f'head -c {_LONGEST_LIST} "$1/{contents.FILE}"'
    try:
        done = await connection.run(remote_shell.in_sh(script, form.path), timeout=HASH_SECONDS)
    except (DeployError, LoginShellError):
        return ""
    return done.stdout.decode("utf-8", "surrogateescape")


async def read_tree(connection: Connection, form: InstalledForm) -> Tree:
    """What is below a form's folder. Raises UnreachableError, and LoginShellError for more than a MiB of names.

    Raises DeployError, whose message is only the reason, when the folder cannot be read.
    """
    mark = f"cronium-{os.urandom(8).hex()}"
    done = await connection.run(remote_shell.in_sh(_script(mark), form.path), timeout=HASH_SECONDS)
    parts = done.stdout.decode("utf-8", "surrogateescape").split(f"{mark}\n")
    if done.exit_status != 0 or len(parts) != 7:
        raise DeployError("deploy.unreadable", last_words(done.stderr) or f"exit status {done.exit_status}")
    return read_answer(parts[1:6])


def _script(mark: str) -> str:
    """sh that prints five lists: digests of files, links with where they lead, folders, other things, and what another
    account could have written."""
    hasher = (
        "if command -v sha256sum >/dev/null; then hash=sha256sum; "
        'elif command -v openssl >/dev/null; then hash="openssl dgst -sha256 -r"; else hash="shasum -a 256"; fi; '
    )
    links = 'for l; do readlink "$l" >/dev/null || exit 1; printf "%s\\n" "$(readlink "$l")" "$l"; done'
    return (
        f'if [ -L "$1" ]; then echo it is a link >&2; exit 1; fi; cd "$1" || exit 1; {hasher}uid=$(id -u); '
        f"echo {mark}; find . -type f -exec $hash {{}} +; "
        f"echo {mark}; find . -type l -exec sh -c '{links}' sh {{}} +; "
        f"echo {mark}; find . -type d; "
        f"echo {mark}; find . ! -type f ! -type d ! -type l; "
        f"echo {mark}; find . ! -type l \\( -perm -020 -o -perm -002 -o ! -user $uid ! -user 0 \\); "
        f"echo {mark}"
    )


def read_answer(parts: list[str]) -> Tree:
    """The five lists that a host answers with."""
    tree = Tree()
    digests, links, folders, specials, writable = (part.split("\n")[:-1] for part in parts)
    for line in digests:
        matched = _DIGEST_LINE.fullmatch(line)
        if matched is None or matched[2] in tree.digests:
            tree.unclear = True
        else:
            tree.digests[matched[2]] = matched[1]
    for goal, path in zip(links[::2], links[1::2], strict=False):
        tree.links[_below(path, tree)] = goal
    tree.unclear = tree.unclear or len(links) % 2 == 1 or len(tree.links) != len(links) // 2
    for lines, seen in ((folders, tree.folders), (specials, tree.specials), (writable, tree.writable)):
        seen.update(_below(path, tree) for path in lines if path != "." or seen is tree.writable)
    return tree


def _below(path: str, tree: Tree) -> str:
    if path != "." and not path.startswith("./"):
        tree.unclear = True
    return path.removeprefix("./")


def compared(build: KnownBuild, tree: Tree) -> tuple[list[Difference], list[str]]:
    """What differs from a build, in the order of paths, and the compiled helpers that cannot be compared."""
    found: dict[str, str] = {}
    skipped = {path for path in tree.digests if _COMPILED.fullmatch(path)}
    for path in sorted({*build.files, *tree.digests} - skipped):
        if path not in tree.digests:
            found[path] = "missing"
        elif path not in build.files:
            found[path] = "added"
        elif tree.digests[path] != build.files[path]:
            found[path] = CHANGED
    for path in {*build.links, *tree.links}:
        if tree.links.get(path) != build.links.get(path):
            found[path] = "missing" if path not in tree.links else "changed" if path in build.links else "added"
    folders = {parent for path in (*build.files, *build.links) for parent in _parents(path)}
    added = (path for path in tree.folders - folders if not _COMPILED.fullmatch(path))
    found.update(dict.fromkeys(added, "added"))
    found.update(dict.fromkeys(tree.specials, "no regular file"))
    for path in tree.writable:
        if not _COMPILED.fullmatch(path):  # made with the login's umask, in a folder that is closed
            found.setdefault(path, "another account can write it")
    if tree.unclear:
        found["."] = "a name or digest that cannot be read"
    return [Difference(shown(path), what) for path, what in sorted(found.items())], sorted(map(shown, skipped))


def _parents(path: str) -> Iterable[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
