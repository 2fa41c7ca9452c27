"""Every method, keyword, attribute and error that the documents of an SSH client and an executor name, a row each.

`python tests/call_forms.py` prints the table of docs/compat.md. Each row has an expression that
`controller/test_call_forms.py` evaluates against a real server; `differs` says why a row is not as documented.
"""

from typing import Final, NamedTuple


class Form(NamedTuple):
    """A call form: the document that names it, how it is written, what is checked, why it differs if it does."""

    seed: str
    kind: str
    form: str
    check: str
    differs: str = ""


def _rows(seed: str, *rows: tuple[str, ...]) -> list[Form]:
    return [Form(seed, *row) for row in rows]


_IN_ENVIRONMENT: Final = "the service token is in cloudflared's environment: an argument is seen by every account"
_POOL: Final = "connections are in one pool for the process; `executor.connections` has a client for each machine"

FORMS: Final = [
    *_rows(
        "client",
        ("attribute", "SSHConfig.cloudflare_tunnel", "config.cloudflare_tunnel == 'ssh.example.com'"),
        ("attribute", "SSHConfig.cloudflare_service_token_id", "config.cloudflare_service_token_id == 'token'"),
        (
            "attribute",
            "SSHConfig.cloudflare_service_token_secret",
            "config.cloudflare_service_token_secret == 'secret'",
        ),
        ("attribute", "SSHConfig.use_cloudflare", "config.use_cloudflare is True and not plain.use_cloudflare"),
        ("method", "SSHConfig.from_host_config(host_config)", "SSHConfig.from_host_config(host_config).host == 'x'"),
        ("method", "SSHClient(config)", "isinstance(SSHClient(config), SSHClient)"),
        (
            "method",
            "client._build_cloudflare_proxy_command()",
            "SSHClient(config)._build_cloudflare_proxy_command().endswith('access ssh --hostname ssh.example.com')",
            _IN_ENVIRONMENT,
        ),
        ("method", "Tailscale → Direct → Cloudflare", "transports(config) == ['tailscale', 'direct', 'cloudflare']"),
        ("attribute", "client.health", "isinstance(client.health, SSHHealth)"),
        ("attribute", "SSHHealth.last_success", "client.health.last_success > 0"),
        ("attribute", "SSHHealth.last_failure", "SSHHealth().last_failure is None"),
        ("attribute", "SSHHealth.consecutive_failures", "SSHHealth().consecutive_failures == 0"),
        (
            "attribute",
            "SSHHealth.consecutive_successes",
            "SSHHealth(consecutive_successes=2).consecutive_successes == 2",
        ),
        ("attribute", "SSHHealth.total_successes", "client.health.total_successes > 0"),
        ("attribute", "SSHHealth.total_failures", "SSHHealth().total_failures == 0"),
        (
            "attribute",
            "SSHHealth.is_healthy (False from 3 failures in a row on)",
            "SSHHealth(consecutive_failures=2).is_healthy and not SSHHealth(consecutive_failures=3).is_healthy",
        ),
        ("attribute", "SSHHealth.success_rate", "SSHHealth().success_rate == 0.0"),
        ("method", "client._record_success()", "counted(client, '_record_success').total_successes"),
        ("method", "client._record_failure()", "counted(client, '_record_failure').total_failures"),
        (
            "method",
            "client.run_background(command, log_file, cwd, env)",
            "int((await client.run_background('sleep 0', '~/log', '~', {'A': 'b'})).stdout.strip()) > 1",
        ),
        ("method", "client.get_process_memory(pid)", "(await client.get_process_memory(pid))[0] > 0"),
        (
            "method",
            "client.get_process_memory(pid) of no process",
            "await client.get_process_memory(2**22 + 1) is None",
        ),
        ("method", "get_ssh_client(name)", "get_ssh_client('203.0.113.1').config.host == '203.0.113.1'"),
        ("method", "client.run_async(command)", "(await client.run_async('echo x')).stdout == 'x\\n'"),
        (
            "method",
            "client.run_async_with_retry(command)",
            "(await client.run_async_with_retry('true')).success",
        ),
        ("attribute", "SSHConfig: 16 fields", "len(dataclasses.fields(SSHConfig)) == 16"),
        (
            "attribute",
            "SSHHealth: 6 fields",
            "len(dataclasses.fields(SSHHealth)) == 6",
        ),
        (
            "method",
            "connection pooling by ControlMaster",
            "client.config.use_control_master",
            "one pool in the process; no ssh program and no socket file",
        ),
        ("method", "synchronous execution", "await sync(client.run, 'echo x')"),
        ("method", "SCP file transfers", "(await sync(client.scp_to, '/etc/hostname', '~/f')).success"),
        (
            "method",
            "all exports",
            "all(hasattr(ringrift, name) for name in ('SSHClient', 'SSHConfig', 'SSHHealth', 'SSHResult'))",
        ),
    ),
    *_rows(
        "reference",
        ("attribute", "result.stdout", "result.stdout == 'out\\n'"),
        ("attribute", "result.stderr", "result.stderr == 'err\\n'"),
        ("attribute", "result.success", "result.success is True and failed.success is False"),
        ("attribute", "result.returncode", "result.returncode == 0 and failed.returncode == 3"),
        ("attribute", "result.elapsed_ms", "result.elapsed_ms > 0"),
        ("attribute", "result.transport_used", "result.transport_used == 'direct'"),
        ("attribute", "result.timed_out", "result.timed_out is False and slow.timed_out is True"),
        ("attribute", "result.error", "result.error is None and 'refused' in away.error"),
        (
            "error",
            "a host that is away is a result",
            "not away and away.returncode == 255 and 'Connection refused' in away.stderr",
        ),
        ("attribute", "client.health.is_healthy", "client.health.is_healthy in (True, False)"),
        ("attribute", "f'{client.health.success_rate:.1%}'", "f'{client.health.success_rate:.1%}'.endswith('%')"),
        ("attribute", "client.health.consecutive_failures", "client.health.consecutive_failures >= 0"),
        (
            "keyword",
            "run_background(log_file=)",
            "(await client.run_background('true', log_file='~/logs/x.log')).success",
        ),
        ("method", "get_ssh_client(node) from cluster_hosts.yaml", "get_ssh_client('node-id').config.port == port"),
        ("keyword", "SSHConfig(host=)", "SSHConfig(host='h').host == 'h'"),
        ("keyword", "SSHConfig(port=)", "SSHConfig('h', port=2222).to_host().port == 2222"),
        ("keyword", "SSHConfig(port=22)", "SSHConfig('h').port == 22 and SSHConfig('h').to_host().port is None"),
        ("keyword", "SSHConfig(user=)", "SSHConfig('h', user='ubuntu').to_host().user == 'ubuntu'"),
        ("keyword", "SSHConfig(key_path=)", "SSHConfig('h', key_path='~/k').to_host().identity == '~/k'"),
        (
            "keyword",
            "SSHConfig(tailscale_ip=)",
            "SSHConfig('h', tailscale_ip='100.64.0.1').to_host().tailscale_ip == '100.64.0.1'",
        ),
        ("keyword", "SSHConfig(cloudflare_tunnel=)", "SSHConfig('h', cloudflare_tunnel='t').use_cloudflare"),
        (
            "keyword",
            "SSHConfig(cloudflare_service_token_id=)",
            "SSHConfig('h', cloudflare_service_token_id='i').cloudflare_service_token_id == 'i'",
        ),
        (
            "keyword",
            "SSHConfig(cloudflare_service_token_secret=)",
            "'s3cret' not in repr(SSHConfig('h', cloudflare_service_token_secret='s3cret'))",
        ),
        ("attribute", "SSHConfig.connect_timeout", "SSHConfig('h').connect_timeout == 10"),
        ("attribute", "SSHConfig.command_timeout", "SSHConfig('h').command_timeout == 60"),
        ("attribute", "SSHConfig.use_control_master", "SSHConfig('h').use_control_master is True"),
        ("attribute", "SSHConfig.control_persist", "SSHConfig('h').control_persist == 300"),
        ("attribute", "SSHConfig.work_dir", "(await in_folder()).stdout == '/tmp\\n'"),
        ("attribute", "SSHConfig.venv_activate", "SSHConfig('h', venv_activate='~/v').venv_activate == '~/v'"),
        ("method", "get_cluster_nodes()", "'node-id' in ringrift.get_cluster_nodes()"),
        (
            "method",
            "SSHConfig.from_host_config(nodes[name])",
            "SSHConfig.from_host_config(ringrift.get_cluster_nodes()['node-id']).port == port",
        ),
        (
            "keyword",
            "run_async_with_retry(max_retries=)",
            "(await client.run_async_with_retry('false', max_retries=1)).returncode == 1",
        ),
        (
            "keyword",
            "run_async_with_retry(retry_delay=)",
            "not await client.run_async_with_retry('false', max_retries=2, retry_delay=0.01)",
        ),
        ("keyword", "run_async(timeout=)", "slow.stdout == 'part\\n' and 'timed out' in slow.stderr"),
        ("keyword", "run_async(cwd=)", "(await client.run_async('pwd', cwd='/')).stdout == '/\\n'"),
        ("keyword", "run_async(env=)", "(await client.run_async('echo $A', env={'A': '0,1'})).stdout == '0,1\\n'"),
        ("method", "client.scp_to(local, remote)", "(await sync(client.scp_to, '/etc/hostname', '~/g')).success"),
        ("method", "client.scp_from(remote, local)", "(await sync(client.scp_from, '/etc/hostname', 'g')).success"),
        (
            "method",
            "client.check_connectivity()",
            "await client.check_connectivity() == (True, 'Connected via direct')",
        ),
        (
            "attribute",
            "a mapping node with ${VARIABLE}",
            "get_ssh_client('internal-server').config.cloudflare_service_token_id == 'the-id'",
        ),
        ("attribute", "node: ssh_host, ssh_user", "get_ssh_client('internal-server').config.user == 'ubuntu'"),
        ("attribute", "config.connect_timeout = 30", "settable(config, 'connect_timeout', 30)"),
        ("attribute", "config.command_timeout = 300", "settable(config, 'command_timeout', 300)"),
        (
            "attribute",
            "client.health.last_failure",
            "client.health.last_failure is None or client.health.last_failure > 0",
        ),
        (
            "method",
            "max(healthy, key=lambda c: c.health.success_rate)",
            "max([client], key=lambda c: c.health.success_rate) is client",
        ),
    ),
    *_rows(
        "executor",
        ("method", "SSHExecutor()", "isinstance(homelab.SSHExecutor(), SSHExecutor)"),
        ("attribute", "executor.connections", "target in executor.connections", _POOL),
        ("attribute", "executor.ssh_username", "homelab.SSHExecutor().ssh_username == 'homelabcmd'"),
        ("attribute", "executor.ssh_key_path", "homelab.SSHExecutor().ssh_key_path == '/run/secrets/id_homelabcmd'"),
        (
            "method",
            "executor.execute(machine, command, timeout)",
            "(await executor.execute(machine, 'echo x', 30)).stdout == 'x\\n'",
        ),
        (
            "keyword",
            "execute(machine=, command=, timeout=)",
            "(await executor.execute(machine=machine, command='echo x', timeout=30)).exit_code == 0",
        ),
        ("keyword", "execute(server=)", "(await executor.execute(server=machine, command='echo x')).exit_code == 0"),
        ("attribute", "machine.id", "machine.id == 'm1' and executor.connections"),
        ("attribute", "machine.tailscale_hostname", "(await executor.execute(machine, 'true')).exit_code == 0"),
        ("attribute", "CommandResult.exit_code", "(await executor.execute(machine, 'exit 4')).exit_code == 4"),
        ("attribute", "CommandResult.stdout", "(await executor.execute(machine, 'echo o')).stdout == 'o\\n'"),
        ("attribute", "CommandResult.stderr", "(await executor.execute(machine, 'echo e >&2')).stderr == 'e\\n'"),
        ("attribute", "CommandResult.duration_ms", "(await executor.execute(machine, 'true')).duration_ms >= 0"),
        (
            "keyword",
            "CommandResult(exit_code=, stdout=, stderr=, duration_ms=)",
            "homelab.CommandResult(exit_code=0, stdout='', stderr='', duration_ms=1).success",
        ),
        ("attribute", "timeout of 30 s", "COMMAND_SECONDS == 30"),
        ("attribute", "pool of 5 minutes", "IDLE_SECONDS == 300"),
        ("attribute", "connect_timeout of 10 s", "SSHConfig('h').connect_timeout == 10"),
        (
            "keyword",
            "known_hosts=None",
            "not homelab.SSHExecutor()._access",
            "host keys are always checked; `access=Access(host_keys=HostKeyPolicy.OFF)` does not, and warns",
        ),
        (
            "method",
            "executor._get_connection(machine)",
            "not hasattr(executor, '_get_connection')",
            "private; a connection is lent for one command, so that a dead one is noticed and replaced",
        ),
        (
            "error",
            "ConnectionError after three attempts",
            "await raised(executor.execute(gone, 'true', 5)) is homelab.ConnectionError",
        ),
        ("error", "ConnectionError is the builtin", "issubclass(homelab.ConnectionError, builtins.ConnectionError)"),
        (
            "error",
            "ConnectionError: invalid hostname in the message",
            "'no-such-host.invalid' in await said(executor.execute('no-such-host.invalid', 'true', 5))",
        ),
        (
            "error",
            "AuthenticationError",
            "await raised(executor.execute(stranger, 'true')) is homelab.AuthenticationError",
        ),
        (
            "error",
            "ConfigurationError with the key's path",
            "'/nope/key' in await said(homelab.SSHExecutor(key_path='/nope/key').execute(machine, 'true'))",
        ),
        (
            "error",
            "ValueError: no tailscale_hostname",
            "await raised(cronium_controller.SSHExecutor().execute(nameless, 'true')) is ValueError",
        ),
        (
            "error",
            "ValueError: Command cannot be empty",
            "'Command cannot be empty' in await said(executor.execute(machine, ' '))",
        ),
        (
            "error",
            "timeout error with partial output",
            "(await error_of(executor.execute(machine, 'echo part; sleep 9', 2))).stdout == 'part\\n'",
        ),
        ("error", "timeout is a TimeoutError", "issubclass(homelab.CommandTimeoutError, TimeoutError)"),
        ("error", "a dropped connection is tried once more", "executor._retry_on_drop"),
        ("attribute", "backoff of 1, 2, 4 s", "transport.PAUSES == (1.0, 2.0, 4.0)"),
        ("attribute", "a log record for each execution", "'command_executed' in events"),
    ),
    *_rows(
        "pooling fix",
        ("attribute", "executor._connections", "not hasattr(executor, '_connections')", _POOL),
        (
            "method",
            "executor.execute_command(host, command)",
            "await executor.execute_command(machine, 'echo x') == ('x\\n', '', 0)",
        ),
        (
            "keyword",
            "execute_command(timeout=)",
            "(await executor.execute_command(machine, 'sleep 9', timeout=1))[2] == -1",
        ),
        (
            "attribute",
            "HostType member, host.value",
            "(await executor.execute_command(HostType.NEXUS, 'echo x'))[0] == 'x\\n'",
        ),
        ("attribute", "executor.host_config[host]", "HostType.NEXUS in executor.host_config"),
        ("method", "executor.close_all_connections()", "await executor.close_all_connections() is None"),
        ("method", "executor.clear_pool()", "await executor.clear_pool() is None"),
        ("method", "executor.close()", "await executor.close() is None"),
        (
            "attribute",
            "self.logger.bind(component=)",
            "not hasattr(executor, 'logger')",
            "the standard library's logging, below `cronium`",
        ),
        ("attribute", "event ssh_connection_established", "'ssh_connection_established' in events"),
        ("attribute", "event reusing_ssh_connection", "'reusing_ssh_connection' in events"),
        ("attribute", "event ssh_connection_closed", "'ssh_connection_closed' in events"),
        (
            "attribute",
            "event command_timeout command=…",
            "any(line.startswith('command_timeout ') and 'command=' in line for line in lines)",
        ),
        (
            "attribute",
            "event command_batch_completed, duration_seconds",
            "any(line.startswith('command_batch_completed ') and 'duration_seconds=' in line for line in lines)",
        ),
        ("attribute", "one connection for many commands", "established == 1"),
    ),
]


def table() -> str:
    """The table as Markdown, and how many rows are as documented."""
    rows = ["| document | kind | form | as documented |", "|---|---|---|---|"]
    for row in FORMS:
        form = row.form.replace("|", "\\|")
        rows.append(f"| {row.seed} | {row.kind} | `{form}` | {f'no: {row.differs}' if row.differs else 'yes'} |")
    good = sum(not row.differs for row in FORMS)
    return "\n".join([*rows, "", f"{good} of {len(FORMS)} as documented ({good / len(FORMS):.0%}).", ""])


if __name__ == "__main__":
    print(table(), end="")
