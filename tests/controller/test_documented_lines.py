"""Every `cronium …` and `cronium-runner …` line of README.md and docs/: all are parsed, most are run as they stand.

Seven hosts on seven addresses of one real sshd, the ids that pages speak of, and the scripts that they name. What can't
be run here (endpoints that serve until they are ended, other accounts, sudo) is parsed only, and named below.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cronium_controller.cli import cronium
from cronium_runner.cli import cronium_runner
from openssh import sshd_path
from remote_host import RemoteHost
from runner_process import ROOT

PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs/benchmarks.md"})]
"""The one left out has tables of figures whose rows begin with the names of programs."""
PROGRAMS: dict[str, click.Command] = {"cronium": cronium, "cronium-runner": cronium_runner}
PATIENCE = 120.0
_ID = "nightly-2026-01-02"


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


def _parsed(line: str) -> list[str]:
    """The words of a command line as a shell makes them, with something for what a reader puts in."""
    line = re.sub(r"\$\(.*?\)|\"\$\w+\"|\$\w+", "x", line)
    line = re.sub(r"\[(--?[^\]]*|ARGS)\]", r"\1", line)  # what may be left out is there
    words = shlex.split(line, comments=True)
    for sign in (">", "<", "|", "&", ">/dev/null"):
        if sign in words:
            words = words[: words.index(sign)]
    known = {"SECONDS": "1", "S": "1", "OUT": "0", "ERR": "0", "N": "1"}
    if words[1] == "run":  # which needs more than an option to be one
        known["…"] = "script"
    return [known.get(word, word) for word in words if word != "…" or word in known]


ALL = sorted({(page.name, line) for page in PAGES for line in commands(page)})


@pytest.mark.parametrize(("page", "line"), ALL, ids=lambda value: str(value)[:80])
def test_every_line_is_one_that_the_commands_take(page: str, line: str) -> None:
    words = _parsed(line)
    command, name = PROGRAMS[words[0]], words[0]
    rest = words[1:]
    context = command.make_context(name, list(rest), resilient_parsing=True)
    while isinstance(command, click.Group):
        assert rest[:1] != [], page
        assert rest[0] in command.list_commands(context), f"{page}: no command {rest[0]}"
        found = command.get_command(context, rest[0])
        assert found is not None
        command, rest = found, rest[1:]
    with contextlib.suppress(click.exceptions.Exit):  # --help
        command.make_context(words[1], list(rest))


def test_the_pages_have_lines() -> None:
    assert len(ALL) > 80, "how they are found has changed"


# -- run ---------------------------------------------------------------------------------------------------------------

_PARSED_ONLY = (
    "--listen",  # serves until it is ended; test_metrics.py
    "api serve",  # the same; tests/api
    "--run-as",  # needs another account and sudo; tests/sshd/test_run_as.py
    "web[01-20]",  # twenty hosts; tests/sshd/test_many_hosts.py
    "--host inner",  # behind a bastion; test_jumps.py
    "SCRIPT",  # the form of a command and not one
    "…",
    "--rollback",  # needs a second version; test_deployments.py
    "0.1.0",  # the same
)
_STATUSES = {
    "cronium hosts --hosts wrong.yaml": 125,
    "cronium run --on wbe01 ./disk.sh": 125,
}
_SCRIPTS = {
    "disk.sh": "df -h / | tail -1\ncronium.output used 42\n",
    "nightly.sh": "echo nightly\n",
    "uptime.sh": "echo up 12 days\n",
    "restart.sh": "echo restarted\n",
    "backup.sh": "echo backed up\n",
    "train.sh": "echo trained\n",
    "live-rate.sh": 'echo "before: $(cronium.getVariable RATE)"\n',
}
RUN = [
    "README.md",
    "api-mode.md",
    "deployments.md",
    "doctor.md",
    "hosts.md",
    "many-hosts.md",
    "metrics.md",
    "operator.md",
    "payloads.md",
    "retention.md",
]


@pytest.fixture
def remote(tmp_path: Path, carrier: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteHost]:
    """One server that answers at seven addresses."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    addresses = [f"ListenAddress 127.0.0.{number}" for number in range(2, 8)]
    with RemoteHost(tmp_path / "remote", carrier, tmp_path / "lib", options=addresses) as made:
        yield made


@pytest.mark.sshd
@pytest.mark.parametrize("page", RUN)
def test_the_lines_run(remote: RemoteHost, tmp_path: Path, page: str) -> None:
    folder, environment = _place(remote, tmp_path)
    lines = [(line, _filled(line)) for line in commands(ROOT / page if page == "README.md" else ROOT / "docs" / page)]
    lines = [(line, filled) for line, filled in lines if not any(word in line for word in _PARSED_ONLY)]
    assert lines
    if any(f" {_ID}" in filled for _, filled in lines):  # what the page comes back to
        _run(folder, environment, f"cronium run --on web --detach --execution-id {_ID} ./nightly.sh", 0)
    for line, filled in lines:
        if line.startswith("cronium "):
            _run(folder, environment, filled, _STATUSES.get(line, 0))


def _filled(line: str) -> str:
    """What a reader puts in: an id, a host, an account that there is."""
    line = line.replace("deploy@", "").replace("examples/live-rate.sh", "./live-rate.sh").replace(" /srv/", " ~/")
    line = re.sub(r"\bID\b", _ID, line)
    line = re.sub(r"--host H\b", "--host web01", line)
    return re.sub(r"exec_20260102_\w+", _ID, line)


def _run(folder: Path, environment: dict[str, str], line: str, status: int) -> None:
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == status, (line, done)
    assert "Traceback" not in done.stderr


def _place(remote: RemoteHost, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Where the commands are given, and their environment."""
    folder = tmp_path / "folder"
    (folder / "bin").mkdir(parents=True)
    main = "import sys; from cronium_controller.cli import main; main()"
    (folder / "bin/cronium").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{main}' \"$@\"\n")
    (folder / "bin/cronium").chmod(0o700)
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


@pytest.mark.sshd
def test_the_programs_of_the_python_page_run(remote: RemoteHost, tmp_path: Path) -> None:
    folder, environment = _place(remote, tmp_path)
    (folder / "examples").symlink_to(ROOT / "examples")
    text = (ROOT / "docs/python-api.md").read_text().replace("deploy@", "")
    first, many, later, blocking = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = (
        "from cronium_controller import Controller, Job\nfrom cronium_controller.payloads import load\nimport asyncio\n"
    )
    made = 'job = Job(load("uptime.sh"), execution_id="nightly")\n'
    inner = textwrap.indent(f"async with Controller() as controller:\n{textwrap.indent(many + later, '    ')}", "    ")
    programs = {
        "first": first,
        "many": f"{names}{made}async def main():\n{inner}\nasyncio.run(main())\n",
        "blocking": f"{names}{made}{blocking}",
    }
    for name, program in programs.items():
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), (name, done)
        assert "succeeded" in done.stdout
        assert "failed" not in done.stdout


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_page_on_hosts_shows_what_is_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs/hosts.md").read_text()
    shown = re.search(r"```yaml\n(.*?)```.*?```console\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    (tmp_path / "hosts.yaml").write_text(shown[1])
    folder_environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    told = ""
    for line in re.findall(r"^\$ (.*)$", shown[2], re.MULTILINE):
        main = "from cronium_controller.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", main, *shlex.split(line)[1:]],
            cwd=tmp_path, env=folder_environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        told += f"$ {line}\n{done.stdout}"
    assert told == shown[2]
