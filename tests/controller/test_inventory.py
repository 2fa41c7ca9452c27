import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import preloaded
from cronium_controller import inventory, node_sets, ssh_lines
from cronium_controller.errors import ControllerError
from cronium_controller.hosts import BadTarget, SSHConfig
from cronium_controller.inventory import Inventory
from cronium_controller.transport import routes
from remote_host import RemoteHost
from runner_process import PATIENCE

SECRET = "hunter2-the-service-token"

EXAMPLE = """\
defaults:
  user: deploy
  connect_timeout: 5
hosts:
  web[01-03]:
    address: 10.0.0.[11-13]
    groups: [web, eu]
  db1: root@db.example:2222
  nas:
  internal-server:
    ssh_host: internal.corp.example.com
    ssh_user: ubuntu
    ssh_key: keys/internal
    tailscale_ip: 100.100.100.20
    cloudflare_tunnel: ssh.example.com
    cloudflare_service_token_id: ${CF_ID}
    cloudflare_service_token_secret: ${CF_SECRET}
    labels: {rack: 7, owner: "a team"}
  localhost:
groups:
  databases: db1
  most: [web!web03, databases]
  outer:
    - most
    - nas
"""
ENVIRONMENT = {"CF_ID": "id", "CF_SECRET": SECRET}


def read(folder: Path, text: str, environment: Mapping[str, str] = ENVIRONMENT, name: str = "hosts.yaml") -> Inventory:
    (folder / name).write_text(text)
    return inventory.load(str(folder / name), environment=environment)


def refusal(folder: Path, text: str, environment: Mapping[str, str] = ENVIRONMENT) -> str:
    """What is said about a file that can't be used, without the folder."""
    with pytest.raises(ControllerError) as refused:
        read(folder, text, environment)
    assert refused.value.code == "hosts.file"
    assert "\n" not in refused.value.message
    return refused.value.message.removeprefix(f"{folder}/hosts.yaml:")


def test_a_malformed_row_can_be_a_host_of_its_own_that_cannot_be_reached(tmp_path: Path) -> None:
    text = "hosts:\n  web01:\n  web[02-03]: {port: 99999, groups: [web, eu]}\n  web04: {groups: web}\n"
    assert refusal(tmp_path, text).startswith("3: web[02-03]: port")
    (tmp_path / "hosts.yaml").write_text(text)
    known = inventory.load(str(tmp_path / "hosts.yaml"), environment={}, keeps_bad_rows=True)
    assert (known.groups["web"], known.groups["eu"]) == (("web02", "web03", "web04"), ("web02", "web03"))
    good, bad, worse, last = known.select_each(["web01", "web"])
    assert (good, last) == (known.host("web01"), known.host("web04"))
    assert isinstance(bad, BadTarget)
    assert isinstance(worse, BadTarget)
    assert (bad.name, bad.error.code) == ("web02", "hosts.file")
    with pytest.raises(ControllerError, match="99999"):
        known.select(["web"])


@pytest.mark.parametrize(
    "text",
    [
        "hosts:\n  a: {grups: web, prot: 1}\n",  # which groups, nobody knows
        "hosts:\n  a: {port: 0, groups: {}}\n",
        "hosts:\n  a: {port: 0}\n  a: {port: 0}\n",
        "hosts:\n  a: [1]\n",
        "hosts:\n  'a b': {port: 0}\n",
        "hosts:\n  a: {port: 0}\ngroups:\n  b: c\n",
        "a:\ngrops:\n  web: a\n",  # without `hosts:` it would be a host
    ],
)
def test_what_leaves_doubt_who_is_meant_refuses_the_whole_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts.yaml").write_text(text)
    with pytest.raises(ControllerError) as refused:
        inventory.load(str(tmp_path / "hosts.yaml"), environment={}, keeps_bad_rows=True)
    assert refused.value.code == "hosts.file"


def test_a_file_says_everything_about_its_hosts(tmp_path: Path) -> None:
    known = read(tmp_path, EXAMPLE)
    assert list(known.entries) == ["web01", "web02", "web03", "db1", "nas", "internal-server", "localhost"]
    assert [known.host(name).address for name in ("web01", "web03", "nas")] == ["10.0.0.11", "10.0.0.13", "nas"]
    db1 = known.host("db1")
    assert (db1.address, db1.port, db1.user) == ("db.example", 2222, "root")
    assert known.config("web02") == SSHConfig("10.0.0.12", user="deploy", connect_timeout=5)
    internal = known.host("internal-server")
    assert [(way.transport, way.address) for way in routes(internal)] == [
        ("tailscale", "100.100.100.20"),
        ("direct", "internal.corp.example.com"),
        ("cloudflare", "ssh.example.com"),
    ]
    assert (internal.user, internal.identity) == ("ubuntu", str(tmp_path / "keys/internal"))
    assert internal.cloudflare_service_token_secret == SECRET
    assert known.entries["internal-server"].labels == {"rack": "7", "owner": "a team"}
    assert known.host("localhost").is_local
    assert not db1.is_local


