"""`cronium-runner uninstall`: only what the project made goes, and nothing that is in use or was not fetched."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cronium_runner import bundle
from runner_process import Host, wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory away")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The only install root that the host's runner looks at."""
    made = tmp_path / "root"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def host(tmp_path: Path, root: Path) -> Iterator[Host]:
    """A host whose install root is this test's own; its helper folder is in it."""
    made = Host(tmp_path, root)
    yield made
    made.check_nothing_left()


def make_form(root: Path, name: str = "0.1.0-0123456789ab") -> Path:
    """What looks like an installed form: a program that sleeps, helpers, a list of contents."""
    form = root / name
    (form / "helpers/bin").mkdir(parents=True)
    form.chmod(0o700)
    (form / bundle.CONTENTS).write_text(f"{bundle.MAGIC}\n0.1.0 0123456789ab c t\n")
    (form / bundle.EXECUTABLE).write_bytes(Path("/bin/sleep").read_bytes())
    (form / bundle.EXECUTABLE).chmod(0o700)
    (form / "helpers/bin/cronium.input").symlink_to("../client")
    return form


def uninstall(host: Host, *words: str) -> tuple[dict[str, Any], int]:
    done = host.run("uninstall", "--json", *words)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report, done.returncode


def test_every_installed_form_goes_and_nothing_else(host: Host, root: Path, tmp_path: Path) -> None:
    forms = [make_form(root), make_form(root, "0.2.0-ba9876543210")]
    others = [root / "0.2.0-aaaaaaaaaaaa", root / "notes-0123456789cd", root / "source-0123456789ab"]
    for folder in others:  # no list of contents, one of another kind, a name that isn't a form's
        folder.mkdir()
    (others[1] / bundle.CONTENTS).write_text("a shopping list\n")
    (others[2] / bundle.CONTENTS).write_text(f"{bundle.MAGIC}\n")
    elsewhere = make_form(tmp_path / "elsewhere")
    (root / "0.3.0-cccccccccccc").symlink_to(elsewhere)
    linked = root / "0.4.0-dddddddddddd"
    linked.mkdir()
    (linked / bundle.CONTENTS).symlink_to(elsewhere / bundle.CONTENTS)
    would, status = uninstall(host, "--dry-run")
    assert (would["removed"], would["isDryRun"], status) == ([str(form) for form in forms], True, 0)
    assert all(form.exists() for form in forms)
    done, status = uninstall(host)
    assert (done["removed"], done["kept"], done["records"], status) == ([str(form) for form in forms], {}, None, 0)
    assert {path.name for path in root.iterdir()} == {
        path.name for path in (*others, root / "0.3.0-cccccccccccc", linked)
    }
    assert (elsewhere / bundle.EXECUTABLE).exists()


def test_the_root_goes_when_nothing_is_left_in_it(host: Host, root: Path) -> None:
    make_form(root)
    uninstall(host)
    assert not root.exists()
    done = host.run("uninstall")
    assert (done.stdout, done.returncode) == (b"nothing is installed\n", 0)


def test_a_root_that_is_a_link_is_left_alone(host: Host, root: Path, tmp_path: Path) -> None:
    form = make_form(tmp_path / "other")
    root.rmdir()
    root.symlink_to(tmp_path / "other")
    assert uninstall(host)[0]["removed"] == []
    assert form.exists()


def test_a_root_that_others_can_write_is_told_and_left(host: Host, root: Path) -> None:
    form = make_form(root)
    root.chmod(0o777)
    report, status = uninstall(host)
    assert "can be written by every user" in report["kept"][str(root)]
    assert (report["removed"], status) == ([], 1)
    assert form.exists()


@as_root
def test_forms_of_another_user_are_left_alone(host: Host, root: Path) -> None:
    form = make_form(root)
    os.chown(form, 4242, 4242)
    assert uninstall(host)[0]["removed"] == []
    assert form.exists()


def test_a_form_in_use_stays_unless_forced(host: Host, root: Path) -> None:
    form = make_form(root)
    free = make_form(root, "0.2.0-ba9876543210")
    user = subprocess.Popen([form / bundle.EXECUTABLE, "600"])
    try:
        report, status = uninstall(host)
        assert (report["removed"], report["kept"], status) == (
            [str(free)], {str(form): f"used by process {user.pid}"}, 1
        )  # fmt: skip
        assert (form / bundle.EXECUTABLE).exists()
        report, status = uninstall(host, "--force")
        assert (report["removed"], status) == ([str(form)], 0)
    finally:
        user.kill()
        user.wait()


