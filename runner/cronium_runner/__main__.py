"""Where the process starts: as `cronium-runner`, or as a helper when called by a helper's name.

The binary is frozen from this file. On a machine that has no compiled helper client, every helper name is a link to
the binary, and the name it was called by decides.
"""

import gc
import os
import sys

TYPE_CHECKING = False  # a helper call must not pay for the import of typing
if TYPE_CHECKING:
    from typing import NoReturn

gc.disable()  # nothing that start-up makes is garbage, and looking for it costs a tenth of the start


def main() -> int:
    name = os.path.basename(sys.argv[0])
    if name.startswith(("cronium.", "cronium_")):
        from cronium_runner import client

        return client.main([name, *sys.argv[1:]])
    # Commands that are called in one form only, and often: click would be most of their start (30 ms).
    if sys.argv[1:] == ["agent"]:
        from cronium_runner import greeting

        return greeting.serve(release_modules)
    if sys.argv[1:3] == ["agent", "--run-as"] and len(sys.argv) == 4:
        from cronium_runner import run_as

        release_modules()
        return run_as.serve(sys.argv[3])
    if sys.argv[1:] == ["version"]:
        from cronium_runner import version

        return version.print_version()
    if sys.argv[1:2] == ["run"]:
        from cronium_runner import command, guardian, running

        guardian.import_what_supervisors_need()
        if len(sys.argv) == 3 and not sys.argv[2].startswith("-"):
            end_imports()
            return command.exit_status_of(lambda: running.run_plainly(sys.argv[2]))
    from cronium_runner import cli

    end_imports()
    return cli.main()


def end_imports() -> None:
    """What is loaded by now stays, and is shared with what is forked."""
    release_modules()
    gc.freeze()
    gc.enable()


def release_modules() -> None:
    """Have the binary's file of modules (build/boot.py) open no longer than for one module: no process that is started
    from here on is to inherit it, and a supervisor closes whatever it inherits."""
    for finder in sys.meta_path:
        release = getattr(finder, "release", None)
        if release is not None:
            release()


def leave(status: int) -> "NoReturn":
    """End without taking the interpreter apart, which costs 6 ms: files are closed and children reaped by whoever made
    them, so only what is still buffered has to go out."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 125  # what was said did not arrive
    os._exit(status)


if __name__ == "__main__":
    leave(main())