def test_groups_hold_hosts_groups_and_sets(tmp_path: Path) -> None:
    known = read(tmp_path, EXAMPLE)
    assert known.groups == {
        "databases": ("db1",),
        "most": ("web01", "web02", "db1"),
        "outer": ("web01", "web02", "db1", "nas"),
        "web": ("web01", "web02", "web03"),
        "eu": ("web01", "web02", "web03"),
    }
    assert known.groups_of("web01") == ["most", "outer", "web", "eu"]  # as in the file


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["db1"], "db1"),
        (["web"], "web01 web02 web03"),
        (["nas,web02,nas"], "nas web02"),
        (["nas", "web02"], "nas web02"),
        (["web[01-02]"], "web01 web02"),
        (["web[01-03]!web02,db1"], "db1 web01 web03"),
        (["@most&@web"], "web01 web02"),
        (["outer!databases"], "nas web01 web02"),
        (["web0*"], "web01 web02 web03"),
        (["all"], "web01 web02 web03 db1 nas internal-server localhost"),
        (["all!web"], "db1 internal-server localhost nas"),
    ],
)
def test_a_selection_is_names_groups_and_sets(tmp_path: Path, targets: list[str], names: str) -> None:
    assert [host.name for host in read(tmp_path, EXAMPLE).select(targets)] == names.split()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("web04", "no host or group 'web04'; did you mean 'web03'?"),
        ("databsaes", "did you mean 'databases'?"),
        ("web[01-04]", "no host or group 'web04'"),
        ("@nothing", "no host or group 'nothing'"),
        ("web[01", "a bracket without its other half"),
        ("web[x]", "not a node set"),
        ("web[1-999999999]", "more than 10000 names"),
        ("web[1-9999999999]", "more than 9 digits"),
        ("web[1-100][1-101]", "more than 10000 names"),
        ("web!web", "stands for no host"),
        ("", "stands for no host"),
    ],
)
def test_a_selection_of_what_is_not_there_says_so(tmp_path: Path, target: str, said: str) -> None:
    with pytest.raises(ControllerError) as refused:
        read(tmp_path, EXAMPLE).select([target])
    assert refused.value.code == "hosts.not_found"
    assert said in refused.value.message
    assert str(tmp_path / "hosts.yaml") in refused.value.message


def test_hosts_need_no_hosts_key(tmp_path: Path) -> None:
    known = read(
        tmp_path,
        "a: {ssh_host: 10.0.0.1, ssh_port: 2022}\nb:\ngroups: {both: 'a,b'}\ndefaults: {user: x}\n",
        name="distributed_hosts.yaml",
    )
    assert known.config("a") == SSHConfig("10.0.0.1", port=2022, user="x")
    assert known.groups == {"both": ("a", "b")}


def test_an_empty_file_has_no_hosts(tmp_path: Path) -> None:
    for text in ("", "# nothing yet\n", "hosts:\n", "hosts: {}\ngroups:\n"):
        assert not read(tmp_path, text).entries


