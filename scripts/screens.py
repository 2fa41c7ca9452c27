"""Captures of `cronium` on a real terminal, for 1, 10 and 200 hosts with failures of every kind: docs/screens.md.

The hosts are real OpenSSH servers on loopback addresses, the jobs are real, and the terminal is a pseudo-terminal whose
screen is worked out from what was written to it. All is made in one temporary folder and removed at the end.
"""

import argparse
import contextlib
import fcntl
import os
import pty
import pwd
import re
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests"))

from many_hosts import ManyHosts  # noqa: E402

COLUMNS, LINES = 120, 40
IN_README = "cronium run --on web[01-06] --fold ./uptime.sh"
PATIENCE = 300.0
"""Seconds for one command: 200 hosts on a small machine that does other things as well."""
SCRIPTS = {
    "uptime.sh": 'echo "up 12 days, load 0.4"\n',
    "broken.sh": "echo 'no space left on device' >&2\nexit 3\n",
    "slow.sh": "echo begun\nsleep 600\n",
    # All hosts are this machine: whoever makes the file first fails in its way.
    "mixed.sh": "first() { mkdir ~/$1 2>/dev/null; }\n"
    "if first a; then exit 3; fi\nif first b; then kill -9 $$; fi\nif first c; then sleep 60; fi\necho fine\n",
}
"""What is run, in the directory where commands are typed."""
_CONTROL = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|\r|\n|\x07")


class Screen:
    """The lines of a terminal that scrolls for ever: as much of one as a status line and colours ask for."""

    def __init__(self) -> None:
        self.lines = [""]
        self._column = 0

    def feed(self, text: str) -> None:
        """Takes what a program has written."""
        position = 0
        for control in _CONTROL.finditer(text):
            self._put(text[position : control.start()])
            self._obey(control)
            position = control.end()
        self._put(text[position:])

    def _put(self, text: str) -> None:
        line = self.lines[-1].ljust(self._column)
        self.lines[-1] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)

    def _obey(self, control: "re.Match[str]") -> None:
        match control.group(), control.group(2):
            case "\r", _:
                self._column = 0
            case "\n", _:
                self.lines.append("")
                self._column = 0
            case _, "K":
                self.lines[-1] = self.lines[-1][: self._column]
            case _:  # colours, the bell
                pass

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


class Captured:
    """What a command wrote to its terminal: the screen at its end, and the ones in between that were asked for."""

    def __init__(self) -> None:
        self.screen = Screen()
        self.between: list[str] = []
        self.status = 0


