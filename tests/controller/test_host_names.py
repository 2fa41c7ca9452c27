"""Names of hosts and users: what OpenSSH refuses is refused, whichever way it comes, before anything is composed.

The table is compared with the installed ssh: its own `valid_hostname`, `valid_ruser` and ProxyJump parser.
"""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import preloaded
from cronium_controller import host_names, jumps
from cronium_controller.client import SSHClient
from cronium_controller.errors import ControllerError
from cronium_controller.executor import ConfigurationError, SSHExecutor
from cronium_controller.hosts import Host, SSHConfig, parse_host
from cronium_controller.inventory import load
from cronium_controller.ssh_config import ssh_settings_of
from cronium_controller.store import Store

INVALID = "invalid"

HOSTS = [
    "web01", "web-01.example.com", "web_01", "10.0.0.1", "::1", "fe80::1%eth0", "bücher.example", "a/b", "a*b", "a~b",
    "a%b", "a#b", "a=b", "a!b", "a+b", "a^b", "a[b", "a?b",
    "a;b", "a|b", "a&b", "a`b", "$(a)", "a$b", "${a}", "a'b", 'a"b', "a\\b", "a<b", "a>b", "a(b", "a)b", "a{b", "a}b",
    "a b", "a\tb", "a\nb", "a\rb", "a\x01b", "a\x1b[2Jb", "a\x7fb", "-a", "-oProxyCommand=id", "--", "a,b",
]  # fmt: skip
USERS = [
    "root", "first.last@realm", "DOMAIN\\user", "a b", "machine$", "a%b", "a*b", "a,b", "a-b", "ü", "a~", "a#b", "a/b",
    "-a", "a;b", "a|b", "a&b", "a`b", "$(a)", "a'b", 'a"b', "a<b", "a>b", "a(b", "a)b", "a{b", "a}b", "a\\", "a -b",
    "a\tb", "a\nb", "a\x01b", "a\x1bb", "a\x7fb",
]  # fmt: skip
UNSEEN = ["a\u202eb", "a\u200bb", "a\x9bb", "\udcff", "a" * 5000]
"""Names that OpenSSH takes, and nobody can see or tell apart."""
SHELL = [
    "x;id>PWNED",
    "`id>PWNED`",
    "$(id>PWNED)",
    "x|id>PWNED",
    "x&id>PWNED",
    "x\nid>PWNED",
    "-oProxyCommand=id>PWNED",
]
"""What would make a file in ProxyCommand's shell."""


def is_refused(address: str = "h", **fields: str) -> bool:
    try:
        Host("name", address, **fields)  # type: ignore[arg-type]
    except ControllerError as refused:
        told = refused
    else:
        return False
    assert (told.code, told.exit_status) == ("host.config", 125)
    assert told.message.isprintable()
    assert len(told.message) < 300
    return True


