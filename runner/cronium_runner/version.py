"""What `cronium-runner version` says: version, build time, commit. Imports little: nothing is asked more often."""

from . import __version__


def as_json() -> dict[str, str | None]:
    """The version, and when and from which commit the binary was built; None when this is no binary."""
    from .install import own_bundle

    bundle = own_bundle()
    return {
        "version": __version__,
        "builtAt": bundle.built_at if bundle else None,
        "commit": bundle.commit if bundle else None,
    }


def as_text() -> str:
    """The same for a person, in one line."""
    told = as_json()
    if told["commit"] is None:
        return f"cronium-runner {__version__} (from source)"
    return f"cronium-runner {__version__} (built {told['builtAt']}, commit {told['commit']})"


def print_version() -> int:
    """The whole command; returns its exit status. A damaged runner says so instead: deployments ask by this."""
    from .errors import RunnerError
    from .install import check

    try:
        check()
    except RunnerError as error:
        import sys

        sys.stderr.write(f"cronium-runner: {error.message} [{error.code}]\n")
        return error.exit_status
    print(as_text())
    return 0
