"""The job of the fault tests: it can be told afterwards whether it started once and which bytes it wrote.

It appends its id to a side file, with fsync, before anything else: each start is one line. Then it writes bytes that
follow from a seed to both streams, in pieces, with a pause between them, and calls the helpers on the way; now and then
it leaves a stray behind. Nothing here decides what is right.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SCRIPT: Final = """
import os, random, subprocess, sys, time
side, seed, pieces, most, pause, stray = sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:7])
written = os.open(side, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(written, (os.environ["CRONIUM_EXECUTION_ID"] + "\\n").encode())
os.fsync(written)
os.close(written)
if stray:
    null = subprocess.DEVNULL
    subprocess.Popen(["setsid", "sleep", "300"], stdin=null, stdout=null, stderr=null)
drawn = random.Random(seed)
for number in range(int(pieces)):
    for stream in (1, 2):
        view = memoryview(drawn.randbytes(drawn.randint(0, int(most))))
        while view:
            view = view[os.write(stream, view):]
    if number % 4 == 0:
        cronium.setVariable("REACHED", number)
    if pause:
        time.sleep(pause)
cronium.output({"pieces": int(pieces)})
"""
"""`witness.py SIDE SEED PIECES MOST PAUSE STRAY`; MOST is the most bytes that one piece of a stream has."""


@dataclass(frozen=True, slots=True)
class Witness:
    """One such job: what it is told, and so what it must have written when it is over."""

    side: Path
    seed: int
    pieces: int = 20
    most: int = 4000
    pause: float = 0.01
    leaves_stray: bool = False

    @property
    def args(self) -> list[str]:
        """The script's arguments."""
        told = self.side, self.seed, self.pieces, self.most, self.pause, int(self.leaves_stray)
        return [str(word) for word in told]

    def streams(self) -> tuple[bytes, bytes]:
        """Everything it writes to stdout and stderr."""
        drawn = random.Random(self.seed)
        streams = bytearray(), bytearray()
        for _ in range(self.pieces):
            for stream in streams:
                stream += drawn.randbytes(drawn.randint(0, self.most))
        return bytes(streams[0]), bytes(streams[1])

    def starts(self, execution_id: str) -> int:
        """How often it was started under this id."""
        try:
            return self.side.read_text().split().count(execution_id)
        except FileNotFoundError:
            return 0

    def missing_in(self, result: dict[str, Any]) -> list[str]:
        """What a result that says `succeeded` does not tell, or tells wrongly."""
        stdout, stderr = self.streams()
        wrong = []
        for name, content in (("stdout", stdout), ("stderr", stderr)):
            told = result.get(name) or {}
            whole = {"bytes": len(content), "truncated": False, "sha256": hashlib.sha256(content).hexdigest()}
            if {key: told.get(key) for key in whole} != whole:
                wrong.append(f"{name} is told as {told}, was {whole}")
        if result.get("exitCode") != 0:
            wrong.append(f"exit code {result.get('exitCode')}")
        if result.get("output") != {"pieces": self.pieces}:
            wrong.append(f"output {result.get('output')}")
        if self.pieces and (result.get("variables") or {}).get("REACHED") != (self.pieces - 1) // 4 * 4:
            wrong.append(f"variables {result.get('variables')}")
        return wrong
