"""Files of this machine that another user could have written or read: keys, database, runner binary, hosts file."""

import os
import pwd
from pathlib import Path

import pytest

from cronium_controller import own_files
from cronium_controller.access import Access
from cronium_controller.connection import open_connection
from cronium_controller.database import Database
from cronium_controller.errors import ControllerError, StoreError
from cronium_controller.hosts import parse_host
from cronium_controller.inventory import load
from cronium_controller.key_files import read_key_file
from cronium_controller.runners import read_binary
from cronium_controller.ssh_library import asyncssh
from cronium_runner import safe_path
from runner_process import with_digest

OTHER = 4343
HOSTS = "hosts:\n  web01: {address: 192.0.2.1}\n"


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private key where ssh looks for one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ssh" / "id_ed25519"
    path.parent.mkdir(mode=0o700)
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(path)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o677])
async def test_open_key_is_refused_before_anything_is_sent(key: Path, mode: int) -> None:
    key.chmod(mode)
    host = parse_host("ops@192.0.2.1:9", identity=str(key))
    with pytest.raises(ControllerError, match=f"chmod 600 {key}") as caught:
        await open_connection(host, Access(connect_timeout=0.01))
    assert caught.value.code == "host.config"


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_closed_key_is_used(key: Path, mode: int) -> None:
    key.chmod(mode)
    assert not own_files.is_open_key(key)
    assert read_key_file(str(key)).wrong is None


def test_open_key_of_another_user_is_used_as_by_ssh(key: Path, as_root: None) -> None:
    key.chmod(0o644)
    os.chown(key, OTHER, OTHER)
    assert not own_files.is_open_key(key)


def test_open_key_is_left_out_where_keys_are_looked_for(key: Path) -> None:
    key.chmod(0o644)
    assert f"chmod 600 {key}" in str(read_key_file(str(key)).wrong)


def test_database_of_another_user_is_refused(tmp_path: Path, as_root: None) -> None:
    path = tmp_path / "controller.db"
    Database(path).close()
    os.chown(path, OTHER, OTHER)
    with pytest.raises(StoreError, match=f"uid {OTHER}"):
        Database(path)


@pytest.mark.parametrize("mode", [0o757, 0o772])
def test_binary_that_all_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "cronium-runner-9.9.9-linux-x86_64"
    path.write_bytes(b"program")
    path.chmod(0o755)
    with_digest(path)
    assert read_binary(path).size == 7
    path.chmod(mode)
    with pytest.raises(ControllerError, match=f"chmod g-w,o-w {path}") as caught:
        read_binary(path)
    assert caught.value.code == "binary.unsafe"


@pytest.mark.parametrize("group_only", [True, False])
def test_binary_of_others_is_refused(tmp_path: Path, as_root: None, group_only: bool) -> None:
    path = tmp_path / "runner"
    path.write_bytes(b"program")
    path.chmod(0o775)
    os.chown(path, 0 if group_only else OTHER, OTHER)
    with pytest.raises(ControllerError) as caught:
        read_binary(path)
    assert caught.value.code == "binary.unsafe"


def test_binary_of_the_private_group_is_deployed(tmp_path: Path) -> None:
    """As a build under a umask of 002 leaves it, where each account has a group of its own."""
    path = tmp_path / "runner"
    path.write_bytes(b"program")
    path.chmod(0o775)
    if own_files.stranger(path.stat()) is not None:
        pytest.skip("our primary group has other members")
    with_digest(path)
    assert read_binary(path).version == "custom"


