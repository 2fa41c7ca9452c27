"""Host keys against a real server: recorded once, refused when changed, under every policy as promised."""

import subprocess

import pytest

from cronium_controller.access import HostKeyPolicy
from cronium_controller.connection import open_connection
from cronium_controller.errors import HostKeyError
from remote_host import RemoteHost

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]


def lines(host: RemoteHost) -> list[str]:
    return host.known_hosts.read_text().splitlines() if host.known_hosts.exists() else []


async def connect(host: RemoteHost, policy: HostKeyPolicy = HostKeyPolicy.ACCEPT_NEW) -> None:
    connection = await open_connection(host.host, host.access(host_keys=policy))
    await connection.close()


async def test_an_unknown_key_is_recorded_once_and_ssh_agrees(fresh: RemoteHost) -> None:
    for _ in range(3):
        await connect(fresh)
    key = " ".join((fresh.server.folder / "host_key.pub").read_text().split()[:2])
    [line] = lines(fresh)
    name, _, recorded = line.partition(" ")
    assert recorded == key
    assert name.startswith("|1|") or name == f"[127.0.0.1]:{fresh.server.port}", (
        "as HashKnownHosts of this machine asks"
    )
    assert fresh.known_hosts.stat().st_mode & 0o777 == 0o600
    options = ["-o", f"UserKnownHostsFile={fresh.known_hosts}", "-o", "StrictHostKeyChecking=yes", "-F", "none"]
    words = ["-i", str(fresh.server.identity), "-p", str(fresh.server.port), "127.0.0.1", "true"]
    assert subprocess.run(["ssh", *options, *words], stdin=subprocess.DEVNULL, check=False).returncode == 0


async def test_what_ssh_recorded_is_known_here(fresh: RemoteHost) -> None:
    options = ["-o", f"UserKnownHostsFile={fresh.known_hosts}", "-o", "StrictHostKeyChecking=accept-new", "-F", "none"]
    words = ["-i", str(fresh.server.identity), "-p", str(fresh.server.port), "127.0.0.1", "true"]
    ran = subprocess.run(["ssh", "-o", "HashKnownHosts=yes", *options, *words], stdin=subprocess.DEVNULL, check=False)
    assert ran.returncode == 0
    before = lines(fresh)
    await connect(fresh, HostKeyPolicy.STRICT)
    assert lines(fresh) == before


async def test_a_changed_key_is_refused_before_authentication_every_time(fresh: RemoteHost) -> None:
    await connect(fresh)
    fresh.server.stop()
    fresh.server.renew_host_key()
    fresh.server.start()
    before = lines(fresh)
    for policy in (HostKeyPolicy.ACCEPT_NEW, HostKeyPolicy.STRICT, HostKeyPolicy.ACCEPT_NEW):
        with pytest.raises(HostKeyError) as refused:
            await connect(fresh, policy)
        assert refused.value.code == "host.key_changed"
        assert refused.value.exit_status == 255
        assert refused.value.message.startswith(f"{fresh.server.target}: ")
        assert str(fresh.known_hosts) in refused.value.message
    assert lines(fresh) == before
    assert fresh.server.count_in_log("Accepted publickey") == 1
    assert fresh.server.count_in_log("Failed publickey") == 0


async def test_an_unknown_key_is_refused_under_strict(fresh: RemoteHost) -> None:
    with pytest.raises(HostKeyError) as refused:
        await connect(fresh, HostKeyPolicy.STRICT)
    assert (refused.value.code, refused.value.phase) == ("host.key_unknown", "host key")
    assert "SHA256:" in refused.value.message
    assert lines(fresh) == []
    assert fresh.server.count_in_log("Accepted publickey") == 0


async def test_off_warns_each_time_and_records_nothing(fresh: RemoteHost) -> None:
    for number in (1, 2):
        await connect(fresh, HostKeyPolicy.OFF)
        assert len(fresh.warnings) == number
    assert "SHA256:" in fresh.warnings[0]
    assert lines(fresh) == []


async def test_a_recorded_key_of_another_kind_decides_which_is_asked_for(fresh: RemoteHost) -> None:
    """As OpenSSH: the server is asked for the kind that is recorded; when it has only others, that is a changed key."""
    other = fresh.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", other], check=True)
    key = " ".join(other.with_suffix(".pub").read_text().split()[:2])
    fresh.known_hosts.write_text(f"[127.0.0.1]:{fresh.server.port} {key}\n")
    with pytest.raises(HostKeyError) as refused:
        await connect(fresh)
    assert refused.value.code == "host.key_changed"
    assert fresh.server.count_in_log("Accepted publickey") == 0


async def test_a_revoked_key_is_refused(fresh: RemoteHost) -> None:
    await connect(fresh)
    with fresh.known_hosts.open("a") as file:
        file.write(f"@revoked * {lines(fresh)[0].split(' ', 1)[1]}\n")
    with pytest.raises(HostKeyError, match="revoked"):
        await connect(fresh)


def test_the_command_says_who_where_and_what_to_do(fresh: RemoteHost) -> None:
    script = fresh.script("echo hi")
    done = fresh.run("--host-keys", "strict", script)
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr.count(b"\n") == 1
    assert done.stderr.endswith(b"[host.key_unknown]\n")
    done = fresh.run("--host-keys", "off", script)
    assert (done.returncode, done.stdout) == (0, b"hi\n")
    assert b"warning" in done.stderr