def test_every_setting_arrives(tmp_path: Path) -> None:
    text = """\
web01:
  host: 10.0.0.1
  port: 2222
  user: no
  key_path: ~/.ssh/key
  connect_timeout: 2.5
  command_timeout: 600
  use_control_master: off
  control_persist: 60
  server_alive_interval: 10
  server_alive_count_max: 2
  tailscale_ip: 100.64.0.1
  work_dir: /srv/app with space
  venv_activate: ~/venv/bin/activate
  cloudflare_tunnel: ssh.example.com
  cloudflare_service_token_id: id
  cloudflare_service_token_secret: ${CF_SECRET}
"""
    assert read(tmp_path, text).config("web01") == SSHConfig(
        "10.0.0.1", 2222, "no", "~/.ssh/key", 2.5, 600, False, 60, 10, 2, "100.64.0.1", "/srv/app with space",
        "~/venv/bin/activate", "ssh.example.com", "id", SECRET,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("${NAME}", "from-environment"),
        ("${NAME}.example", "from-environment.example"),
        ("${NAME:-other}", "from-environment"),
        ("${MISSING:-other}.example", "other.example"),
        ("${EMPTY:-other}", "other"),
        ("${MISSING:-}", "web01"),
        ("'[::1]'", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_variables_are_put_in(tmp_path: Path, written: str, address: str) -> None:
    environment = {"NAME": "from-environment", "EMPTY": ""}
    assert read(tmp_path, f"web01:\n  host: {written}\n", environment).host("web01").address == address


def test_a_dollar_can_be_written(tmp_path: Path) -> None:
    text = "a: {work_dir: '/srv/$${HOME}/$x'}\n"
    assert read(tmp_path, text).config("a").work_dir == "/srv/${HOME}/$x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n  hots: x\n", "2: a: hots: an unknown key; did you mean 'host'?"),
        ("a:\n  gpu: yes\n", "2: a: gpu: an unknown key; what we should not read goes under labels:"),
        ("hosts: {}\ngruops: {}\n", "2: gruops: an unknown key; did you mean 'groups'?"),
        ("defaults: {host: x}\n", "1: defaults: host: an unknown key"),
        ("a: x\nb: y\na: z\n", "3: a: again, first on line 1; keep one"),
        ("a:\n  port: 1\n  port: 2\n", "3: port: again, first on line 2; keep one"),
        ("a[1-3]:\n\n\na2: x\n", "4: a2: host 'a2' again, first on line 1"),
        ("a:\n  port: 1\n  ssh_port: 2\n", "3: a: ssh_port: the same as port, given above; keep one"),
        ("a:\n  host: x:22\n  port: 22\n", "1: a: port: given in the address too; keep one"),
        ("a:\n  port: ssh\n", "2: a: port: 'ssh' must be a port from 1 to 65535"),
        ("a:\n  port: 0\n", "2: a: port: '0' must be a port from 1 to 65535"),
        ("a:\n  port: 0x16\n", "must be a port"),
        ("a:\n  port: [22]\n", "2: a: port: must be a single value"),
        ("a:\n  connect_timeout: 0\n", "2: a: connect_timeout: '0' must be a number of seconds above 0"),
        ("a:\n  connect_timeout: .inf\n", "must be a number of seconds"),
        ("a:\n  server_alive_count_max: 2.5\n", "must be a number from 1 to 1000"),
        ("a:\n  use_control_master: maybe\n", "2: a: use_control_master: 'maybe' must be true or false"),
        ("a:\n  local: 2\n", "2: a: local: '2' must be true or false"),
        ('a:\n  work_dir: "x\\ny"\n', "2: a: work_dir: must be one line of text"),
        ("a:\n  user: {x: y}\n", "2: a: user: must be a single value"),
        ("a: [x]\n", "1: a: must be a mapping of names to settings"),
        ("- a\n", "1: the file: must be a mapping"),
        ("hosts: [a]\n", "1: hosts: must be a mapping"),
        (
            "a:\n  host: ${NOPE}\n",
            "2: a: host: environment variable NOPE is not set; set it, or write ${NOPE:-default}",
        ),
        ("a:\n  host: ${EMPTY}\n", "2: a: host: environment variable EMPTY is not set"),
        ("a:\n  host: ${NOPE\n", "2: a: host: '${' begins a variable"),
        ("a:\n  host: ${1}\n", "2: a: host: '${' begins a variable"),
        ("a:\n  host: -oProxyCommand=id\n", "1: a: host: '-oProxyCommand=id' is not a host"),
        ("-a: x\n", "1: '-a': not a host name"),
        ("a b: x\n", "1: 'a b': not a host name"),
        ("a[1-2: x\n", "1: a[1-2: not a node set"),
        ("a[1-99999]: x\n", "1: a[1-99999]: it stands for more than 10000 names"),
        ("a[1-3]: x\n", "1: a[1-3]: host: one address for 3 hosts; write a node set of as many"),
        ("a[1-3]: x[1-2]\n", "1: a[1-3]: host: 2 addresses for 3 hosts; make them equal"),
        ("a:\ngroups:\n  g: b\n", "3: groups: g: no host or group 'b'"),
        ("a:\ngroups:\n  g:\n", "3: groups: g: has no members"),
        ("a:\ngroups: {a: a}\n", "2: groups: a: also the name of a host; rename one"),
        ("a:\ngroups:\n  g: h\n  h: [a, g]\n", "3: groups: g: contains itself (g → h → g)"),
        ("a:\ngroups: {g: 'a!a'}\n", "2: groups: g: it stands for no host at all"),
        ("a:\n  groups: 'x y'\n", "'x y': not a a: groups: group name"),
        ("a: &x {user: b}\nc: *x\n", "2: c: an alias"),
        ("a:\n  <<: {user: b}\n", "2: a: merge keys ('<<') are not read"),
        ("a:\n  user: !vault x\n", "2: a: user: a tag ('!vault')"),
        ("a:\n  user: 'x\n", "not valid YAML"),
        ("a: x\n\tb: y\n", "2: not valid YAML"),
        ("a: x\x07\n", "1: not valid YAML"),
        ("? [a]\n: b\n", "1: the file: a list or mapping as a key"),
        ("[" * 500, "nested too deeply"),
        ("a: " + "x" * (1 << 20), "1: larger than 1 MiB"),
    ],
)
def test_a_mistake_names_file_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text, {"EMPTY": ""})