def ssh_refuses(*words: str) -> bool:
    """Whether the installed ssh refuses what it would be called with; it connects to nothing."""
    done = subprocess.run(
        ["ssh", "-G", "-F", "/dev/null", *words], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode != 0


@pytest.fixture(scope="module")
def ssh() -> None:
    """An ssh of the rules that this table is about: distributions carry them in older versions, too."""
    if shutil.which("ssh") is None:
        pytest.skip("openssh-client is not installed")
    new = ("--", "a,b"), ("-l", "a\x01b", "--", "h"), ("-J", "a;b", "--", "h")
    if not all(ssh_refuses(*words) for words in new):
        pytest.skip("this ssh is older than these rules")


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_are_refused_where_ssh_refuses_them(ssh: None, name: str) -> None:
    assert is_refused(name) == ssh_refuses("-l", "x", "--", name)


@pytest.mark.parametrize("name", USERS)
def test_users_are_refused_where_ssh_refuses_them(ssh: None, name: str) -> None:
    assert is_refused(user=name) == ssh_refuses("-l", name, "--", "h")


@pytest.mark.parametrize(
    "text", ["a;b", "u;x@b", "-a", "u@-a", "-u@a", "a|b:22", "$(x)@h", "a`b", "me@[::1]:22", "j:1"]
)
async def test_jump_hosts_are_refused_where_ssh_refuses_them(
    ssh: None, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(f"Host inner\n  ProxyJump {text}\n")
    host = parse_host("inner")
    if not ssh_refuses("-J", text, "--", "h"):
        assert len(await jumps.jumps(host, await ssh_settings_of(host), ssh_settings_of)) == 1
        return
    with pytest.raises(ControllerError) as refused:
        await jumps.jumps(host, await ssh_settings_of(host), ssh_settings_of)
    assert refused.value.code == "host.config"


@pytest.mark.parametrize("name", UNSEEN)
def test_names_that_nobody_can_see_are_refused(name: str) -> None:
    assert is_refused(name)
    assert is_refused(user=name)
    assert host_names.wrong_with_label(name)


@pytest.mark.parametrize("port", [0, -1, 65536, "22", "22; id", 2.5, True])
def test_a_port_is_a_number(port: object) -> None:
    with pytest.raises(ControllerError, match="is not a port"):
        Host("a", "a", port=port)  # type: ignore[arg-type]
    assert SSHConfig("a", port="22").to_host().port == 22  # type: ignore[arg-type]  # other people's objects


@pytest.mark.parametrize("evil", SHELL)
def test_every_way_of_a_program_leads_through_the_gate(evil: str) -> None:
    ways: list[Callable[[], Host]] = [
        lambda: parse_host(evil),
        lambda: parse_host(f"{evil}@web01"),
        lambda: replace(parse_host("web01"), address=evil),
        lambda: SSHConfig(evil).to_host(),
        lambda: SSHConfig("web01", user=evil).to_host(),
        lambda: SSHConfig("web01", tailscale_ip=evil).to_host("web01"),
        lambda: SSHConfig("web01", cloudflare_tunnel=evil).to_host("web01"),
        lambda: SSHConfig.from_host_config({"ssh_host": evil}).to_host(),
        lambda: Host("web01", "web01", user=evil),
    ]
    for make in ways:
        with pytest.raises(ControllerError) as refused:
            make()
        assert refused.value.code == "host.config"


@pytest.mark.parametrize("key", ["host", "user", "tailscale_ip", "cloudflare_tunnel"])
def test_a_hosts_file_names_the_line_of_a_bad_name(tmp_path: Path, key: str) -> None:
    for evil in SHELL:
        path = tmp_path / "hosts.yaml"
        path.write_text(f"hosts:\n  web01:\n    {key}: {json.dumps(evil)}\n")
        with pytest.raises(ControllerError, match=rf"hosts\.yaml:[23]: web01: {key}: ") as refused:
            load(str(path))
        assert refused.value.code == "hosts.file"


async def test_no_shell_of_a_proxy_command_sees_a_bad_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack itself: a ProxyCommand that gives %h and %r to a shell, from the command line and from the API."""
    monkeypatch.chdir(tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
    environment = kept | {"HOME": str(tmp_path), "CRONIUM_CONTROLLER_STATE": str(tmp_path / "state")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text('Host *\n  ProxyCommand /bin/sh -c "touch ASKED; exec nc %h %p %r"\n')
    for evil in SHELL:
        for target in (evil, f"{evil}@web01"):
            done = await asyncio.to_thread(preloaded.run, "cronium", ["exec", f"--host={target}", "--", "true"])
            assert done.returncode == 125, done
            assert done.stderr.endswith(b"[host.config]\n")
            assert done.stderr.count(b"\n") == 1
        for config in (SSHConfig(evil), SSHConfig("web01", user=evil)):
            client = SSHClient(config)
            assert (await client.run_async("true")).error_code == "host.config"
            with pytest.raises(ConfigurationError):
                await SSHExecutor().execute(config, "true")
    assert not (tmp_path / "PWNED").exists()
    assert not (tmp_path / "ASKED").exists()


def test_a_name_that_an_older_version_kept_is_still_shown(tmp_path: Path) -> None:
    store = Store(tmp_path / "controller.db")
    store.record("job", Host("web01", "web01"), "0" * 64, "script.sh", 1.0)
    store.database.write("UPDATE executions SET address = 'a;b', host = 'a;b' || char(10)")
    [record] = store.recent()
    store.close()
    assert (record.host.name, record.host.address) == ("a;b", "")