def capture(
    words: Sequence[str],
    environment: dict[str, str],
    *,
    snapshot: Callable[[str], bool] = lambda _: False,
    interrupt: Callable[[str], bool] = lambda _: False,
) -> Captured:
    """Runs `cronium WORDS` on a terminal. Takes a snapshot, and presses Ctrl-C, once its screen is such a one."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-c", "from cronium_controller.cli import main; main()", *words],
            environment,
        )
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    captured, has_pressed, deadline = Captured(), False, time.monotonic() + PATIENCE
    for text in _pieces(terminal, deadline):
        captured.screen.feed(text)
        shown = str(captured.screen)
        if not captured.between and snapshot(shown):
            captured.between.append(shown)
        if not has_pressed and interrupt(shown):
            has_pressed = True
            os.write(terminal, b"\x03")
    os.close(terminal)
    with contextlib.suppress(ProcessLookupError):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
    captured.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return captured


def _pieces(terminal: int, deadline: float) -> Iterator[str]:
    """What is written to a terminal until nobody has it open any more."""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            return
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other end was closed
            return
        yield decoder.decode(data)


class Stage:
    """The hosts, a hosts file that names them, the scripts, and the page that is written."""

    def __init__(self, folder: Path, binary: Path, count: int, page: list[str]) -> None:
        self._folder = folder
        self.many = ManyHosts(folder / "hosts", binary, folder.parent / "runners", count)
        self.page = page
        self._config = folder / "config" / "cronium" / "hosts.yaml"
        for script, text in SCRIPTS.items():
            path = folder / "work" / script
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/usr/bin/env bash\n{text}")

    def set_up(self, total: int, *, refusing: int, hanging: int, changed: int, malformed: int) -> None:
        """Writes a hosts file of `total` hosts, so many of which fail in each way."""
        failing = refusing + hanging + changed + malformed
        answering = self.many.targets[: total - failing + changed]
        if changed:
            self.many.change_keys(answering[-changed:])
        targets = [*answering, *self.many.refusing(refusing), *self.many.hanging(hanging)]
        width = max(2, len(str(total)))
        rows = [f"  web{number:0{width}}: {{host: {target}}}" for number, target in enumerate(targets, 1)]
        rows += [f"  web{len(targets) + 1 + number:0{width}}: {{port: 123456}}" for number in range(malformed)]
        groups = f"groups:\n  web: web[{1:0{width}}-{total}]\n"
        settings = {
            "connect_timeout": 5,
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "key_path": self.many.server.identity,
        }
        defaults = f"defaults: {{{', '.join(f'{key}: {value}' for key, value in settings.items())}}}\n"
        self._config.parent.mkdir(parents=True, exist_ok=True)
        self._config.write_text(defaults + "hosts:\n" + "\n".join(rows) + "\n" + groups)

    def say(self, text: str) -> None:
        """A paragraph of the page."""
        self.page.append(text)

    def show(self, command: str, *, is_shown: bool = True, **options: Callable[[str], bool]) -> Captured:
        """Runs a command, and puts what was seen into the page."""
        os.chdir(self._folder / "work")
        environment = {
            **self.many.environment,
            "XDG_CONFIG_HOME": str(self._folder / "config"),
            "TERM": "xterm-256color",
        }
        environment.pop("NO_COLOR", None)
        print(f"$ cronium {command}", flush=True)
        captured = capture(command.split(), environment, **options)
        for text in captured.between:
            self.say("In the middle of it:\n\n```\n" + self._tidy(_last(text)) + "\n```")
        text = self._tidy(str(captured.screen))
        print(text, f"[exit {captured.status}]\n", sep="\n", flush=True)
        if is_shown:
            self.say(f"```\n$ cronium {command}\n{text}\n$ echo $?\n{captured.status}\n```")
        return captured

    def _tidy(self, text: str) -> str:
        """Without the places of this run."""
        text = text.replace(str(self._config), "~/.config/cronium/hosts.yaml")
        return text.replace(str(self.many.known_hosts), "~/.ssh/known_hosts").replace(str(self._folder), "~")


def _last(text: str) -> str:
    """What a screen of LINES lines shows."""
    return "\n".join(text.split("\n")[-min(LINES, 12) :])


def one(stage: Stage) -> None:
    """A single host."""
    stage.say("## One host")
    stage.show("run --on web01 ./uptime.sh")
    stage.show("run --on web01 ./broken.sh")
    stage.say("A host at which nobody listens, one whose key is another one, and one that the hosts file has wrong:")
    stage.show("run --on web08 ./uptime.sh")
    stage.show("run --on web07 ./uptime.sh")
    stage.show("run --on web10 ./uptime.sh")


def ten(stage: Stage) -> None:
    """Ten hosts, each failure once."""
    stage.say("## Ten hosts, four of which fail before anything starts")
    stage.show("run --on web ./uptime.sh")
    stage.say("Equal outputs once:")
    stage.show("run --on web[01-06] --fold ./uptime.sh")
    stage.say("Failures of the script: an exit status, a signal, a time-out.")
    stage.show("run --on web[01-04] --timeout 2 --execution-id roll ./mixed.sh")
    stage.say("One after another, until one fails:")
    stage.show("run --on web[01-05] --serial 1 --stop-on-failure ./broken.sh")
    stage.say("Ctrl-C ends it on all hosts:")
    stage.show("run --on web[01-03] ./slow.sh", interrupt=lambda shown: shown.count("begun") == 3)
    stage.say("Left running, and asked for later:")
    stage.show("run --on web[01-03] --detach --execution-id nightly ./uptime.sh")
    stage.show("wait nightly")
    stage.show("logs nightly")


def two_hundred(stage: Stage) -> None:
    """Two hundred, of which 41 fail."""
    stage.say("## 200 hosts: 20 refuse, 10 have another key, 10 hang, 1 is malformed")
    stage.show(
        "run --on web --fold ./uptime.sh",
        snapshot=lambda shown: bool(re.search(r"\b([4-9]\d|1[0-4]\d)/200 hosts", shown)),
    )
    stage.show("run --on web --quiet --max-failures 5% ./broken.sh")


def put_into_readme(page: list[str]) -> None:
    """The operator's example there is one of these screens."""
    readme = PROJECT / "README.md"
    before, begin, rest = readme.read_text().partition("<!-- by scripts/screens -->\n")
    _, end, after = rest.partition("<!-- /by scripts/screens -->\n")
    (screen,) = [each for each in page if each.startswith(f"```\n$ {IN_README}\n")]
    readme.write_text(f"{before}{begin}{screen}\n{end}{after}")


def main() -> None:
    """Writes the page, and one of its screens into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("--hosts", type=int, default=200, help="of the largest run; fewer for a quick look")
    parser.add_argument("--to", type=Path, default=PROJECT / "docs" / "screens.md")
    options = parser.parse_args()
    binary = options.binary.absolute()
    page = ["# Screens\n\nWritten by `scripts/screens`, on a terminal of 120 columns; without the colours."]
    with tempfile.TemporaryDirectory(prefix="screens-") as name:
        stage = Stage(Path(name) / "ten", binary, 7, page)
        with stage.many:
            stage.set_up(10, refusing=1, hanging=1, changed=1, malformed=1)
            one(stage)
            ten(stage)
        stage = Stage(Path(name) / "many", binary, options.hosts - 31, page)
        with stage.many:
            stage.set_up(options.hosts, refusing=20, hanging=10, changed=10, malformed=1)
            two_hundred(stage)
        options.to.write_text("\n\n".join(page) + "\n")
        if options.to == parser.get_default("to"):
            put_into_readme(page)


if __name__ == "__main__":
    main()