def test_a_mistake_of_encoding_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").write_bytes(b"a: x\nb: \xff\n")
    with pytest.raises(ControllerError, match=r"hosts.yaml:2: not UTF-8"):
        inventory.load(str(tmp_path / "hosts.yaml"))


def test_secrets_are_in_no_representation_and_no_mistake(tmp_path: Path) -> None:
    known = read(tmp_path, EXAMPLE)
    shown = [
        repr(known), repr(known.entries), repr(known.host("internal-server")), str(known.host("internal-server")),
        repr(known.config("internal-server")),
        refusal(tmp_path, "a: {cloudflare_service_token_secret: [" + SECRET + "]}\n"),
        refusal(tmp_path, "a: {port: '${CF_SECRET}'}\n"),
        refusal(tmp_path, "a: {host: 'a b ${CF_SECRET}'}\n"),
        refusal(tmp_path, "a: {local: '${CF_SECRET}'}\n"),
    ]  # fmt: skip
    assert SECRET not in "".join(shown)


def test_a_secret_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    text = f"a:\n  cloudflare_service_token_secret: {SECRET}\n"
    (tmp_path / "hosts.yaml").touch(0o644)
    os.chmod(tmp_path / "hosts.yaml", 0o644)
    [warning] = read(tmp_path, text).warnings
    assert "hosts.yaml:2:" in warning
    assert SECRET not in warning
    os.chmod(tmp_path / "hosts.yaml", 0o600)
    assert read(tmp_path, text).warnings == []
    os.chmod(tmp_path / "hosts.yaml", 0o644)
    assert read(tmp_path, EXAMPLE).warnings == []  # a ${VARIABLE} is none


# -- which file ------------------------------------------------------------------------------------------------------


def test_the_first_of_option_environment_project_and_user_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {
        "option": tmp_path / "chosen.yaml",
        "environment": tmp_path / "named.yaml",
        "project": tmp_path / "here/hosts.yaml",
        "cluster": tmp_path / "here/cluster_hosts.yaml",
        "distributed": tmp_path / "here/distributed_hosts.yaml",
        "user": tmp_path / "config/cronium/hosts.yaml",
        "user-distributed": tmp_path / "config/cronium/distributed_hosts.yaml",
    }
    for name, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}:\n")
    monkeypatch.chdir(tmp_path / "here")
    variables = {"CRONIUM_HOSTS": str(places["environment"]), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    remaining = list(places)
    assert list(inventory.load(str(places["option"]), environment=variables).entries) == [remaining.pop(0)]
    assert list(inventory.load(environment=variables).entries) == [remaining.pop(0)]
    del variables["CRONIUM_HOSTS"]
    for name in remaining:
        assert list(inventory.load(environment=variables).entries) == [name]
        places[name].unlink()
    with pytest.raises(ControllerError, match="there is no hosts file") as refused:
        inventory.load(environment=variables)
    assert refused.value.code == "hosts.not_found"


def test_a_named_file_that_is_not_there_is_no_reason_to_read_another(tmp_path: Path) -> None:
    for chosen, environment in (("nope.yaml", {}), (None, {"CRONIUM_HOSTS": str(tmp_path / "nope.yaml")})):
        with pytest.raises(ControllerError, match=r"no hosts file at .*nope.yaml; correct"):
            inventory.load(chosen, environment=environment)


def test_a_found_file_that_anybody_could_have_written_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts.yaml").write_text("a:\n")
    os.chmod(tmp_path / "hosts.yaml", 0o666)
    with pytest.raises(ControllerError, match="writable by everybody; if you trust it, name it with --hosts"):
        inventory.load(environment={})
    assert list(inventory.load("hosts.yaml", environment={}).entries) == ["a"]


def test_aliases_are_those_that_ssh_config_spells_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ssh_lines, "SYSTEM_FILE", str(tmp_path / "system"))
    assert inventory.ssh_aliases() == set()
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/one.conf").write_text('Host gamma "two words" # no\n')
    (tmp_path / "system").write_text("Host everywhere\n")
    (tmp_path / ".ssh/config").write_text(
        f"# Host commented\nHost alpha *.example !beta be?a\n  Port 22\nhost=delta\nInclude *.conf\n"
        f"Include {tmp_path}/.ssh/config\n"
    )
    assert inventory.ssh_aliases() == {"alpha", "delta", "everywhere", "gamma", "two words"}


