"""Each row of the table of call forms, evaluated against a real server; and the table in the documentation."""

import ast
import asyncio
import builtins
import dataclasses
import enum
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

import cronium_controller
from call_forms import FORMS, table
from controller.test_client import home, serve, server  # noqa: F401 - fixtures
from cronium_controller import transport
from cronium_controller.compat import homelab, ringrift
from cronium_controller.executor import COMMAND_SECONDS, IDLE_SECONDS
from cronium_controller.transport import routes
from openssh import OpenSSHServer
from runner_process import ROOT

NAMES = """
SSHConfig SSHClient SSHHealth SSHResult HostConfig get_ssh_client get_cluster_nodes from_host_config use_cloudflare
cloudflare_tunnel cloudflare_service_token_id cloudflare_service_token_secret host port user key_path tailscale_ip
connect_timeout command_timeout use_control_master control_persist work_dir venv_activate last_success last_failure
consecutive_failures consecutive_successes total_successes total_failures is_healthy success_rate run_async
run_async_with_retry max_retries retry_delay timeout cwd env run_background log_file get_process_memory
check_connectivity scp_to scp_from stdout stderr success returncode elapsed_ms transport_used timed_out error
_build_cloudflare_proxy_command _record_success _record_failure ssh_host ssh_user SSHExecutor execute connections
ssh_username ssh_key_path _get_connection machine tailscale_hostname id CommandResult exit_code duration_ms known_hosts
ConnectionError AuthenticationError ConfigurationError ValueError execute_command _connections host_config value
close_all_connections logger component ssh_connection_established reusing_ssh_connection ssh_connection_closed
command_timeout command_batch_completed duration_seconds
""".split()  # noqa: SIM905 - a column of names
"""All that the four documents name."""


def test_the_table_leaves_no_name_out() -> None:
    forms = " ".join(form.form for form in FORMS) + " HostConfig SSHResult"
    assert [name for name in NAMES if name not in forms.replace("host_config", "host_config HostConfig")] == []
    assert len({(form.seed, form.form) for form in FORMS}) == len(FORMS)
    assert sum(not form.differs for form in FORMS) >= 0.9 * len(FORMS)


def test_the_documentation_shows_the_table() -> None:
    page = (ROOT / "docs/compat.md").read_text()
    assert table().strip() in page, "scripts/call-forms prints it"


class HostType(enum.Enum):
    NEXUS = "nexus"


async def test_every_call_form_does_what_its_row_says(
    server: OpenSSHServer,  # noqa: F811
    home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cronium")
    monkeypatch.setenv("CF_TOKEN_ID", "the-id")
    (home / "cluster_hosts.yaml").write_text(
        f"node-id: {{ssh_host: 127.0.0.1, ssh_port: {server.port}, ssh_key: {server.identity}, gpu: 8}}\n"
        "internal-server: {ssh_host: internal.corp.example.com, ssh_user: ubuntu,\n"
        "  cloudflare_tunnel: ssh.example.com, cloudflare_service_token_id: '${CF_TOKEN_ID}'}\n"
    )
    place: dict[str, Any] = {"port": server.port, "key_path": str(server.identity)}
    target = f"127.0.0.1:{server.port}"
    client = ringrift.get_ssh_client("node-id")
    executor = homelab.SSHExecutor(username=None, key_path=str(server.identity))  # type: ignore[arg-type]
    executor.host_config[HostType.NEXUS] = {"hostname": "127.0.0.1", "ssh_port": server.port}
    machine = SimpleNamespace(id="m1", tailscale_hostname=target)
    result = await client.run_async("echo out; echo err >&2")
    await executor.execute(machine, "true")
    established = sum(record.getMessage().startswith("ssh_connection_established ") for record in caplog.records)
    failed = await client.run_async("exit 3")
    slow = await client.run_async("echo part; sleep 9", timeout=2)
    async with ringrift.SSHClient(ringrift.SSHConfig("127.0.0.1", port=1, connect_timeout=2)) as absent:
        away = await absent.run_async("true", timeout=10)
    await executor.execute_commands(machine, ["true"])
    async with cronium_controller.SSHExecutor(key_path=str(server.identity), idle_seconds=7) as other:
        await other.execute(ringrift.SSHConfig("127.0.0.1", **place, use_control_master=False), "true")

    async def error_of(call: Awaitable[Any]) -> BaseException:
        try:
            await call
        except Exception as error:
            return error
        raise AssertionError("nothing was raised")

    async def raised(call: Awaitable[Any]) -> type[BaseException]:
        return type(await error_of(call))

    async def said(call: Awaitable[Any]) -> str:
        return str(await error_of(call))

    async def in_folder() -> cronium_controller.SSHResult:
        async with ringrift.SSHClient(ringrift.SSHConfig("127.0.0.1", **place, work_dir="/tmp")) as there:
            return await there.run_async("pwd")

    def counted(of: Any, call: str) -> cronium_controller.SSHHealth:
        getattr(of, call)()
        return of.health  # type: ignore[no-any-return]

    def settable(of: Any, name: str, value: float) -> bool:
        setattr(of, name, value)
        return bool(getattr(of, name) == value)

    async def sync(call: Callable[..., Any], *words: str) -> Any:
        return await asyncio.to_thread(call, *words)

    config = ringrift.SSHConfig(
        host="internal.example.com",
        cloudflare_tunnel="ssh.example.com",
        cloudflare_service_token_id="token",
        cloudflare_service_token_secret="secret",
        tailscale_ip="100.64.0.1",
    )
    known: dict[str, Any] = {
        **{name: getattr(ringrift, name) for name in ("SSHClient", "SSHConfig", "SSHHealth", "get_ssh_client")},
        "COMMAND_SECONDS": COMMAND_SECONDS,
        "IDLE_SECONDS": IDLE_SECONDS,
        "HostType": HostType,
        "SSHExecutor": cronium_controller.SSHExecutor,
        "away": away,
        "builtins": builtins,
        "client": client,
        "config": config,
        "counted": counted,
        "cronium_controller": cronium_controller,
        "dataclasses": dataclasses,
        "error_of": error_of,
        "established": established,
        "executor": executor,
        "failed": failed,
        "gone": "127.0.0.1:1",
        "homelab": homelab,
        "host_config": SimpleNamespace(ssh_host="x", gpu=8),
        "in_folder": in_folder,
        "machine": machine,
        "nameless": SimpleNamespace(id="m2", tailscale_hostname=None),
        "pid": os.getpid(),
        "plain": ringrift.SSHConfig("h"),
        "port": server.port,
        "raised": raised,
        "result": result,
        "ringrift": ringrift,
        "said": said,
        "settable": settable,
        "slow": slow,
        "stranger": SimpleNamespace(id="m3", tailscale_hostname=target, ssh_username="nobody-4711"),
        "sync": sync,
        "target": target,
        "transport": transport,
        "transports": lambda of: [way.transport for way in routes(of.to_host())],
    }
    wrong = []
    try:
        for form in FORMS:
            known["lines"] = [record.getMessage() for record in caplog.records]
            known["events"] = {line.split(" ")[0] for line in known["lines"]}
            code = compile(f"found = ({form.check})", form.form, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = FunctionType(code, known)()
            try:
                if running is not None:
                    await running
            except Exception as error:
                wrong.append((form.form, repr(error)))
                continue
            if not known["found"]:
                wrong.append((form.form, "is not so"))
    finally:
        await ringrift.close_all_clients()
        await executor.close()
    assert wrong == [], wrong
