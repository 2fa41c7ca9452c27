"""Every `cronium …` and `cronium-runner …` line of README.md and docs/: all are parsed, most are run as they stand.

What can't be run here (endpoints that serve until they are ended, other accounts, sudo) is parsed only, and named
below, with the tests that run it.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

import documented
from cronium_controller.cli import cronium
from cronium_runner.cli import cronium_runner
from documented import ID, PAGES, PATIENCE, commands, filled, place, run_line, spans
from remote_host import RemoteHost
from runner_process import ROOT, with_digest

PROGRAMS: dict[str, click.Command] = {"cronium": cronium, "cronium-runner": cronium_runner}


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
    command, rest = _command(page, words)
    with contextlib.suppress(click.exceptions.Exit):  # --help
        command.make_context(words[1], list(rest))


def _command(page: str, words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that a line means, and the words for it."""
    command, rest = PROGRAMS[words[0]], words[1:]
    context = command.make_context(words[0], list(rest), resilient_parsing=True)
    while isinstance(command, click.Group):
        assert rest[:1] != [], page
        assert rest[0] in command.list_commands(context), f"{page}: no command {rest[0]}"
        found = command.get_command(context, rest[0])
        assert found is not None
        command, rest = found, rest[1:]
    return command, rest


SPANS = sorted({(page.name, span) for page in PAGES for span in spans(page)})


@pytest.mark.parametrize(("page", "span"), SPANS, ids=lambda value: str(value)[:80])
def test_every_command_that_a_sentence_names_is_one_of_ours(page: str, span: str) -> None:
    """Often no more than its name and an option: what it needs beside them stands elsewhere."""
    command, rest = _command(page, span.replace("[", "").replace("]", "").split())
    parameters = command.get_params(click.Context(command))
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in rest if word.startswith("-")} <= known


def test_the_pages_have_lines() -> None:
    assert len(ALL) > 80, "how they are found has changed"
    assert len(SPANS) > 40, "the same"


# -- run ---------------------------------------------------------------------------------------------------------------

_PARSED_ONLY = (
    "--listen",  # serves until it is ended; test_documented_endpoints.py
    "api serve",  # the same
    "--signers",  # needs a signed binary; test_binary_trust.py
    "--run-as",  # needs another account and sudo; tests/sshd/test_run_as.py
    "web[01-20]",  # twenty hosts; tests/sshd/test_many_hosts.py
    "--host inner",  # behind a bastion; test_jumps.py
    "SCRIPT",  # the form of a command and not one
    "…",
)
_STATUSES = {
    "cronium hosts --hosts wrong.yaml": 125,
    "cronium run --on wbe01 ./disk.sh": 125,
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


@pytest.mark.sshd
@pytest.mark.parametrize("page", RUN)
def test_the_lines_run(seven_hosts: RemoteHost, tmp_path: Path, page: str) -> None:
    folder, environment = place(seven_hosts, tmp_path)
    lines = [(line, filled(line)) for line in commands(documented.page(page))]
    lines = [(line, given) for line, given in lines if not any(word in line for word in _PARSED_ONLY)]
    assert lines
    if page == "deployments.md":  # what is there to go back to
        older = seven_hosts.binary.read_text().replace("#!/bin/sh\n", "#!/bin/sh\n# older\n")
        (beside := folder / seven_hosts.binary.name.replace("0.0.0", "0.1.0")).write_text(older)
        with_digest(beside)
        with_older = f"cronium deploy --host web01 --binary ./cronium-runner-0.1.0-linux-{os.uname().machine}"
        run_line(folder, environment, with_older)
        run_line(folder, environment, f"{with_older} --verify")  # and so it is known when it is no longer at hand
    if any(f" {ID}" in given for _, given in lines):  # what the page comes back to
        run_line(folder, environment, f"cronium run --on web --detach --execution-id {ID} ./nightly.sh", 0)
    for line, given in lines:
        if line.startswith("cronium "):
            run_line(folder, environment, given, _STATUSES.get(line, 0))


@pytest.mark.sshd
def test_the_commands_that_sentences_tell_one_to_give_run(seven_hosts: RemoteHost, tmp_path: Path) -> None:
    """Those that are whole; a mere name is only spoken of."""
    folder, environment = place(seven_hosts, tmp_path)
    run_line(folder, environment, f"cronium run --host web01 --execution-id {ID} ./nightly.sh")
    told = {
        span
        for _, span in SPANS
        if len(span.split()) > 2 and not re.search(r"--run-as|api serve|cronium[ -]run|…|\[|NAME|--detach", span)
    }
    assert {"cronium attach ID", "cronium doctor --host H", "cronium logs ID", "cronium hosts --reset"} <= told
    for span in sorted(told | {"cronium hosts", "cronium history"}):
        run_line(folder, environment, filled(span))


@pytest.mark.sshd
def test_the_limits_of_the_page_hold_and_the_option_beats_the_manifest(seven_hosts: RemoteHost, tmp_path: Path) -> None:
    folder, environment = place(seven_hosts, tmp_path)
    text = documented.page("limits.md").read_text()
    (limits,) = re.findall(r"```yaml\n(limits: .*?)```", text, re.DOTALL)
    (option,) = re.findall(r"`(--limit memory=\S+)`", text)
    (folder / "limited").mkdir()
    manifest = "version: v1\ninterpreter: bash\nentrypoint: job.sh\n"
    (folder / "limited/manifest.yaml").write_text(manifest + limits)
    (folder / "limited/job.sh").write_text("ulimit -n; ulimit -f; nice\n")
    run = f"cronium run --host web01 --execution-id {ID}"
    done = run_line(folder, environment, f"{run} ./limited -- one")
    before = int(subprocess.run(["nice"], capture_output=True, text=True, check=True).stdout)
    assert done.stdout == f"1024\n{1 << 20}\n{min(19, before + 5)}\n"  # bash counts a file's size in KiB
    status = json.loads(run_line(folder, environment, f"cronium status {ID} --json").stdout)
    assert {"memory", "cpu", "processes", "open_files", "file_size", "nice"} <= set(status["limits"])
    beaten = run_line(folder, environment, f"{run}-2 {option} --limit open_files=256 ./limited")
    assert beaten.stdout.startswith("256\n"), "key by key"
    told = run_line(folder, environment, f"{run}-3 --limit open_files=999999999999 ./limited", 125)
    assert re.search(r"open_files.*999999999999.*\[limits\.impossible\]$", told.stderr.rstrip())


def test_the_commands_of_the_page_on_faults_are_ones_that_pytest_takes() -> None:
    """Each would take minutes: it is looked at whether they choose any test."""
    text = documented.page("reliability.md").read_text()
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/faults"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True,
    ).stdout.splitlines()  # fmt: skip
    chosen = re.findall(r"`scripts/test --faults (tests/faults/\w+\.py)(?: -k '([^']*)')?`", text)
    assert len(chosen) > 20, "how they are found has changed"
    for path, words in chosen:
        assert " " not in words, "which pytest takes for two"
        assert any(name.startswith(path) and words in name for name in found), (path, words)
    for script in re.findall(r"scripts/\w+", text):
        assert os.access(ROOT / script, os.X_OK), script


@pytest.mark.sshd
def test_the_programs_of_the_python_page_run(seven_hosts: RemoteHost, tmp_path: Path) -> None:
    folder, environment = place(seven_hosts, tmp_path)
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
