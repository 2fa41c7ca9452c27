"""The runner's own installation on this host, and the helper folder that every script finds its helpers in.

In the binary both are the bundle it runs from. From a source checkout or a wheel there is nothing to install, and
the helper folder is made once below the install root. Which directory may be used is `location`'s to say, what
belongs into a bundle is `bundle`'s.
"""

import contextlib
import functools
import os
import sys
from typing import Final, NamedTuple

from . import bundle, location, safe_path
from .digest import sha256
from .errors import RunnerError

CLIENT_VARIABLE: Final = "CRONIUM_HELPER_CLIENT"
"""Names a compiled helper client for a runner that runs from source, which has none of its own."""

HELPER_FILES: Final = {
    "bin": ("cronium.sh",),
    "python": ("cronium.py", "sitecustomize.py"),
    "node": ("cronium.js", "cronium.d.ts", "package.json"),
}
"""What is in the folders of a `HelperFolder`, besides the links."""
MODULE_LINK: Final = ("modules/cronium.py", "../python/cronium.py")
"""The one of `modules`, and where it leads."""


def _helper_files() -> list[tuple[str, str]]:
    """Folder and name of each."""
    return [(folder, name) for folder, names in HELPER_FILES.items() for name in names]


class HelperFolder(NamedTuple):
    """Absolute paths: `bin` goes on PATH, `node` on NODE_PATH, and on PYTHONPATH `python` for a Python script, whose
    `sitecustomize` makes the module be there without an import, and `modules` for every other."""

    bin: str
    python: str
    node: str
    modules: str

    @classmethod
    def below(cls, directory: str) -> "HelperFolder":
        return cls(*(os.path.join(directory, name) for name in cls._fields))


def installed_executable() -> str | None:
    """This process's own installed executable; None when it runs from source or from a wheel."""
    return sys.executable if getattr(sys, "frozen", False) else None


def own_bundle() -> bundle.Bundle | None:
    """The list of contents of the bundle this process runs from (version, commit, build time); None from source."""
    executable = installed_executable()
    if executable is None:
        return None
    try:
        return bundle.read(os.path.join(os.path.dirname(executable), bundle.CONTENTS))
    except (OSError, ValueError, location.UnusableError) as error:
        raise _unusable(
            f"{executable} is not beside its list of contents ({error}): install the runner again"
        ) from error


def install(directory: str | None) -> str:
    """Make sure that the runner is installed, and return the absolute path of the installed executable.

    With `directory` exactly that directory becomes the installed form; it must be missing, empty, or hold this very
    build already. Without, it is the directory this process runs from. Raises RunnerError `install.unusable`.
    """
    executable = installed_executable()
    own = own_bundle()
    if executable is None or own is None:
        raise _unusable("this runner runs from source and has nothing to install; build the binary with scripts/build")
    source = os.path.dirname(executable)
    check(thorough=True)
    if directory is None:
        return executable
    destination = os.path.abspath(directory)
    if os.path.realpath(destination) == os.path.realpath(source):
        return executable
    try:
        location.make_parent(destination)
        bundle.place(own, destination, functools.partial(_read, source))
    except (OSError, location.UnusableError) as error:
        raise _unusable(f"the runner cannot be installed in {destination}: {error}") from error
    return os.path.join(destination, bundle.EXECUTABLE)


def check(*, thorough: bool = False) -> None:
    """Find the installed form that this process runs from as it was built, where no other user can exchange it.

    Types, modes, sizes and times of its files; the SHA-256 of those that have changed since, or of all with `thorough`.
    Nothing to do for a runner from source. Raises RunnerError `install.damaged` and `install.unusable`.
    """
    executable, own = installed_executable(), own_bundle()
    if executable is None or own is None:
        return
    directory = os.path.dirname(executable)
    try:
        location.check_installed(directory)
    except (OSError, location.UnusableError) as error:
        raise _unusable(f"this runner is not safe to use: {error}; correct that, or install it elsewhere") from error
    damaged = own.damage(directory, functools.partial(own.is_as_built, directory), thorough=thorough)
    if damaged is not None:
        raise RunnerError(
            "install.damaged",
            f"{os.path.join(directory, damaged)} is not as it was installed{_unheeded(directory, damaged)}; "
            "nothing was started; install the runner again, as `cronium deploy` does",
        )


def _unheeded(directory: str, path: str) -> str:
    """Why a library that was exchanged and adopted counts as damage."""
    from . import adopting

    why = adopting.why_not()
    if why is None or path not in adopting.recorded(directory):
        return ""
    return f", and {why}"


