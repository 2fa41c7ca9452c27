"""The largest resident memory of a process that runs, for tests of what a peer can make it hold."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20
_LOOK_SECONDS = 0.005


class Peak:
    """`bytes` is the peak as far as it was seen; the kernel keeps it, so that only the last moments can be missed."""

    def __init__(self) -> None:
        self.bytes = 0

    def look(self, pid: int) -> None:
        """Reads the peak. A process that has ended has none."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    self.bytes = int(line.split()[1]) * 1024


@contextlib.contextmanager
def peak_memory(process: "subprocess.Popen[bytes]") -> Iterator[Peak]:
    """Watches a process while the block runs. `ru_maxrss` would begin at what pytest had when it forked."""
    peak, is_over = Peak(), threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            peak.look(process.pid)
            time.sleep(_LOOK_SECONDS)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        is_over.set()
        thread.join()
