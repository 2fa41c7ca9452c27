"""The Python API as a program meets it: names, output, notebooks, what the package shows, what is in the log."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import cronium_controller
from cronium_controller import BlockingController, Job, Runners, load, logs
from cronium_controller.errors import ControllerError
from cronium_controller.names import Names
from cronium_controller.ssh_library import asyncssh
from cronium_runner.wire.results import Outcome
from remote_host import RemoteHost

SCRIPT = "printf 'out\\377\\n'; echo err >&2"


@pytest.fixture
def named(remote: RemoteHost, monkeypatch: pytest.MonkeyPatch) -> RemoteHost:
    """A host that a hosts file in the current directory calls web01."""
    (remote.home / "hosts.yaml").write_text(
        f"hosts:\n  web01: {{host: {remote.server.target}, key_path: {remote.server.identity}, groups: [web]}}\n"
        "  bad: {port: ssh, groups: [all-of-them]}\n"
    )
    monkeypatch.chdir(remote.home)
    monkeypatch.delenv("CRONIUM_HOSTS", raising=False)
    return remote


async def test_names_of_the_hosts_file_and_output_on_demand(named: RemoteHost) -> None:
    job = Job(load(named.script(SCRIPT)))
    async with named.controller() as controller:
        execution = await controller.submit("web01", job, follow=False)
        result = await execution.result()
        assert (result.state, result.host, result.stdout.size) == (Outcome.SUCCEEDED, "web01", 5)
        assert await result.stdout.bytes() == b"out\xff\n"  # type: ignore[attr-defined]
        assert await result.stdout.bytes(2) == b"ou"  # type: ignore[attr-defined]
        assert await result.stderr.text() == "err\n"  # type: ignore[attr-defined]
        assert (await controller.wait(execution.id, "web01")).exit_code == 0
        async for each in controller.run_many(["web"], job):
            assert (each.host, await each.stdout.text()) == ("web01", "out�\n")  # type: ignore[attr-defined]
        with pytest.raises(ControllerError, match="did you mean 'web01'"):
            controller.run_many(["web01,wbe01"], job)
        with pytest.raises(ControllerError, match="port: 'ssh' must be a port"):
            await controller.submit("bad", job)
        with pytest.raises(ControllerError, match="'all' stands for 2 hosts; name one"):
            await controller.submit("all", job)


async def test_the_blocking_controller_works_inside_a_running_loop(named: RemoteHost) -> None:
    """As in a notebook: this test's own loop is running, and stands still meanwhile."""
    assert asyncio.get_running_loop().is_running()
    store, access = named.store(), named.access()
    runners = Runners(str(named.binary), root=str(named.root))
    with BlockingController(store=store, access=access, runners=runners) as controller:
        job = Job(load(named.script(SCRIPT)))
        result = controller.run("web01", job)
        assert (result.state, result.output_text) == (Outcome.SUCCEEDED, "out�\n")
        assert result.stderr.bytes() == b"err\n"  # type: ignore[attr-defined]
        assert [each.output_text for each in controller.run_many(["web01"], job)] == ["out�\n"]
        assert controller.wait(result.execution_id, "web01").exit_code == 0


def test_names_that_no_hosts_file_has_are_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("CRONIUM_HOSTS", raising=False)
    monkeypatch.chdir(tmp_path)
    names = Names()
    for text in ("web01", "deploy@web01", "web01:2222", "[::1]:22", "::1", "local:"):
        assert str(names.one(text)) == text.rpartition("@")[2].removesuffix(":") or text.startswith("[")
    with pytest.raises(ControllerError, match="there is no hosts file"):
        names.one("web[01-03]")
    (tmp_path / "hosts.yaml").write_text("web01: 10.0.0.1\n")
    assert names.one("web01").address == "10.0.0.1"
    (tmp_path / "hosts.yaml").write_text("web01: 10.0.0.22\n")
    assert names.one("web01").address == "10.0.0.22", "a changed file is read again"
    (tmp_path / "hosts.yaml").write_text("web01: 10.0.0.3\nbad: {user: '${UNSET_6811}'}\n")
    assert names.one("web01").address == "10.0.0.3", "another row that is wrong refuses no host"
    for text in ("bad", "all", "web01,bad"):
        with pytest.raises(ControllerError, match="UNSET_6811 is not set"):
            names.one(text)


def test_the_package_shows_what_it_has() -> None:
    shown = dir(cronium_controller)
    assert set(cronium_controller.__all__) <= set(shown)
    for name in ("load", "Access", "Host", "parse_host", "Attached", "Result", "Outcome", "__version__"):
        assert name in shown
        assert getattr(cronium_controller, name) is not None
    program = "import cronium_controller, sys; cronium_controller.__version__; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_line_of_the_log_tells_host_and_duration(caplog: pytest.LogCaptureFixture) -> None:
    log = logs.logger("cronium.test_of_lines")
    assert logs.logger("cronium.test_of_lines") is log
    caplog.set_level(logging.INFO, "cronium")
    log.info("command_executed", extra={"host": "web01", "duration": 0.123, "command": "echo a\n\x1b[2Jb", "of": ""})
    log.info("a sentence with %s", "a value")
    log.info("100% alone")
    lines = [logging.Formatter(logging.BASIC_FORMAT).format(record) for record in caplog.records]
    assert lines == [
        "INFO:cronium.test_of_lines:command_executed host=web01 duration=0.123 command='echo a\\\\n\\\\x1b[2Jb' of=''",
        "INFO:cronium.test_of_lines:a sentence with a value",
        "INFO:cronium.test_of_lines:100% alone",
    ]
    record = caplog.records[0]
    assert (record.event, record.host) == ("command_executed", "web01")  # type: ignore[attr-defined]
    assert logging.getLogger("asyncssh").level == logging.WARNING
    assert asyncssh is not None
