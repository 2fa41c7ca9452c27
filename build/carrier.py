"""The one-file binary's own program: install what it carries, once, and become the installed runner.

In:  what PyInstaller extracted (`sys._MEIPASS`), the arguments, the environment.
Out: this process replaced by `<install root>/<version>-<build id>/cronium-runner` with the same arguments; or exit
     status 125 and one line on standard error.

So nothing that runs a job depends on the extraction directory, which vanishes with the one-file parent process.
`cronium-runner install DIR` installs into DIR only, so that it works where none of the usual directories does.
"""

import os
import sys
import zlib

from cronium_runner import bundle, location
from cronium_runner.environment import login_environment

TYPE_CHECKING = False  # typing's own would cost every start the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable


def reader(carried: bundle.Bundle, source: str) -> "Callable[[str], bytes]":
    """What gives the content of each file: from the extraction directory, or from the pack in our own executable."""
    packed: dict[str, bytes] = {}

    def read(path: str) -> bytes:
        if not packed:
            packed.update(unpacked(carried))
        if path in packed:
            return packed[path]
        with open(bundle.extracted_path(source, path), "rb") as file:
            return file.read()

    return read


def unpacked(carried: bundle.Bundle) -> dict[str, bytes]:
    with open(sys.executable, "rb") as file:
        _, mark, pack = file.read().partition(bundle.PACK_MARK)
    content = zlib.decompressobj().decompress(pack) if mark else b""
    files, offset = {}, 0
    for path, size in carried.packed:
        files[path] = content[offset : offset + size]
        offset += size
    return files


def main() -> int:
    source: str = sys._MEIPASS  # type: ignore[attr-defined]
    carried = bundle.read(os.path.join(source, bundle.CONTENTS))

    def install(directory: str) -> str:
        bundle.place(carried, directory, reader(carried, source))
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