def helper_folder() -> HelperFolder:
    """Where the helpers are, made first if need be. A few lstats when they are there.

    Raises RunnerError; `install.damaged` when files of the installed form, the helpers among them, have changed.
    """
    chosen = os.environ.get("CRONIUM_INSTALL_DIR"), os.environ.get(CLIENT_VARIABLE)
    folder, seen = _located(*chosen)
    try:
        if seen is not None and seen != _seen(folder):
            _located.cache_clear()
            folder, _ = _located(*chosen)
        os.lstat(folder.bin)
    except OSError:
        if installed_executable() is not None:
            raise _unusable(f"{folder.bin} is gone: install the runner again") from None
        _located.cache_clear()
        folder, _ = _located(*chosen)
    return folder


def link_for_modules(state: str, folder: HelperFolder) -> None:
    """Makes `import cronium from "cronium"` work in Node's ECMAScript modules, which don't look at NODE_PATH.

    Node looks for `node_modules` in every folder above a module's file, so one link in the state directory, above all
    work directories, serves every execution: one readlink when it is there. One of another version is replaced, as
    all speak the same protocol. Where none can be made, only such imports fail.
    """
    path = f"{state}/node_modules/cronium"
    with contextlib.suppress(OSError):
        if os.readlink(path) == folder.node:
            return
    temporary = f"{path}.{os.getpid()}"
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), location.PRIVATE)
        os.symlink(folder.node, temporary)
        os.rename(temporary, path)


def _seen(folder: HelperFolder) -> list[tuple[int, int, int, int]]:
    """What changes when a helper's file does: scripts run them long after the start that has checked them."""
    above = os.path.dirname(folder.bin)
    files = [f"{above}/client", *(f"{above}/{below}/{name}" for below, name in _helper_files())]
    found = map(os.lstat, files)
    return [(one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found]


@functools.cache
def _located(_root: str | None, client: str | None) -> tuple[HelperFolder, list[tuple[int, int, int, int]] | None]:
    """The helper folder; of an installed form also how its files looked when they were checked."""
    executable = installed_executable()
    if executable is not None:
        check()
        folder = HelperFolder.below(os.path.join(os.path.dirname(executable), bundle.HELPERS))
        return folder, _seen(folder)
    files = _source_files(client)
    try:
        return HelperFolder.below(location.first_usable(lambda root: _make_from_source(root, files))), None
    except location.UnusableError as error:
        raise _unusable(location.advice(error)) from error


def _source_files(client: str | None) -> dict[str, bytes]:
    """The files of a helper folder by their paths in it; `client` names a compiled client for it."""
    from cronium_helpers import FOLDER

    files = {f"{below}/{name}": (FOLDER / name).read_bytes() for below, name in _helper_files()}
    if not client:
        return files | {"client": _launcher(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))}
    try:
        with open(client, "rb") as file:
            return files | {"client": file.read()}
    except OSError as error:
        raise _unusable(f"{CLIENT_VARIABLE} names {client}, which cannot be read: {error.strerror}") from error


def _make_from_source(root: str, files: dict[str, bytes]) -> str:
    """The helper folder of a runner that has no bundle, named by what is in it, so a change makes a new one."""
    from .helpers import HELPER_NAMES

    digest = sha256("\n".join((*HELPER_NAMES, *MODULE_LINK)).encode())
    for name, content in sorted(files.items()):
        digest.update(b"\0%s\0%d\0" % (name.encode(), len(content)) + content)
    directory = os.path.join(root, f"source-{digest.hexdigest()[:12]}")
    if os.path.isdir(directory):
        return directory
    temporary = f"{directory}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        for folder in ("", *HelperFolder._fields):
            safe_path.make_one(os.path.join(temporary, folder))
        for name, content in files.items():
            with open(os.path.join(temporary, name), "xb") as file:
                file.write(content)
        os.chmod(os.path.join(temporary, "client"), location.PRIVATE)
        for name in HELPER_NAMES:
            os.symlink("../client", os.path.join(temporary, "bin", name))
        link, goal = MODULE_LINK
        os.symlink(goal, os.path.join(temporary, link))
        os.rename(temporary, directory)
    except OSError:
        bundle.remove(temporary)
        if not os.path.isdir(directory):  # else another process was quicker, and made the same
            raise
    return directory


def _launcher(packages: str) -> bytes:
    """A helper client in shell: this very interpreter, isolated from the job's own Python settings.

    `-I` because a script's PYTHONPATH and current folder are its own; so the folder of our packages is put in by hand.
    """
    import shlex

    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from cronium_runner.client import main; "
    program += "sys.exit(main(sys.argv[1:]))"
    words = shlex.join([sys.executable, "-I", "-S", "-c", program, packages])
    return f'#!/bin/sh\nexec {words} "$0" "$@"\n'.encode()


def _read(directory: str, path: str) -> bytes:
    with open(os.path.join(directory, path), "rb") as file:
        return file.read()


def _unusable(message: str) -> RunnerError:
    return RunnerError("install.unusable", message)
