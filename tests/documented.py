"""The command lines that pages show, and a folder in which a reader of them could stand. No pytest in it.

Seven hosts on seven addresses of one real sshd, the ids that pages speak of, and the scripts that they name.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import preloaded
from remote_host import RemoteHost
from runner_process import ROOT

PAGES: Final = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs/benchmarks.md"})]
"""The one left out has tables of figures whose rows begin with the names of programs."""
PATIENCE: Final = 120.0
ID: Final = "nightly-2026-01-02"
OPTIONS: Final = [f"ListenAddress 127.0.0.{number}" for number in range(2, 8)]
"""Of the server that is seven hosts."""
_WORDS: Final = re.compile(r"(?:[\w ./:@=,%+-]|'[^']*')+")
"""What a shell makes nothing of but words: no variable, no pattern, no operator and no home directory."""
_ran: set[str] = set()
"""Commands that a process has begun with and loaded for itself."""
_SCRIPTS = {
    "disk.sh": "df -h / | tail -1\ncronium.output used 42\n",
    "nightly.sh": "echo nightly\n",
    "uptime.sh": "echo up 12 days\n",
    "restart.sh": "echo restarted\n",
    "backup.sh": "echo backed up\n",
    "train.sh": "echo trained\n",
    "live-rate.sh": 'echo "before: $(cronium.getVariable RATE)"\n',
}


def page(name: str) -> Path:
    """The page of a name."""
    return ROOT / name if name == "README.md" else ROOT / "docs" / name


def commands(page: Path) -> list[str]:
    """The command lines of a page's blocks, without prompt, continuation and the words beside them."""
    found = []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if kind not in ("", "sh", "console", "bash"):
            continue
        for line in block.splitlines():
            is_told = kind == "console" and not line.startswith("$ ")
            line = line.removeprefix("$ ")
            if line.startswith(("cronium ", "cronium-runner ")) and not is_told:
                # What stands two spaces away is about the command.
                found.append(re.split(r"\s{2,}", line)[0])
    return found


def spans(page: Path) -> list[str]:
    """The commands in a page's sentences and tables, which may be no more than a name: `cronium run`."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`(cronium(?:-runner)? [a-z][^`]*)`", text)


def filled(line: str) -> str:
    """What a reader puts in: an id, a host, an account that there is."""
    line = line.replace("deploy@", "").replace("examples/live-rate.sh", "./live-rate.sh").replace(" /srv/", " ~/")
    line = re.sub(r"\bID\b", ID, line).replace("--soak 10m", "--soak 0")
    line = re.sub(r"--host H\b", "--host web01", line)
    return re.sub(r"exec_20260102_\w+", ID, line)


def run_line(
    folder: Path, environment: dict[str, str], line: str, status: int = 0
) -> "subprocess.CompletedProcess[str]":
    """Runs a line as a shell does, which only has to where it is more than words; it must end with this status."""
    words = shlex.split(line) if _WORDS.fullmatch(line) else []
    done: subprocess.CompletedProcess[str]
    if words[:1] == ["cronium"] and words[1] in _ran:
        done = preloaded.run("cronium", words[1:], cwd=folder, env=environment, text=True, timeout=PATIENCE)
    else:
        _ran.update(words[1:2])
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    assert done.returncode == status, (line, done)
    assert "Traceback" not in done.stderr
    return done


def put_command(folder: Path) -> None:
    """`cronium` in the folder's `bin`."""
    (folder / "bin").mkdir(parents=True)
    main = "import sys; from cronium_controller.cli import main; main()"
    (folder / "bin/cronium").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{main}' \"$@\"\n")
    (folder / "bin/cronium").chmod(0o700)


def place(remote: RemoteHost, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Where the commands are given, and their environment."""
    folder = tmp_path / "folder"
    put_command(folder)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(
        "Host web01\n  HostName 127.0.0.1\nHost web02\n  HostName 127.0.0.2\n"
        f"Host *\n  Port {remote.server.port}\n  IdentityFile {remote.server.identity}\n"
    )
    hosts = "".join(
        f"  {name}: {{host: 127.0.0.{number}, port: {remote.server.port}, key_path: {remote.server.identity}}}\n"
        for number, name in enumerate((*(f"web0{number}" for number in range(1, 7)), "db1"), 1)
    )
    (folder / "hosts.yaml").write_text(f"hosts:\n{hosts}groups:\n  web: [web01, web02]\n")
    (folder / "wrong.yaml").write_text("hosts:\n  web01:\n    prot: 22\n")
    (folder / "site.tar.gz").write_bytes(b"words")
    for name, text in _SCRIPTS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
    return folder, remote.environment | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}
