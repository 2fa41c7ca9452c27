"""known_hosts as OpenSSH means it. `ssh-keygen` is the judge of what was written, and writes what is read."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest

from cronium_controller.access import HostKeyPolicy
from cronium_controller.errors import HostKeyError
from cronium_controller.hostkeys import HostKeyCheck
from cronium_controller.ssh_settings import SSHSettings

ED25519 = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(3)]
ECDSA = asyncssh.generate_private_key("ecdsa-sha2-nistp256")


def public(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key("openssh").decode().split()[:2])


def as_key(key: asyncssh.SSHKey) -> asyncssh.SSHKey:
    return asyncssh.import_public_key(key.export_public_key())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ssh" / "known_hosts"


class Meeting:
    """One connection to a server that shows a key."""

    def __init__(
        self, path: Path, policy: HostKeyPolicy = HostKeyPolicy.ACCEPT_NEW, host: str = "web01", port: int = 22
    ) -> None:
        self.warnings: list[str] = []
        settings = SSHSettings(host, port, "me")
        self.check = HostKeyCheck(settings, self.warnings.append, host="web01", policy=policy, path=str(path))

    def meet(self, key: asyncssh.SSHKey) -> bool:
        try:
            self.check.validate(key.public_data)
        except asyncssh.HostKeyNotVerifiable:
            return False
        return True

    @property
    def refusal(self) -> HostKeyError:
        assert self.check.refusal is not None
        return self.check.refusal


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def test_an_unknown_key_is_recorded_once_as_openssh_reads_it(path: Path) -> None:
    for _ in range(3):
        assert Meeting(path).meet(ED25519[0])
    assert path.read_text() == f"web01 {public(ED25519[0])}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    found = subprocess.run(["ssh-keygen", "-F", "web01", "-f", path], capture_output=True, text=True, check=False)
    assert public(ED25519[0]) in found.stdout


def test_another_port_is_another_name(path: Path) -> None:
    assert Meeting(path, port=22).meet(ED25519[0])
    assert Meeting(path, port=2222).meet(ED25519[1]), "another machine behind a forwarded port"
    assert path.read_text().splitlines() == [f"web01 {public(ED25519[0])}", f"[web01]:2222 {public(ED25519[1])}"]
    found = subprocess.run(
        ["ssh-keygen", "-F", "[web01]:2222", "-f", path], capture_output=True, text=True, check=False
    )
    assert public(ED25519[1]) in found.stdout
    changed = Meeting(path, port=2222)
    assert not changed.meet(ED25519[0])
    assert "[web01]:2222" in changed.refusal.message


def test_an_ipv6_address_is_recorded_as_openssh_does(path: Path) -> None:
    assert Meeting(path, host="::1", port=22).meet(ED25519[0])
    assert Meeting(path, host="::1", port=2222).meet(ED25519[1])
    assert path.read_text().splitlines() == [f"::1 {public(ED25519[0])}", f"[::1]:2222 {public(ED25519[1])}"]
    assert Meeting(path, HostKeyPolicy.STRICT, host="::1", port=2222).meet(ED25519[1])


def test_a_name_in_capitals_is_the_same_host(path: Path) -> None:
    assert Meeting(path, host="Web01.Example").meet(ED25519[0])
    assert not Meeting(path, host="web01.example").meet(ED25519[1])
    assert len(path.read_text().splitlines()) == 1


def test_a_changed_key_is_refused_and_nothing_is_written(path: Path) -> None:
    write(path, f"web01 {public(ED25519[0])}")
    for policy in (HostKeyPolicy.ACCEPT_NEW, HostKeyPolicy.STRICT):
        changed = Meeting(path, policy)
        assert not changed.meet(ED25519[1])
        assert changed.refusal.code == "host.key_changed"
        assert as_key(ED25519[1]).get_fingerprint() in changed.refusal.message
        assert "ssh-keygen -f" in changed.refusal.message
        assert changed.refusal.message.startswith("web01: ")
    assert path.read_text() == f"web01 {public(ED25519[0])}\n"


def test_the_advice_for_a_changed_key_works(path: Path) -> None:
    write(path, f"web01 {public(ED25519[0])}", f"[web01]:2222 {public(ED25519[0])}")
    for port in (22, 2222):
        changed = Meeting(path, port=port)
        assert not changed.meet(ED25519[1])
        command = changed.refusal.message.split("with: ")[1]
        subprocess.run(["sh", "-c", command], check=True, capture_output=True)
        assert Meeting(path, port=port).meet(ED25519[1])


def test_a_key_of_another_kind_is_a_changed_key(path: Path) -> None:
    write(path, f"web01 {public(ECDSA)}")
    changed = Meeting(path)
    assert not changed.meet(ED25519[0])
    assert changed.refusal.code == "host.key_changed"
    assert path.read_text() == f"web01 {public(ECDSA)}\n"


def test_hashed_entries_are_understood(path: Path) -> None:
    write(path, f"web01 {public(ED25519[0])}", f"[web01]:2222 {public(ED25519[1])}")
    subprocess.run(["ssh-keygen", "-H", "-f", path], check=True, capture_output=True)
    assert "web01" not in path.read_text()
    assert Meeting(path, HostKeyPolicy.STRICT).meet(ED25519[0])
    assert Meeting(path, HostKeyPolicy.STRICT, port=2222).meet(ED25519[1])
    assert not Meeting(path).meet(ED25519[2])
    assert not Meeting(path, port=2222).meet(ED25519[2])


def test_patterns_lists_comments_and_several_keys_are_understood(path: Path) -> None:
    write(
        path,
        "# a comment",
        "",
        f"*.example,!bad.example {public(ED25519[0])} somebody@somewhere",
        f"web01,10.0.0.9 {public(ED25519[0])}",
        f"web01 {public(ED25519[1])}",
        f"web01 {public(ECDSA)}",
    )
    for key in (ED25519[0], ED25519[1], ECDSA):
        assert Meeting(path, HostKeyPolicy.STRICT).meet(key)
    assert Meeting(path, HostKeyPolicy.STRICT, host="a.example").meet(ED25519[0])
    assert not Meeting(path, HostKeyPolicy.STRICT, host="bad.example").meet(ED25519[0])
    assert not Meeting(path).meet(ED25519[2])


def test_a_revoked_key_is_refused_also_where_it_is_recorded(path: Path) -> None:
    write(path, f"web01 {public(ED25519[0])}", f"@revoked * {public(ED25519[0])}")
    for port in (22, 2222):
        revoked = Meeting(path, port=port)
        assert not revoked.meet(ED25519[0])
        assert revoked.refusal.code == "host.key_changed"
        assert "revoked" in revoked.refusal.message


def test_an_unknown_key_under_strict_is_refused_and_not_recorded(path: Path) -> None:
    unknown = Meeting(path, HostKeyPolicy.STRICT)
    assert not unknown.meet(ED25519[0])
    assert unknown.refusal.code == "host.key_unknown"
    assert unknown.refusal.exit_status == 255
    assert as_key(ED25519[0]).get_fingerprint() in unknown.refusal.message
    assert not path.exists()


def test_off_accepts_anything_and_warns_each_time(path: Path) -> None:
    write(path, f"web01 {public(ED25519[0])}", f"@revoked * {public(ED25519[1])}")
    before = path.read_text()
    for key in ED25519:
        off = Meeting(path, HostKeyPolicy.OFF)
        assert off.meet(key)
        assert len(off.warnings) == 1
        assert "web01" in off.warnings[0]
        assert as_key(key).get_fingerprint() in off.warnings[0]
    assert path.read_text() == before


def test_a_file_without_a_final_newline_is_not_spoilt(path: Path) -> None:
    write(path)
    path.write_text(f"other {public(ED25519[0])}")
    assert Meeting(path).meet(ED25519[1])
    assert path.read_text().splitlines() == [f"other {public(ED25519[0])}", f"web01 {public(ED25519[1])}"]
    assert Meeting(path, HostKeyPolicy.STRICT, host="other").meet(ED25519[0])


def test_a_line_that_openssh_would_skip_does_not_hide_the_others(path: Path) -> None:
    """OpenSSH ignores a line that it can't read; refusing the whole file would lock everybody out."""
    write(path, "web01 ssh-newkind AAAAnonsense", f"web01 {public(ED25519[0])}")
    assert Meeting(path, HostKeyPolicy.STRICT).meet(ED25519[0])


