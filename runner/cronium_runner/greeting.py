"""The start of an agent: its channel, what can keep it from serving, HELLO; then the agent itself is loaded.

Before HELLO only what decides whether the agent can serve is imported. What a job needs, more than half of all modules,
is loaded while the controller's first frame travels; an agent whose channel has ended by then loads none of it.

Arguments: none. Standard input: frames. Standard output: the magic line, then frames (wire/PROTOCOL.md). Exit status:
0 when the channel was closed and everything has ended, 125 when the state directory or the install directory can't be
used.
"""

import fcntl
import os
import sys
from collections.abc import Callable
from typing import Final

from . import __version__, install, process, session
from .errors import RunnerError, SystemRefusedError
from .jobdir import StateDirectory
from .wire import frames
from .wire.frames import Kind
from .wire.names import SCRIPT_ENDPOINT, SIGNATURE

READ_PIECE: Final = 1024 * 1024


def serve(when_loaded: Callable[[], object] = lambda: None) -> int:
    """The `agent` command. Returns its exit status. `when_loaded` is called when no more is imported at once."""
    session.leave(lambda sentence: sys.stderr.write(f"cronium-runner: {sentence}\n"))
    try:
        process.forbid_core_dumps()
        state = StateDirectory.open()
        install.helper_folder()
        source, sink = _channel()
        first = _greet(state, source, sink)
        if first == b"":
            return 0
        from . import agent, guardian

        guardian.import_what_supervisors_need()
        when_loaded()
        agent.prepare_what_supervisors_need()
        state.sweep()
        serving = agent.Agent(state, source, sink)
    except RunnerError as error:
        sys.stderr.write(f"cronium-runner: {error.message} [{error.code}]\n")
        return error.exit_status
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        sys.stderr.write(f"cronium-runner: the agent cannot start: {where}{error.strerror} [runner.refused]\n")
        return SystemRefusedError.exit_status
    serving.run(first)
    return 0


def _channel() -> tuple[int, int]:
    """Descriptors of our own, so that nothing that prints by accident ever lands between two frames."""
    source = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    sink = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return source, sink


def _greet(state: StateDirectory, source: int, sink: int) -> bytes | None:
    """Says HELLO. Returns what has arrived by then: empty when the channel has ended, None when nothing has."""
    hello = {
        "protocol": [frames.PROTOCOL, frames.PROTOCOL],
        "runner": __version__,
        "maxFrame": frames.MAX_BODY,
        "credit": frames.CREDIT,
        "hostname": os.uname().nodename,
        "knows": ["gc", "api", SCRIPT_ENDPOINT, SIGNATURE],
        **_sockets(state),
    }
    try:
        os.write(sink, frames.MAGIC + frames.encode_json(Kind.HELLO, 0, hello))
        os.set_blocking(source, False)
        return os.read(source, READ_PIECE)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _sockets(state: StateDirectory) -> dict[str, str]:
    """Where the controller may have sshd make its socket; nothing when there is no such place."""
    try:
        return {"sockets": state.forwarded_folder()}
    except (OSError, RunnerError):
        return {}