# -- costs and the command -------------------------------------------------------------------------------------------


def test_a_plain_name_costs_no_node_set_library() -> None:
    program = (
        "import sys; from cronium_controller import node_sets as n; n.pick('g,a', ['a', 'b'], {'g': ['b']});"
        "n.expand('a');"
        "print('ClusterShell' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_set_is_what_the_library_makes_of_it() -> None:
    assert node_sets.expand("n[1-3,7]") == ["n1", "n2", "n3", "n7"]
    assert node_sets.expand("n[08-11]") == ["n08", "n09", "n10", "n11"]
    pairs = [f"r{a}n{b}" for a, b in itertools.product((1, 2), (1, 2))]
    assert node_sets.expand("r[1-2]n[1-2]") == pairs


def cronium(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "CRONIUM_CONTROLLER_STATE": str(cwd / "state"), "XDG_CONFIG_HOME": str(cwd / "config")}
    environment.pop("CRONIUM_HOSTS", None)
    done = preloaded.run("cronium", words, cwd=cwd, env={**environment, **ENVIRONMENT}, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_command_lists_hosts(tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").write_text(EXAMPLE)
    listed = cronium("hosts", cwd=tmp_path)
    assert listed.returncode == 0
    lines = [line.split() for line in listed.stdout.splitlines()]
    assert lines[0] == [
        "NAME",
        "ADDRESS",
        "USER",
        "PORT",
        "ROUTES",
        "GROUPS",
        "RUNNER",
        "HEALTH",
        "USED",
        "SUCCESS",
        "LAST",
        "ERROR",
    ]
    assert ["db1", "db.example", "root", "2222", "direct", "databases,most,outer", "-", "-", "-", "-", "-"] in lines
    assert len(lines) == 8
    [only] = cronium("hosts", "--on", "internal-server", "--json", cwd=tmp_path).stdout.splitlines()
    assert json.loads(only)["routes"][0] == {"transport": "tailscale", "address": "100.100.100.20"}
    assert SECRET not in listed.stdout + only


def test_a_malformed_row_keeps_no_other_from_being_listed(tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").write_text("hosts:\n  web01: {host: a}\n  web02: {host: b, port: 99999}\n")
    listed = cronium("hosts", cwd=tmp_path)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["NAME", "web01"]
    assert (listed.returncode, listed.stderr.count("\n")) == (125, 1)
    assert "hosts.yaml:3: web02: port" in listed.stderr
    assert cronium("hosts", "--on", "web01", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hosts", "--on", "nope"], "no host or group 'nope'"),
        (["hosts", "--hosts", "nope.yaml"], "no hosts file at nope.yaml; correct --hosts"),
        (["run", "/bin/true"], "say where: --host"),
        (["doctor", "--on", "nope"], "no host or group 'nope'"),
        (["deploy", "--on", "wbe01"], "did you mean 'web01'?"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_selection(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "hosts.yaml").write_text(EXAMPLE)
    done = cronium(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (125, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_job_runs_on_a_host_of_the_hosts_file(remote: RemoteHost, tmp_path: Path) -> None:
    """--identity comes from the test's command line and beats the file's key."""
    (tmp_path / "hosts.yaml").write_text(f"web01:\n  host: {remote.server.target}\n  key_path: /nope\n  groups: web\n")
    (tmp_path / "job.sh").write_text("echo hello")
    for target in ("web01", "web"):
        done = remote.cronium("run", "--hosts", tmp_path / "hosts.yaml", "--on", target, tmp_path / "job.sh")
        assert (done.returncode, done.stdout) == (0, b"hello\n"), done.stderr
    variable = {**remote.environment, "CRONIUM_HOSTS": str(tmp_path / "hosts.yaml")}
    with remote.start_cronium(
        "run", "--on", "web01", "--json", tmp_path / "job.sh", env=variable, stdout=-1
    ) as process:
        told = json.loads(process.communicate(timeout=PATIENCE)[0])
    assert (told["host"], told["state"]) == ("web01", "succeeded")