ACCOUNTS = "root:x:0:0\nme:x:1000:1000\nalias:x:1000:1000\nother:x:1001:1001\n+:::\nbroken\n"
GROUPS = {
    "me:x:1000:": True,
    "me:x:1000:me,alias,root": True,
    "me:x:1000:other": False,
    "me:x:1000:\nalso:x:1000:other": False,
    "me:x:1001:": False,
    "broken": False,
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("also", ["", "second:x:1002:1000\n"], ids=["alone", "shared"])
def test_a_private_group_is_what_the_runner_takes_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, also: str
) -> None:
    """Read from files alone, as to go through the accounts of a directory service takes minutes."""
    (tmp_path / "passwd").write_text(ACCOUNTS + also)
    (tmp_path / "group").write_text(f"root:x:0:\n{group}\n")
    monkeypatch.setattr(own_files, "ACCOUNTS_FILE", str(tmp_path / "passwd"))
    monkeypatch.setattr(own_files, "GROUPS_FILE", str(tmp_path / "group"))
    lines = safe_path._lines
    monkeypatch.setattr(safe_path, "_lines", lambda path, count: lines(str(tmp_path / Path(path).name), count))
    for call in ("getpwall", "getpwnam"):
        monkeypatch.setattr(pwd, call, lambda *_: pytest.fail("a directory service is asked"))
    me = pwd.struct_passwd(("me", "x", 1000, 1000, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: me)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    expected = GROUPS[group] and not also
    assert own_files._is_own_group(1000) == expected
    assert safe_path.is_private_group(1000, 1000) == expected


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "why"),
    [
        (1000, 1000, 0o100600, None),
        (1000, 1000, 0o100664, None),
        (0, 0, 0o100644, None),
        (1001, 1000, 0o100600, "another user (uid 1001)"),
        (1000, 1000, 0o100602, "by every user (mode 0602)"),
        (1000, 1001, 0o100660, "by group 1001 (mode 0660)"),
        (0, 0, 0o100664, "by group 0 (mode 0664)"),
    ],
)
def test_who_could_have_written_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, gid: int, mode: int, why: str | None
) -> None:
    (tmp_path / "passwd").write_text(ACCOUNTS)
    (tmp_path / "group").write_text("root:x:0:\nme:x:1000:\nother:x:1001:\n")
    monkeypatch.setattr(own_files, "ACCOUNTS_FILE", str(tmp_path / "passwd"))
    monkeypatch.setattr(own_files, "GROUPS_FILE", str(tmp_path / "group"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(("me", "x", 1000, 1000, "", "/", "/bin/sh")))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    told = own_files.stranger(os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0)))
    assert told is None if why is None else told is not None and why in told


def test_a_group_of_no_account_or_no_file_is_not_private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container with any uid: its group is private where a file says so, and not where none does."""
    for name, content in (("passwd", "root:x:0:0\n"), ("group", "made:x:1000:\n")):
        (tmp_path / name).write_text(content)
    lines = safe_path._lines
    folder = [tmp_path]

    def without_account(_uid: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.setattr(safe_path, "_lines", lambda path, count: lines(str(folder[0] / Path(path).name), count))
    monkeypatch.setattr(pwd, "getpwuid", without_account)
    for call in ("getuid", "getgid", "getegid"):
        monkeypatch.setattr(os, call, lambda: 1000)
    for folder[0], expected in ((tmp_path, True), (tmp_path / "none", False)):
        monkeypatch.setattr(own_files, "ACCOUNTS_FILE", str(folder[0] / "passwd"))
        monkeypatch.setattr(own_files, "GROUPS_FILE", str(folder[0] / "group"))
        assert own_files._is_own_group(1000) is expected
        assert safe_path.is_private_group(1000, 1000) is expected
        assert not own_files._is_own_group(1001)


@pytest.mark.parametrize("by", ["option", "variable"])
def test_named_hosts_file_that_all_may_write_is_warned_about(tmp_path: Path, by: str) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(HOSTS)
    path.chmod(0o644)
    chosen, environment = (str(path), {}) if by == "option" else (None, {"CRONIUM_HOSTS": str(path)})
    assert load(chosen, environment=environment).warnings == []
    path.chmod(0o646)
    [warning] = load(chosen, environment=environment).warnings
    assert str(path) in warning
    assert "every user" in warning


def test_found_hosts_file_that_all_may_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hosts.yaml").write_text(HOSTS)
    Path("hosts.yaml").chmod(0o646)
    with pytest.raises(ControllerError, match="name it with --hosts"):
        load(environment={"XDG_CONFIG_HOME": str(tmp_path / "none")})
