"""The one-file binary's own program: install what it carries, once, and become the installed runner.

In:  what PyInstaller extracted (`sys._MEIPASS`), the arguments, the environment.
Out: this process replaced by `<install root>/<version>-<build id>/cronium-runner` with the same arguments; or exit
     status 125 and one line on standard error.

So nothing that runs a job depends on the extraction directory, which vanishes with the one-file parent process.
`cronium-runner install DIR` installs into DIR only, so that it works where none of the usual directories does.
"""

import os
import sys

from cronium_runner import bundle, location
from cronium_runner.environment import login_environment


def main() -> int:
    source: str = sys._MEIPASS  # type: ignore[attr-defined]
    carried = bundle.read(os.path.join(source, bundle.CONTENTS))

    def install(directory: str) -> str:
        bundle.place(carried, source, directory, extracted=True)
        return os.path.join(directory, bundle.EXECUTABLE)

    try:
        if len(sys.argv) == 3 and sys.argv[1] == "install" and not sys.argv[2].startswith("-"):
            directory = os.path.abspath(sys.argv[2])
            location.make_parent(directory)
            executable = install(directory)
        else:
            executable = location.first_usable(lambda root: install(os.path.join(root, carried.folder)))
        os.execve(executable, [executable, *sys.argv[1:]], login_environment(os.environ))
    except location.UnusableError as error:
        sys.stderr.write(f"cronium-runner: {location.advice(error)}\n")
    except OSError as error:
        sys.stderr.write(f"cronium-runner: the runner cannot be installed: {error}\n")
    return 125


if __name__ == "__main__":
    sys.exit(main())
