"""Runners in folders of the host that another user could exchange: none of that user's programs is ever executed."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_host import RemoteHost

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]
NewHost = Callable[..., RemoteHost]
OTHER = 4343


def plant(host: RemoteHost, root: Path, owner: int, mode: int) -> Path:
    """Puts a program where the runner would be, in a root of `owner`; returns the file that shows that it ran."""
    ran = host.folder / "ran"
    folder = Path(host.cronium("deploy", "--host", host.server.target).stdout.decode().split("/")[-2])
    root.mkdir()
    (root / folder).mkdir(mode=0o700)
    (root / folder / "cronium-runner").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (root / folder / "cronium-runner").chmod(0o755)
    root.chmod(mode)
    os.chown(root, owner, owner)
    return ran


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp."""
    made = tmp_path / "shared"
    made.mkdir()
    made.chmod(0o1777)
    return made


@pytest.mark.parametrize(("owner", "mode"), [(OTHER, 0o755), (0, 0o777)])
def test_root_that_another_user_rules_is_refused(
    owner: int, mode: int, new_host: NewHost, shared: Path, as_root: None
) -> None:
    host = new_host()
    ran = plant(host, shared / "runner", owner, mode)
    before = sorted(os.walk(shared))
    chosen = {"CRONIUM_RUNNER_ROOT": str(shared / "runner")}
    for words in (
        ("run", host.script("echo job")),
        ("deploy",),
        ("run", "--run-as", "nobody", host.script("echo job")),
    ):
        command, *rest = words
        done = host.cronium(command, "--host", host.server.target, *rest, env=chosen)
        assert done.returncode in (125, 255), done
        said = done.stderr.decode() + done.stdout.decode()
        assert "[install.unusable]" in said
        assert f"{shared}/runner" in said
        assert "CRONIUM_RUNNER_ROOT" in said
    assert not ran.exists()
    assert sorted(os.walk(shared)) == before, "nothing was written"


def test_link_to_another_users_root_is_refused(new_host: NewHost, shared: Path, tmp_path: Path, as_root: None) -> None:
    host = new_host()
    ran = plant(host, shared / "theirs", OTHER, 0o755)
    (tmp_path / "link").symlink_to(shared / "theirs")
    done = host.run(host.script("echo job"), env={"CRONIUM_RUNNER_ROOT": str(tmp_path / "link")})
    assert b"[install.unusable]" in done.stderr
    assert not ran.exists()


def test_login_umask_of_000_opens_nothing(new_host: NewHost, tmp_path: Path) -> None:
    state = tmp_path / "host0/home/.local/state/cronium-runner"
    host = new_host(
        options=['ForceCommand umask 000; eval "$SSH_ORIGINAL_COMMAND"', "Subsystem nothing internal-sftp"],
        environment={"CRONIUM_STATE_DIR": str(state)},
    )
    root = host.home / ".local/lib/cronium-runner"
    done = host.run(host.script("umask"), env={"CRONIUM_RUNNER_ROOT": str(root)})
    assert (done.returncode, done.stdout) == (0, b"0000\n"), done.stderr
    for folder in (root, state):
        for path in (folder, *folder.rglob("*"), folder.parent, folder.parent.parent):
            if path.is_dir() and not path.is_symlink():
                assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_opened_folders_below_local_are_closed(new_host: NewHost) -> None:
    """As 0.1.0 left them under such an umask. Twice: with the runner to be brought, and with the runner there."""
    host = new_host()
    local = host.home / ".local"
    for _ in range(2):
        (local / "lib").mkdir(parents=True, exist_ok=True)
        for path in (local, local / "lib"):
            path.chmod(0o777)
        done = host.run(host.script("echo works"), env={"CRONIUM_RUNNER_ROOT": str(local / "lib/cronium-runner")})
        assert (done.returncode, done.stdout) == (0, b"works\n"), done.stderr
        assert [stat.S_IMODE(path.stat().st_mode) for path in (local, local / "lib")] == [0o755, 0o755]


def test_account_without_a_home_directory_is_told_the_way_out(new_host: NewHost, tmp_path: Path) -> None:
    home = tmp_path / "no-home"
    options = [f'ForceCommand export HOME={home}; eval "$SSH_ORIGINAL_COMMAND"', "Subsystem nothing internal-sftp"]
    host = new_host(options=options)
    for command in (["run", host.script("echo job")], ["deploy"]):
        words = [command[0], "--host", host.server.target, *command[1:]]
        done = host.cronium(*words, env={"CRONIUM_RUNNER_ROOT": "~/.local/lib/cronium-runner"})
        said = done.stderr.decode()
        assert f"the home directory {home} of " in said, done
        assert "or name another folder in CRONIUM_RUNNER_ROOT [install.unusable]" in said
        assert len(said.splitlines()) == 1
    assert not home.exists()


def test_account_without_a_place_for_executions_is_told_so(new_host: NewHost) -> None:
    host = new_host(environment={"CRONIUM_STATE_DIR": "/dev/null/state"})
    for _ in range(2):
        done = host.run(host.script("echo job"))
        assert b"/dev/null" in done.stderr
        assert b"choose another with CRONIUM_STATE_DIR [state.unusable]" in done.stderr
        assert b"[deploy.failed]" not in done.stderr


def test_start_works_in_busybox(new_host: NewHost, tmp_path: Path) -> None:
    """`sh` and every tool that the start needs are busybox's."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox here")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "ls", "id", "tr", "chmod", "mkdir", "find", "uname", "cat", "sha256sum", "sort", "cut", "rm"):
        (tools / name).symlink_to(busybox)
    host = new_host(environment={"PATH": f"{tools}:{os.environ['PATH']}"})
    for _ in range(2):
        assert host.run(host.script("echo works")).stdout == b"works\n"
