"""The real `cronium api` as processes, and a client that sends a path exactly as it was given."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import preloaded
from cronium_controller.api.issue import issue
from cronium_controller.api.tokens import Tokens, load_key
from cronium_controller.platform_store import LiveExecution, PlatformStore
from preloaded import Preloaded
from runner_process import PATIENCE, wait_until


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


class Client:
    """One keep-alive connection, with a token for one execution. `address` is http://… or unix://…"""

    def __init__(self, address: str, token: str | None = None, execution: str = "") -> None:
        self.token = token
        self.execution = execution
        if address.startswith("unix://"):
            self._connection: http.client.HTTPConnection = _UnixConnection(address.removeprefix("unix://"))
        else:
            self._connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Any request; the path goes out as it is."""
        sent = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        sent |= headers or {}
        content = body.encode() if isinstance(body, str) else body
        self._connection.request(method, path, content, sent)
        answer = self._connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def get(self, what: str) -> Answer:
        """A GET below the execution."""
        return self.send("GET", f"/executions/{self.execution}/{what}")

    def write(self, method: str, what: str, body: Any, sequence: int | None = None) -> Answer:
        """A write below the execution; `body` is JSON's text, or a value of which it is made."""
        key = {} if sequence is None else {"Idempotency-Key": f"{self.execution}/{sequence}"}
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        return self.send(method, f"/executions/{self.execution}/{what}", content, key)


class Platform:
    """A state folder and a database of its own; commands on them, and a server that is started when asked for."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        self.folder = folder
        self.log = folder / "serve.log"
        self.key_file = folder / "state" / "api.key"
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
        self.environment = kept | {"HOME": str(folder), "CRONIUM_CONTROLLER_STATE": str(folder / "state")}
        if database is not None:
            self.environment["CRONIUM_DATABASE"] = database

    def api(self, *words: str, given: str | None = None, status: int = 0) -> str:
        """`cronium api …`; its standard output, or standard error when a failure was expected."""
        done = preloaded.run("cronium", ["api", *words], env=self.environment, input=given or "", text=True, timeout=60)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, done.stderr
        told: str = done.stdout if status == 0 else done.stderr
        return told

    def serve(self, *words: str) -> str:
        """Starts the server and gives its address."""
        with open(self.log, "ab") as log:
            begin = log.tell()
            served = ["api", "serve", "-v", *(words or ("--port", "0"))]
            options = {"env": self.environment, "stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.process = Preloaded("cronium", served, **options)

        def started() -> "re.Match[str] | None":
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            return re.search(r"runtime API on (\S+),", self.log.read_bytes()[begin:].decode())

        self.address = wait_until(started, "the runtime API")[1]
        return self.address

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """Ends the server; its exit status."""
        if self.process is None:
            return None
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self.process = None
        return status

    def token(self, execution: str, user: str = "default", **more: Any) -> str:
        """A token; as `cronium api token` makes it, without the half second that a process takes."""
        store = PlatformStore(self.environment.get("CRONIUM_DATABASE") or str(self.folder / "state" / "live.db"))
        try:
            known = LiveExecution(execution, user, **more)
            return issue(store, Tokens(load_key(self.key_file)), known, timeout=60, actor="test").token
        finally:
            store.close()

    def client(self, execution: str = "one", user: str = "default", **more: Any) -> Client:
        """A client with a token for the execution."""
        return Client(self.address, self.token(execution, user, **more), execution)

    def audit(self, execution: str | None = None) -> list[dict[str, Any]]:
        """The audit log."""
        lines = self.api("audit", "-n", "100000", "--json", *([execution] if execution else []))
        return [json.loads(line) for line in lines.splitlines()]
