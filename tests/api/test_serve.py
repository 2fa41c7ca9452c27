"""`cronium api` as commands: where it listens, what survives a kill, and that dispatch doesn't pay for it."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_process import Client, Platform
from cronium_controller.platform_store import PlatformStore
from postgresql import PostgreSQL
from runner_process import wait_until
from web_server import WebServer

CLIENT = Path(__file__).with_name("contract_client.mjs")


class SocketProxy:
    """A TCP port in front of a unix socket, for clients that know only ports."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._path)
            for source, sink in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._pump, args=(source, sink)))
                self._threads[-1].start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        source.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


PATIENT = ("--header-timeout", "60")
"""A hundred requests at once are more than are served at once; on a busy machine the last wait for more than 5 s."""


@pytest.fixture(params=["port", "unix socket"])
def endpoint(request: pytest.FixtureRequest, platform: Platform, tmp_path: Path) -> Iterator[str]:
    """A service with one tool, as a client of a port sees it."""
    with WebServer() as web:
        tools = tmp_path / "tools.toml"
        tools.write_text(f'[hook]\ntype = "webhook"\nurl = "{web.url}"\n')
        tools.chmod(0o600)
        if request.param == "port":
            yield platform.serve("--port", "0", "--tools", str(tools), *PATIENT)
        else:
            path = tmp_path / "s"
            platform.serve("--unix", str(path), "--tools", str(tools), *PATIENT)
            proxy = SocketProxy(str(path))
            yield proxy.address
            platform.stop()
            proxy.close()


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed, so its client was not tried")
def test_a_client_that_knows_only_the_contract(platform: Platform, endpoint: str) -> None:
    context = {"eventId": "7", "eventName": "Backup", "eventType": "BASH", "startTime": None, "metadata": {"a": 1}}
    token = platform.token("exec_one", "alice", job_id="j", context=context, input={"n": 1})
    platform.token("exec_other", "bob")
    done = subprocess.run(
        ["node", CLIENT, endpoint, "exec_one", "exec_other"], input=token, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(done.stdout)
    assert seen["health"]["body"]["status"] == "healthy"
    assert seen["metrics"] == 200
    assert seen["input"] == {"status": 200, "body": {"success": True, "data": {"n": 1}}}
    assert seen["context"]["body"]["data"] == context | {"executionId": "exec_one", "jobId": "j", "userId": "alice"}
    assert (seen["missing"]["status"], seen["missing"]["body"]["error"]) == (404, "not_found")
    key = "a/../b %2F ü"
    assert seen["got"]["body"] == {"success": True, "data": {"key": key, "value": {"deep": [1, "two", None]}}}
    for write in ("put", "output", "again", "condition"):
        assert seen[write] == {"status": 200, "body": {"success": True}}
    for tool in ("tool", "toolConfig"):
        assert (seen[tool]["status"], seen[tool]["body"]["success"]) == (200, True)
    assert [seen[name]["status"] for name in ("noTool", "foreign", "invalid")] == [404, 403, 400]
    assert seen["parallel"] == [200] * 100
    assert seen["values"] == list(range(100))
    written = [entry["action"] for entry in platform.audit("exec_one")]
    assert (written.count("output.set"), written.count("variable.set")) == (1, 101)


def test_a_service_that_is_killed_loses_nothing_it_has_answered(platform: Platform) -> None:
    """The runner's way: one write after the other, repeated until it is answered."""
    platform.serve()
    token = platform.token("one", "u")
    answered = 0
    for round_ in range(5):
        died = (OSError, http.client.HTTPException)
        stop = threading.Thread(target=platform.stop, args=(signal.SIGKILL,))
        with Client(platform.address, token, "one") as client, contextlib.suppress(*died):
            while True:
                if stop.ident is None and answered >= 5 * (round_ + 1):
                    stop.start()
                assert client.write("PUT", "variables/x", {"value": answered + 1}, sequence=answered + 1).status == 200
                answered += 1
        stop.join()
        platform.serve()
    assert answered > 5
    with Client(platform.address, token, "one") as client:
        client.write("PUT", "variables/x", {"value": answered + 1}, sequence=answered + 1)
        assert client.get("variables/x").json()["data"]["value"] == answered + 1
    numbers = [entry["sequence"] for entry in platform.audit("one") if entry["action"] == "variable.set"]
    assert numbers == list(range(1, answered + 2)), "each once and in order"


def test_it_serves_from_postgresql(tmp_path: Path, postgresql: PostgreSQL) -> None:
    platform = Platform(tmp_path, postgresql.create())
    try:
        platform.serve()
        platform.api("variables", "set", "--json", "--", "a/b", "-5")
        with platform.client("one") as client:
            assert client.get("variables/a%2Fb").json()["data"]["value"] == -5
            assert client.write("PUT", "variables/%00", {"value": "nul"}, sequence=1).status == 200
            assert client.get("variables/%00").json()["data"]["value"] == "nul"
        assert platform.api("variables", "list", "--user", "default") == "\\u0000\n"
        assert [entry["action"] for entry in platform.audit()][-1] == "variable.set"
        assert platform.stop() == 0
    finally:
        platform.stop()


def test_without_its_database_it_is_unhealthy_and_says_500(tmp_path: Path, postgresql: PostgreSQL) -> None:
    own = PostgreSQL(postgresql.programs)
    platform = Platform(tmp_path, own.create())
    try:
        platform.serve()
        with platform.client("one") as client:
            assert client.get("input").status == 200
            own.stop()
            assert client.get("input").json()["error"] == "internal"
            assert client.get("input").status == 500
            assert client.send("GET", "/health").status == 503
            assert client.token is not None
            assert client.token not in platform.log.read_text()
    finally:
        platform.stop()


def test_a_unix_socket_is_private_and_goes_with_the_service(platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert platform.serve("--unix", str(path)) == f"unix://{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with platform.client("one") as client:
        assert client.get("input").status == 200
    assert "another service listens there" in platform.api("serve", "--unix", str(path), status=125)
    platform.stop(signal.SIGKILL)
    assert path.exists()
    platform.serve("--unix", str(path))
    assert platform.stop() == 0
    assert not path.exists()
    path.write_text("precious")
    assert "there is a file of that name" in platform.api("serve", "--unix", str(path), status=125)
    assert path.read_text() == "precious"
    assert "more than 107 bytes" in platform.api("serve", "--unix", f"/tmp/{'x' * 110}", status=125)


def test_a_port_that_is_taken(platform: Platform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = platform.api("serve", "--port", str(taken.getsockname()[1]), status=125)
    assert "Address already in use; choose another place" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to(platform: Platform, number: int) -> None:
    platform.serve()
    with platform.client("one") as idle:
        assert idle.get("input").status == 200
        assert platform.stop(number) == 0


def test_a_service_drops_what_is_long_over(platform: Platform) -> None:
    platform.token("over")
    store = PlatformStore(str(platform.folder / "state" / "live.db"))
    store.revoke("over", 1.0, actor="test")
    platform.serve()
    wait_until(lambda: store.find("over") is None, "it to be dropped")
    store.close()


def test_a_key_that_others_can_read_is_refused(platform: Platform) -> None:
    platform.token("one")
    platform.key_file.chmod(0o644)
    assert "other users can read it" in platform.api("serve", "--port", "0", status=125)
    assert "other users can read it" in platform.api("token", "one", "--print", status=125)


def test_tokens_are_shown_only_when_asked_for(platform: Platform, tmp_path: Path) -> None:
    platform.api("token", "one", status=125)
    path = tmp_path / "token"
    assert platform.api("token", "one", "--output", str(path), "--input", "[1.10]", "--event", '{"name": "n"}') == ""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    platform.serve()
    with Client(platform.address, path.read_text().strip(), "one") as client:
        assert client.get("input").body == b'{"success":true,"data":[1.10]}'
        assert client.get("context").json()["data"]["eventName"] == "n"
        with Client(platform.address, platform.api("token", "one", "--print").strip(), "one") as second:
            assert second.get("input").status == 200
        platform.api("revoke", "one")
        assert client.get("input").status == 401
    assert "File exists" in platform.api("token", "one", "--output", str(path), status=125)
    assert "is not an execution id" in platform.api("token", "../one", "--print", status=125)
    assert "--event: a JSON object is needed" in platform.api("token", "one", "--print", "--event", "[]", status=125)


def test_an_operator_reads_and_writes_variables(platform: Platform) -> None:
    platform.api("variables", "set", "plain", "1.10")
    platform.api("variables", "set", "number", "1.10", "--json")
    platform.api("variables", "set", "piped", given="secret of several\nlines\n")
    platform.api("variables", "set", "plain", "the user's", "--user", "u")
    assert platform.api("variables", "get", "plain") == "1.10\n"
    assert platform.api("variables", "get", "plain", "--json") == '"1.10"\n'
    assert platform.api("variables", "get", "number") == "1.10\n"
    assert platform.api("variables", "get", "number", "--json") == "1.10\n"
    assert platform.api("variables", "get", "piped") == "secret of several\nlines\n"
    assert platform.api("variables", "get", "plain", "--user", "u") == "the user's\n"
    assert platform.api("variables", "list").split() == ["number", "piped", "plain"]
    platform.api("variables", "delete", "plain", "--user", "u")
    assert platform.api("variables", "get", "plain") == "1.10\n"
    assert "user 'u' has no variable 'plain'" in platform.api("variables", "delete", "plain", "--user", "u", status=125)
    platform.api("variables", "delete", "piped")
    assert "there is no global variable 'piped'" in platform.api("variables", "delete", "piped", status=125)
    assert platform.audit()[-1]["action"] == "variable.delete"
    assert "user 'u' has no variable 'number'" in platform.api("variables", "get", "number", "--user", "u", status=125)
    assert "VALUE is not JSON" in platform.api("variables", "set", "x", "{", "--json", status=125)
    shown = platform.api("audit")
    assert shown.count("variable.set") == 4
    assert socket.gethostname() in shown
    assert "secret of" not in shown


def test_a_password_in_the_words_is_refused(platform: Platform) -> None:
    said = platform.api("variables", "list", "--database", "postgresql://u:hunter2@h/x", status=125)
    assert "CRONIUM_DATABASE" in said
    assert "hunter2" not in said


def test_dispatch_and_help_load_nothing_of_it() -> None:
    heavy = {"starlette", "uvicorn", "jwt", "httpx", "prometheus_client", "anyio", "h11"}
    for code in ("import cronium_controller.dispatch", "import cronium_controller.cli"):
        check = f"{code}, sys; loaded = {heavy!r} & set(sys.modules); assert not loaded, loaded"
        subprocess.run([sys.executable, "-c", check], check=True, env=dict(os.environ))
