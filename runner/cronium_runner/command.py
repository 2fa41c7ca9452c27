"""The frame of every command: its standard streams are open, and what it raises becomes a sentence and an exit status.

The one place that turns errors into exit statuses. It knows nothing of click, which some commands do without.
"""

import os
import sys
from collections.abc import Callable

from .cli_show import say
from .errors import RunnerError
from .wire.results import EXIT_CANCELLED, EXIT_RUNNER_FAILED


def exit_status_of(command: Callable[[], int]) -> int:
    """Does the command; returns the exit status that the process ends with."""
    _open_standard_streams()
    try:
        return command()
    except KeyboardInterrupt:
        return EXIT_CANCELLED
    except RunnerError as error:
        say(f"{error.message} [{error.code}]")
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read us has gone; there is nobody to tell
        return 0
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        say(f"{where}{error.strerror or error}; free what is short on this host and try again [runner.refused]")
        return EXIT_RUNNER_FAILED
    except Exception as error:  # noqa: BLE001 - a traceback and its status 1 would pass for a script's failure
        say(f"{type(error).__name__}: {error} [runner.internal]")
        return EXIT_RUNNER_FAILED


def _open_standard_streams() -> None:
    """Opens those of descriptors 0 to 2 that we were started without, else a socket of ours would get the number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - open as long as the process is
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