def test_bytes_that_are_no_text_hide_no_other_line(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe\x00web01 \xe4\n" + f"web01 {public(ED25519[0])}\n".encode())
    assert Meeting(path, HostKeyPolicy.STRICT).meet(ED25519[0])
    assert not Meeting(path).meet(ED25519[1])


def test_a_file_that_cannot_be_read_is_warned_of_once(path: Path) -> None:
    """It counts as empty, as for ssh."""
    path.mkdir(parents=True)
    first, second = Meeting(path), Meeting(path)
    assert first.meet(ED25519[0])
    assert second.meet(ED25519[0])
    assert sum(f"{path} cannot be read (Is a directory)" in warning for warning in first.warnings) == 1
    assert not any("cannot be read" in warning for warning in second.warnings)


def test_a_key_that_cannot_be_recorded_is_warned_of(path: Path) -> None:
    """As ssh does: a read-only home folder locks nobody out. Each connection says so."""
    path.mkdir(parents=True)
    for _ in range(2):
        unrecorded = Meeting(path)
        assert unrecorded.meet(ED25519[0])
        assert as_key(ED25519[0]).get_fingerprint() in unrecorded.warnings[-1]
        assert f"cannot be recorded in {path} (Is a directory)" in unrecorded.warnings[-1]
    assert not Meeting(path, HostKeyPolicy.STRICT).meet(ED25519[0])


def test_ten_processes_at_once_record_one_line(path: Path) -> None:
    meet = (
        "import sys, asyncssh; from cronium_controller.hostkeys import HostKeyCheck\n"
        "from cronium_controller.ssh_settings import SSHSettings\n"
        "check = HostKeyCheck(SSHSettings('web01', 22, 'me'), print, host='web01', path=sys.argv[1])\n"
        "key = asyncssh.import_public_key(sys.argv[2])\n"
        "check.algorithms()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read(1)\n"
        "check.validate(key.public_data)"
    )
    command = [sys.executable, "-c", meet, str(path), public(ED25519[0])]
    start, gate = os.pipe()
    running = [subprocess.Popen(command, stdin=start, stdout=subprocess.PIPE) for _ in range(10)]
    os.close(start)
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdout.close()
    os.close(gate)  # all at once
    assert [process.wait() for process in running] == [0] * 10
    assert path.read_text() == f"web01 {public(ED25519[0])}\n"


def test_who_comes_second_with_another_key_is_refused(path: Path) -> None:
    """Both found nothing recorded; the one who records first decides."""
    first, second = Meeting(path), Meeting(path)
    first.check.algorithms()
    second.check.algorithms()
    assert first.meet(ED25519[0])
    assert not second.meet(ED25519[1])
    assert second.refusal.code == "host.key_changed"
    assert path.read_text() == f"web01 {public(ED25519[0])}\n"


def test_a_linked_known_hosts_stays_a_link(path: Path, tmp_path: Path) -> None:
    write(path)
    path.rename(tmp_path / "dotfiles")
    path.symlink_to(tmp_path / "dotfiles")
    assert Meeting(path).meet(ED25519[0])
    assert path.is_symlink()
    assert (tmp_path / "dotfiles").read_text() == f"web01 {public(ED25519[0])}\n"
