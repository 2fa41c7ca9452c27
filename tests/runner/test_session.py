"""Leaving a login's session scope. No systemd runs here: a group plays the scope, and the test plays logind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cronium_runner import cgroup, session
from runner_process import PATIENCE, Host, wait_until


@pytest.fixture
def scope() -> Iterator[Path]:
    """A group named like the scope of a login."""
    if os.geteuid() != 0 or cgroup.place() is None:
        pytest.skip("only root can make the group that plays the session scope")
    mount = cgroup.mount_point()
    assert mount is not None
    made = Path(mount) / f"session-test{os.getpid()}.scope"
    made.mkdir()
    try:
        yield made
    finally:
        (made / "cgroup.kill").write_text("1")
        cgroup.Group(str(made)).remove()


def started_in(group: Path, host: Host) -> None:
    """What `host` starts from now on begins in the group, as a login's processes do."""
    host.executable = ["/bin/sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh", *host.executable]


def members(group: Path) -> list[str]:
    return (group / "cgroup.procs").read_text().split()


def test_an_agent_and_its_jobs_outlive_the_session_they_were_started_in(host: Host, scope: Path) -> None:
    started_in(scope, host)
    payload = host.payload("echo ready\nuntil [ -e go ]; do sleep 0.02; done\necho done\n")
    with host.agent() as agent:
        channel = agent.start(payload, "job")
        host.wait_running("job", b"ready")
        assert members(scope) == []
        (scope / "cgroup.kill").write_text("1")  # logind, at the logout
        (host.execution("job") / "work/go").touch()
        assert agent.finished(channel)["state"] == "succeeded"
        assert agent.stdout(channel) == b"ready\ndone\n"


def test_a_one_shot_run_outlives_it_too(host: Host, scope: Path) -> None:
    started_in(scope, host)
    script = host.script("echo ready\nuntil [ -e go ]; do sleep 0.02; done\n")
    with host.start("run", "--execution-id", "job", script, stdout=subprocess.DEVNULL) as process:
        host.wait_running("job", b"ready")
        (scope / "cgroup.kill").write_text("1")
        (host.execution("job") / "work/go").touch()
        assert process.wait(PATIENCE) == 0


def test_a_service_or_a_scope_of_the_users_manager_is_no_session() -> None:
    assert session._is_in_session("/user.slice/session-3.scope/below")
    for path in ("/", "/system.slice/ssh.service", "/user.slice/user-0.slice/user@0.service/app.slice/run-1.scope"):
        assert not session._is_in_session(path)


def test_the_hierarchy_of_systemd_beside_version_one_is_left_as_well(host: Host) -> None:
    mount = cgroup.mount_point(systemd=True)
    if mount is None or os.geteuid() != 0:
        pytest.skip("there is no version 1 hierarchy of systemd's here")
    made = Path(mount) / f"session-test{os.getpid()}.scope"
    made.mkdir()
    try:
        started_in(made, host)
        with host.agent() as agent:
            assert agent.finished(agent.start(host.payload("true\n"), "job"))["state"] == "succeeded"
            assert members(made) == []
    finally:
        wait_until(lambda: not members(made), "the group to be empty")
        made.rmdir()


@pytest.mark.parametrize(
    ("texts", "kills"),
    [
        ([], False),
        (["[Login]\n#KillUserProcesses=yes\n"], False),
        (["[Login]\nKillUserProcesses=yes\n"], True),
        (["[Login]\nKillUserProcesses = True\n", "[Login]\nKillUserProcesses=no\n"], False),
        (["[Login]\nKillUserProcesses=no\n", "[Login]\nIdleAction=ignore\nKillUserProcesses=on\n"], True),
    ],
)
def test_what_logind_is_told(tmp_path: Path, texts: list[str], kills: bool) -> None:
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.conf").write_text(text)
    assert session.kills_user_processes([str(tmp_path / "absent.conf"), str(tmp_path / "*.conf")]) is kills


def test_a_manager_that_does_not_answer_is_said_and_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemd-run"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    session._start_again(said.append)
    assert len(said) == 1
    assert "loginctl enable-linger" in said[0]


def test_a_manager_that_answers_starts_the_same_command_in_a_scope_of_its_own(tmp_path: Path) -> None:
    """A stand-in for systemd-run writes down its arguments and executes what comes behind the options."""
    program = tmp_path / "systemd-run"
    drop_options = "for word; do case $word in --*) shift;; *) break;; esac; done"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n{drop_options}\nexec "$@"\n')
    program.chmod(0o755)
    code = "import os, sys\nfrom cronium_runner import session\n"
    code += "if os.environ.get('TWICE') == '1': print('again', sys.argv[1:]); sys.exit()\n"
    code += "os.environ['TWICE'] = '1'\nsession._start_again(print)\n"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [sys.executable, "-c", code, "a", "b c"]
    done = subprocess.run(words, env=environment, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"again ['a', 'b c']"
    assert (tmp_path / "asked").read_text().count("--user --scope --quiet --collect --property=Delegate=yes") == 2
