"""Programs written for the documents' client and executor: what their modules have that ours have not."""

import asyncio
import enum
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import cronium_controller
from controller.test_client import home, serve, server, settings  # noqa: F401 - fixtures
from cronium_controller import inventory, remote_shell
from cronium_controller.compat import homelab, ringrift
from cronium_controller.errors import ControllerError
from openssh import OpenSSHServer

# -- what a shell is told ----------------------------------------------------------------------------------------------

_EXPANDED = {
    "$A/x": "a value/x",
    "${A}x": "a valuex",
    "$UNSET/x": "/x",
    "~": "HOME",
    "~/a b": "HOME/a b",
    "~root/x": "ROOT/x",
    "x~": "x~",
    "a:~/b": "a:~/b",
    "$(touch x)": "$(touch x)",
    "`touch x`": "`touch x`",
    "~/$(touch x)`touch x`": "HOME/$(touch x)`touch x`",
    "${A:-$(touch x)}": "${A:-$(touch x)}",
    "${A%value}": "${A%value}",
    "$((1+1))": "$((1+1))",
    "*?[a]": "*?[a]",
    "a  b;c|d&e>f": "a  b;c|d&e>f",
    "\"'\\": "\"'\\",
    "\\$A": "\\a value",
    "$1$$$?$": "$1$$$?$",
    "line\nline": "line\nline",
    "!x": "!x",
    "": "",
}


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_only_variables_and_homes_are_expanded(tmp_path: Path, shell: str) -> None:
    root = subprocess.run(["sh", "-c", "echo ~root"], capture_output=True, text=True, check=True).stdout.strip()
    for text, wanted in _EXPANDED.items():
        script = f'v={remote_shell.expanded(text)}; printf %s. {remote_shell.expanded(text)} "$v"'
        done = subprocess.run(
            [shell, "-c", script],
            cwd=tmp_path,
            env={"A": "a value", "HOME": "HOME", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        word = wanted.replace("ROOT", root)
        assert done.stdout == f"{word}.{word}.", text
    assert not list(tmp_path.iterdir())


async def test_folder_variables_venv_and_log_are_expanded_in_compat(
    server: OpenSSHServer,  # noqa: F811
    home: Path,  # noqa: F811
) -> None:
    (home / "the venv").mkdir()
    (home / "the venv/activate").write_text("export VENV=on\n")
    given = {"P": "$HOME/bin:$B", "Q": "$(touch x) `touch y`", "R": "~/r"}
    config = ringrift.SSHConfig("127.0.0.1", port=server.port, key_path=str(server.identity))
    config.venv_activate = "source $HOME/the venv/activate"
    async with ringrift.SSHClient(config) as client:
        for _ in range(2):
            result = await client.run_async('pwd; echo "$P|$Q|$R|$VENV"', cwd="${HOME}/the venv", env=given)
            wanted = f"{home}/the venv\n{home}/bin:|$(touch x) `touch y`|{home}/r|on\n"
            assert result.stdout == wanted, result
            await asyncio.gather(*client._commands.chores)
        odd = await client.run_async("true", cwd="~/$(touch z)")
        assert not odd.success
        started = await client.run_background("echo $P; echo done", log_file="$HOME/logs/`x`.log", env=given)
        assert started.success, started
        async with asyncio.timeout(30):
            while not (home / "logs/`x`.log").exists() or "done" not in (home / "logs/`x`.log").read_text():
                await asyncio.sleep(0.02)
    assert not any((home / name).exists() for name in ("x", "y", "z", "the venv/x", "the venv/y"))
    async with cronium_controller.SSHClient(settings(server)) as plain:
        told = await plain.run_async('echo "$P"', env=given)
        assert told.stdout == "$HOME/bin:$B\n", "elsewhere values arrive as they were given"
        assert not (await plain.run_async("true", cwd="$HOME")).success


# -- hosts files -------------------------------------------------------------------------------------------------------

_SHARED = """\
version: 3
sync_routing: {enabled: true, hosts: [a, b]}
gpu: &gpu
  ssh_user: ubuntu
  gpu: H100
hosts:
  runpod-h100:
    <<: *gpu
    ssh_host: 203.0.113.10
    ssh_port: 30178
    ringrift_path: ~/ringrift/ai-service
    memory_gb: 512
    role: [training, selfplay]
    status: ready
  other:
    ssh_host: ${UNSET_5811}
"""


@pytest.mark.parametrize("name", ["config/distributed_hosts.yaml", "config/cluster_hosts.yaml", "cluster_hosts.yaml"])
def test_a_shared_hosts_file_loads_and_warns_once(
    home: Path,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    (home / "config").mkdir()
    (home / name).write_text(_SHARED)
    for _ in range(2):
        config = ringrift.SSHConfig.from_cluster_node("runpod-h100")
        assert config is not None
        assert (config.host, config.port, config.user) == ("203.0.113.10", 30178, "ubuntu")
        assert config.work_dir == "~/ringrift/ai-service"
    assert list(ringrift.get_cluster_nodes()) == ["runpod-h100"]
    assert ringrift.SSHConfig.from_cluster_node("nope") is None
    with pytest.raises(ControllerError, match="UNSET_5811 is not set"):
        ringrift.SSHConfig.from_cluster_node("other")
    [warned] = [record.getMessage() for record in caplog.records if "mean nothing here" in record.getMessage()]
    assert all(f"{word} (line " in warned for word in ("version", "sync_routing", "gpu", "memory_gb", "role", "status"))
    (home / name).rename(home / "hosts.yaml")
    with pytest.raises(ControllerError, match="1: version: an unknown key"):
        inventory.load()


def test_a_flat_shared_file_may_have_sections(home: Path) -> None:  # noqa: F811
    (home / "cluster_hosts.yaml").write_text(
        "version: 1\nlimits: {cpu: 2}\nzones: [a]\nnode-id: {ssh_host: x, gpu: 1}\nbad: {ssh_port: ssh}\nplain: y\n"
    )
    nodes = ringrift.get_cluster_nodes()
    assert {name: config.host for name, config in nodes.items()} == {"node-id": "x", "plain": "y"}


def test_merge_keys_have_a_limit(tmp_path: Path) -> None:
    levels = "".join(f"a{n}: &a{n}\n  <<: [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    (tmp_path / "cluster_hosts.yaml").write_text(f"a0: &a0 {{user: x}}\n{levels}hosts:\n  z: *a29\n")
    with pytest.raises(ControllerError, match="more than 10000 merge keys"):
        inventory.load(str(tmp_path / "cluster_hosts.yaml"), environment={})


# -- the client --------------------------------------------------------------------------------------------------------


def test_the_default_port_leaves_the_configuration_of_ssh_alone(home: Path) -> None:  # noqa: F811
    config = ringrift.SSHConfig("web01")
    assert (config.port, config.to_host().port) == (22, None)
    assert ringrift.SSHConfig("web01", port=2200).to_host().port == 2200
    assert ringrift.SSHConfig("web01:2200").to_host().port == 2200
    assert ringrift.SSHConfig.from_host_config({"ssh_host": "x", "ringrift_path": "~/r"}).work_dir == "~/r"


async def test_an_unknown_name_is_a_host_name_in_compat(home: Path) -> None:  # noqa: F811
    client = ringrift.get_ssh_client("203.0.113.9")
    assert ringrift.get_ssh_client("203.0.113.9") is client
    assert isinstance(client, ringrift.SSHClient)
    assert client.config == ringrift.SSHConfig("203.0.113.9")
    await ringrift.close_all_clients()
    with pytest.raises(ValueError, match="not configured"):
        client._build_cloudflare_proxy_command()
    client.config.cloudflare_tunnel = "ssh.example.com"
    client.config.cloudflare_service_token_secret = "the-secret"
    assert client._build_cloudflare_proxy_command() == "cloudflared access ssh --hostname ssh.example.com"
    client._record_failure()
    client._record_success()
    assert client.health.success_rate == 0.5


# -- the executor ------------------------------------------------------------------------------------------------------


class HostType(enum.Enum):
    NEXUS = "nexus"
    AWAY = "away"


async def test_the_executor_of_the_documents(
    server: OpenSSHServer,  # noqa: F811
    serve: Callable[..., OpenSSHServer],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cronium")
    executor = homelab.SSHExecutor()
    assert (executor.ssh_username, executor.ssh_key_path) == ("homelabcmd", "/run/secrets/id_homelabcmd")
    target = f"127.0.0.1:{server.port}"
    for machine in (
        SimpleNamespace(id="m1", tailscale_hostname=target, hostname="no-such-host.invalid"),
        SimpleNamespace(id="m2", tailscale_hostname=None, hostname=target),
        SimpleNamespace(id="m3", ip_address=target),
    ):
        with pytest.raises(homelab.ConfigurationError, match="/run/secrets/id_homelabcmd"):
            await executor.execute(machine, "true")
        executor.ssh_username, executor.ssh_key_path = None, str(server.identity)
        assert (await executor.execute(machine, "echo x", timeout=30)).stdout == "x\n"
        assert (await executor.execute(server=machine, command="echo y")).stdout == "y\n"
        executor.ssh_username, executor.ssh_key_path = "homelabcmd", "/run/secrets/id_homelabcmd"
    executor.ssh_username, executor.ssh_key_path = None, str(server.identity)
    named = SimpleNamespace(tailscale_hostname=target, ssh_username="nobody-4711")
    with pytest.raises(homelab.AuthenticationError):
        await executor.execute(named, "true")
    with pytest.raises(ValueError, match="has no tailscale_hostname"):
        await executor.execute(SimpleNamespace(id="m4"), "true")
    with pytest.raises(TypeError, match="a machine, or server="):
        await executor.execute(command="true")

    executor.host_config[HostType.NEXUS] = {"hostname": "127.0.0.1", "ssh_port": server.port}
    assert await executor.execute_command(HostType.NEXUS, "echo out; echo err >&2; exit 3") == ("out\n", "err\n", 3)
    out, err, code = await executor.execute_command(HostType.NEXUS, "echo part; sleep 4719", timeout=2)
    assert (out, code) == ("part\n", -1)
    assert "took too long" in err
    executor.host_config[HostType.AWAY] = {"hostname": "127.0.0.1", "ssh_port": 1}
    out, err, code = await executor.execute_command(HostType.AWAY, "true", timeout=5)
    assert (out, code) == ("", -1)
    assert "Connection refused" in err
    assert "nexus" in executor.connections
    await executor.clear_pool()
    async with asyncio.timeout(30):
        while server.session_pids():
            await asyncio.sleep(0.02)
    assert (await executor.execute_command(HostType.NEXUS, "echo again"))[0] == "again\n"
    await executor.close()


def test_a_pool_can_be_cleared_without_an_event_loop() -> None:
    asyncio.run(_awaited(homelab.SSHExecutor()))
    homelab.SSHExecutor().clear_pool()


async def _awaited(executor: homelab.SSHExecutor) -> None:
    await executor.clear_pool()