def test_a_form_in_use_by_its_helpers_alone_stays(host: Host, root: Path) -> None:
    """As by a supervisor of ordinary users, whose program only root can see: its command line names it."""
    form = make_form(root)
    user = subprocess.Popen(["sh", "-c", "read line", f"{form}/{bundle.EXECUTABLE}"], stdin=subprocess.PIPE)
    try:
        assert uninstall(host)[0]["kept"] == {str(form): f"used by process {user.pid}"}
    finally:
        user.communicate()


def test_records_go_when_all_were_fetched(host: Host, root: Path) -> None:
    for name in ("one", "two"):
        assert host.run("run", "--execution-id", name, host.script("echo words")).returncode == 0
    (host.state / "settings.yaml").write_text("retention_days: 3\n")
    kept = uninstall(host)[0]
    assert (kept["records"], host.executions()) == (None, ["one", "two"])
    report, status = uninstall(host, "--records")
    assert report["records"] == {
        "path": str(host.state), "executions": 2, "running": 0, "unfetched": 0, "kept": ["settings.yaml"]
    }  # fmt: skip
    assert status == 0
    assert os.listdir(host.state) == ["settings.yaml"]
    (host.state / "settings.yaml").unlink()
    assert host.run("run", "--execution-id", "one", host.script("exit 3")).returncode == 3, "the id is free again"
    uninstall(host, "--records")
    assert not host.state.exists()


def test_records_that_run_or_were_not_fetched_stay_unless_forced(host: Host, root: Path) -> None:
    form = make_form(root)
    with host.agent() as agent:
        agent.finished(agent.start(host.payload("echo words"), "unfetched"))
        agent.start(host.payload("echo begun; sleep 600"), "runs")
        host.wait_running("runs", b"begun")
        agent.process.kill()
        agent.process.wait()
    would, _ = uninstall(host, "--records", "--dry-run")
    assert {key: would["records"][key] for key in ("executions", "running", "unfetched")} == {
        "executions": 2, "running": 1, "unfetched": 1
    }  # fmt: skip
    refused = host.run("uninstall", "--records")
    assert refused.returncode == 125
    said = refused.stderr.decode()
    assert "1 not ended (runs) and 1 whose result was not fetched (unfetched); nothing was removed" in said
    assert said.rstrip().endswith("[uninstall.refused]")
    assert form.exists()
    assert host.executions() == ["runs", "unfetched"]
    group = host.history("runs")[1]["script"]["pid"]
    report, status = uninstall(host, "--records", "--force")
    assert (report["records"]["running"], report["records"]["kept"], status) == (1, [], 0)
    assert not host.state.exists()
    assert not form.exists()
    wait_until(lambda: not os.path.exists(f"/proc/{group}"), "the script's end")


def test_an_execution_claimed_at_the_last_moment_stays(host: Host, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claimed after it was looked at what there is: the folder is put back, and nothing of it has gone."""
    from cronium_runner import uninstall as module
    from cronium_runner.errors import RunnerError

    monkeypatch.setenv("CRONIUM_STATE_DIR", str(host.state))
    monkeypatch.setenv("CRONIUM_INSTALL_DIR", str(root))
    assert host.run("run", "--execution-id", "before", host.script("true")).returncode == 0

    def looked(state: object) -> tuple[list[str], list[str], int]:
        late = host.execution("late")
        late.mkdir()
        (late / "state.jsonl").write_bytes((host.execution("before") / "state.jsonl").read_bytes().splitlines(True)[0])
        return [], [], 1

    monkeypatch.setattr(module, "_executions", looked)
    with pytest.raises(RunnerError, match=r"1 not ended \(late\)"):
        module.uninstall(wants_records=True, is_forced=False, is_dry_run=False)
    assert host.executions() == ["before", "late"]
    assert (host.execution("before") / "result.json").exists()
    (host.execution("late") / "state.jsonl").unlink()
    host.execution("late").rmdir()


def test_only_our_own_names_go_from_the_state_directory(host: Host, root: Path, tmp_path: Path) -> None:
    """A folder that is used for more than that, as CRONIUM_STATE_DIR may name one, and links in it."""
    assert host.run("run", host.script("true")).returncode == 0
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (host.state / "payloads").rmdir() if (host.state / "payloads").exists() else None
    (host.state / "payloads").symlink_to(tmp_path / "precious")
    (host.state / "notes.txt").write_text("words")
    report, _ = uninstall(host, "--records")
    assert report["records"]["kept"] == ["notes.txt", "payloads"]
    assert (tmp_path / "precious/file").exists()
