"""What `cronium-runner version` says: version, build time, commit. Deployments run it, so it imports little.

`install` and what it needs (typing, re, json) take longer to import than all of this; a damaged form
needs them.
"""

import os
import sys

from . import __version__, bundle, location


def as_json() -> dict[str, str | list[str] | None]:
    """The version, and when and from which commit the binary was built; None when this is no binary.

    `adopted`, in an adopted form only: which libraries its owner has exchanged.

    Raises OSError, ValueError and UnusableError for a binary whose list of contents can't be read.
    """
    form = bundle.read(os.path.join(_directory(), bundle.CONTENTS)) if _is_binary() else None
    told: dict[str, str | list[str] | None] = {
        "version": __version__,
        "builtAt": form.built_at if form else None,
        "commit": form.commit if form else None,
    }
    return told | {"adopted": form.adopted} if form and form.adopted else told


def as_text() -> str:
    """The same for a person, in one line. Raises likewise."""
    told = as_json()
    if told["commit"] is None:
        return f"cronium-runner {__version__} (from source)"
    adopted = ", adopted" if "adopted" in told else ""
    return f"cronium-runner {__version__} (built {told['builtAt']}, commit {told['commit']}{adopted})"


def print_version() -> int:
    """The whole command; returns its exit status. A damaged runner says so instead: deployments ask by this."""
    if not _is_whole():
        from .errors import RunnerError
        from .install import check

        try:
            check()
        except RunnerError as error:
            sys.stderr.write(f"cronium-runner: {error.message} [{error.code}]\n")
            return error.exit_status
    print(as_text())
    return 0


def _is_whole() -> bool:
    """Whether `install.check` would find nothing."""
    if not _is_binary():
        return True
    directory = _directory()
    try:
        location.check_installed(directory)
        form = bundle.read(os.path.join(directory, bundle.CONTENTS))
        return form.damage(directory, lambda path: form.is_as_built(directory, path)) is None
    except (OSError, ValueError, location.UnusableError):
        return False


def _is_binary() -> bool:
    return bool(getattr(sys, "frozen", False))


def _directory() -> str:
    return os.path.dirname(sys.executable)
