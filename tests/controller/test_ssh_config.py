"""What OpenSSH's configuration says: our own reader against `ssh -G`, and when `ssh` is asked."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import ssh_configurations
from cronium_controller import doctor_here, ssh_asking, ssh_config, ssh_lines, ssh_reader
from cronium_controller.cli import cronium
from cronium_controller.errors import ControllerError
from cronium_controller.hosts import Host, parse_host
from cronium_controller.ssh_config import ssh_settings_of
from cronium_controller.state_path import default_path
from ssh_configurations import ROWS, Row

SSH = shutil.which("ssh")
needs_ssh = pytest.mark.skipif(SSH is None, reason="ssh is not installed")


@needs_ssh
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_our_reader_says_what_ssh_says(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OTHER_AGENT", "/agents/other")
    ssh_configurations.write(row, tmp_path)
    assert ssh_configurations.ours(row, tmp_path) == ssh_configurations.theirs(row, tmp_path)
    assert not (tmp_path / "ran").exists()
    if row.is_simple is not None:
        found = ssh_reader.survey(ssh_lines.load(str(tmp_path / "system")), row.asked)
        assert found.is_simple is row.is_simple


class Account:
    """A home with an SSH configuration, and an `ssh` that reads it and writes down each time that it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ssh = folder / "home" / ".ssh"
        self.ssh.mkdir(parents=True)
        (folder / "bin").mkdir()
        self.program = folder / "bin" / "ssh"
        self.install(f'echo "$*" >>{folder}/asked; exec {SSH} -F {self.ssh}/config "$@"')

    def install(self, script: str) -> None:
        self.program.write_text(f"#!/bin/sh\n{script}\n")
        self.program.chmod(0o755)

    def configure(self, text: str, name: str = "config") -> None:
        (self.ssh / name).write_text(text)
        (self.ssh / name).chmod(0o600)

    def count_asked(self) -> int:
        """How often ssh was started."""
        path = self.folder / "asked"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @staticmethod
    def begin_anew() -> None:
        """As another process, which remembers nothing."""
        ssh_asking._answers.clear()
        ssh_lines._loaded.clear()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    """The account's own home folder, as far as `ssh_config` can tell."""
    made = Account(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(ssh_lines, "SYSTEM_FILE", str(tmp_path / "system"))
    monkeypatch.setattr(ssh_config, "is_home_of_account", lambda: True)
    return made


WEB = "Host web*\n  HostName 10.0.0.1\n  Port 2222\n"


@needs_ssh
async def test_ssh_is_asked_once_for_a_host_and_by_no_later_process(home: Account) -> None:
    home.configure(WEB)
    for _ in range(2):
        for _ in range(2):
            settings = await ssh_settings_of(parse_host("web1"))
            assert (settings.host_name, settings.port) == ("10.0.0.1", 2222)
        home.begin_anew()
    assert home.count_asked() == 1


async def test_no_program_is_run_for_a_host_that_nothing_concerns(home: Account) -> None:
    settings = await ssh_settings_of(parse_host("db1"))
    home.configure(WEB + "Host *\n  SendEnv LC_*\n  HashKnownHosts yes\n  GSSAPIAuthentication yes\n")
    hashed = await ssh_settings_of(parse_host("db1"))
    assert (settings.hash_known_hosts, hashed.hash_known_hosts) == (False, True)
    assert (hashed.host_name, hashed.port, hashed.are_identities_named) == ("db1", 22, False)
    assert (home.count_asked(), default_path().parent.exists()) == (0, False)


@needs_ssh
@pytest.mark.parametrize(
    "change",
    [
        lambda home: home.configure(WEB + "\n"),
        lambda home: home.configure("Port 1\n", "conf.d/a.conf"),
        lambda home: home.configure("Port 1\n", "conf.d/new.conf"),
        lambda home: (home.ssh / "conf.d/a.conf").unlink(),
        lambda home: (home.folder / "system").write_text("Port 1\n"),
        lambda home: home.install(home.program.read_text()),
    ],
    ids=["the file", "an included one", "one more", "one less", "the system's", "ssh itself"],
)
async def test_ssh_is_asked_again_when_what_it_reads_has_changed(
    home: Account, change: Callable[[Account], object]
) -> None:
    (home.ssh / "conf.d").mkdir()
    home.configure("User a\n", "conf.d/a.conf")
    home.configure(f"{WEB}Match all\nInclude {home.ssh}/conf.d/*.conf\n")
    await ssh_settings_of(parse_host("web1"))
    asked = home.count_asked()
    change(home)
    home.begin_anew()
    await ssh_settings_of(parse_host("web1"))
    assert home.count_asked() == asked + 1


@needs_ssh
async def test_answers_are_of_one_host_port_and_user(home: Account) -> None:
    home.configure(WEB + "Match user me\n  IdentityFile /keys/mine\n")
    names = ["web1", "web2", "web1:9", "me@web1", "web1"]
    found = [await ssh_settings_of(parse_host(name)) for name in names]
    assert [settings.port for settings in found] == [2222, 2222, 9, 2222, 2222]
    assert [settings.identity_files[0] == "/keys/mine" for settings in found] == [False, False, False, True, False]
    assert home.count_asked() == 4


@needs_ssh
@pytest.mark.parametrize(
    "line",
    [
        "Match exec true\n  User x",
        "Host web1\n  IdentityFile ${HOME}/key",
        "CanonicalizeHostname yes\nCanonicalDomains invalid",
    ],
)
async def test_what_may_change_without_a_file_is_asked_each_time(home: Account, line: str) -> None:
    home.configure(f"{WEB}Host *\n{line}\n")
    for _ in range(2):
        await ssh_settings_of(parse_host("web1"))
    assert home.count_asked() == 2


@needs_ssh
async def test_answers_that_another_user_could_have_written_are_not_used(home: Account) -> None:
    home.configure(WEB)
    await ssh_settings_of(parse_host("web1"))
    kept = default_path().with_name("ssh_settings.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    forged = kept.read_text().replace("10.0.0.1", "10.6.6.6")
    for text, mode in [(forged, 0o666), ("{", 0o600), ('{"state": [], "hosts": []}', 0o600), ("[" * 100_000, 0o600)]:
        kept.write_text(text)
        kept.chmod(mode)
        home.begin_anew()
        assert (await ssh_settings_of(parse_host("web1"))).host_name == "10.0.0.1"
    assert home.count_asked() == 5


@needs_ssh
async def test_many_hosts_are_asked_for_at_once(home: Account) -> None:
    home.configure("Host web1*\n  User one\nHost *\n  Port 7\n")
    hosts = [parse_host(f"web{number}") for number in range(12)]
    found = await asyncio.gather(*map(ssh_settings_of, hosts))
    assert [settings.user == "one" for settings in found] == [host.name.startswith("web1") for host in hosts]
    assert {settings.port for settings in found} == {7}
    assert home.count_asked() == 12
    home.begin_anew()
    await asyncio.gather(*map(ssh_settings_of, hosts))
    assert home.count_asked() == 12


@needs_ssh
async def test_what_ssh_refuses_is_refused_in_its_words(home: Account) -> None:
    home.configure("Host web1\n  NoSuchOption yes\n")
    with pytest.raises(ControllerError, match=r"^web1: ssh refuses its configuration: .*nosuchoption") as refused:
        await ssh_settings_of(parse_host("web1"))
    assert refused.value.code == "host.config"


@pytest.mark.parametrize("script", ["exit 0", "echo usage: dbclient; exit 0", "echo 'usage: ssh' >&2; exit 255"])
async def test_another_program_called_ssh_is_passed_over(home: Account, script: str) -> None:
    home.configure(WEB)
    home.install(script)
    if script == "exit 0":
        home.program.write_text("#!/nonexistent\n")
    assert (await ssh_settings_of(parse_host("web1"))).port == 2222


async def test_without_ssh_our_own_reader_says_what_is_wrong(home: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    home.configure("# don't\nHost web1\n  Port twenty\n")
    monkeypatch.setenv("PATH", str(home.folder))
    with pytest.raises(ControllerError, match=r"config line 3: 'twenty' is not a port") as refused:
        await ssh_settings_of(parse_host("web1"))
    assert refused.value.code == "host.config"
    assert ssh_config.why_not_asked() == "the ssh program is not installed"


async def test_another_home_than_the_accounts_is_read_by_us(home: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_config, "is_home_of_account", ssh_lines.is_home_of_account)
    home.configure(WEB)
    assert (await ssh_settings_of(parse_host("web1"))).port == 2222
    assert home.count_asked() == 0
    assert "HOME" in (ssh_config.why_not_asked() or "")


async def test_an_identity_of_the_host_comes_before_those_of_the_files(home: Account) -> None:
    host = Host("web1", "web1", identity="~/given")
    assert not (await ssh_settings_of(host)).are_identities_named, "as `ssh -i` with a file that isn't there"
    (home.folder / "home/given").touch()
    assert (await ssh_settings_of(host)).identity_files == (str(home.folder / "home/given"),)
    home.configure("IdentityFile /keys/a\nIdentityFile ~/given\n")
    settings = await ssh_settings_of(host)
    assert settings.identity_files == (str(home.folder / "home/given"), "/keys/a")
    assert settings.are_identities_named


@pytest.mark.parametrize("name", ["a b", "x;y", "$(z)"])
async def test_names_from_the_files_pass_the_same_gate(
    home: Account, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_config, "is_home_of_account", lambda: False)
    for keyword in ("HostName", "User"):
        home.configure(f'Host web1\n  {keyword} "{name}"\n')
        if keyword == "User" and name == "a b":  # which ssh takes as well
            continue
        with pytest.raises(ControllerError, match=f"the SSH configuration has the {keyword} "):
            await ssh_settings_of(parse_host("web1"))


@needs_ssh
def test_doctor_says_how_configurations_are_read_here(home: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    home.configure(WEB)
    assert [(each.level, each.seen) for each in doctor_here.examine_here()] == [
        ("ok", f"resolved by {doctor_here._version(str(SSH))} ({home.program} -G)"),
        ("ok", f"{home.ssh}/config"),
    ]
    home.configure("NoSuchOption yes\n")
    shown = CliRunner().invoke(cronium, ["doctor", "--local"])
    assert shown.exit_code == 0
    assert "config line 1: 'NoSuchOption' is not an option of OpenSSH" in shown.stdout
    monkeypatch.setenv("PATH", str(home.folder))
    shown = CliRunner().invoke(cronium, ["doctor", "--local", "--json"])
    assert shown.exit_code == 1
    told = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [each["level"] for each in told] == ["note", "ok", "bad"]
    assert told[0]["seen"] == "read by cronium itself: the ssh program is not installed"


async def test_what_only_ssh_can_do_is_refused_with_the_way_out(home: Account) -> None:
    home.configure("Host web1\n  ProxyCommand nc %h %p\n  ProxyUseFdpass yes\n")
    with pytest.raises(ControllerError, match=r"ProxyUseFdpass.*use --connection openssh") as refused:
        await ssh_settings_of(parse_host("web1"))
    assert refused.value.code == "host.config"


@needs_ssh
async def test_the_answer_for_a_master_is_kept_as_well(home: Account) -> None:
    """Also of a host that nothing concerns: whom ssh itself leads to, and how, is in the answer as a whole."""
    home.configure(WEB)
    found = []
    for text in (WEB, f"{WEB}  ControlPersist 60\n", f"{WEB}  GSSAPIAuthentication yes\n"):
        home.configure(text)
        for _ in range(2):
            home.begin_anew()
            values = await ssh_config.told_by_ssh(str(home.program), parse_host("web1"))
        assert values["port"] == ["2222"]
        found.append((values["controlpersist"], values[ssh_asking.WHOLE]))
    assert home.count_asked() == 3
    assert [persist for persist, _ in found] == [["no"], ["60"], ["no"]]
    digests = [digest for _, digest in found]
    assert digests[0] == digests[1] != digests[2]
    home.install("echo usage: other >&2; exit 1")
    with pytest.raises(ControllerError, match="is no OpenSSH that can be asked"):
        await ssh_config.told_by_ssh(str(home.program), parse_host("web1"))
