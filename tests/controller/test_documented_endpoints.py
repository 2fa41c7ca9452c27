"""What pages show of services: each line that serves is started, asked and ended; `docs/api.md` by its curl lines.

A port that a page names is replaced by a free one, and put back into what is compared with the page.
"""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from api_process import Client
from cronium_controller.api.cli import serve
from documented import PAGES, PATIENCE, commands, page, place, put_command, run_line
from openssh import free_port
from remote_host import RemoteHost
from web_server import WebServer

LINES = sorted({line for each in PAGES for line in commands(each) if re.search("--listen|api serve", line)})
_CURL = Path(__file__).parents[1] / "curl.py"


class Reader(NamedTuple):
    """Somebody who reads a page: a folder, and an environment in which `cronium` is a command."""

    folder: Path
    environment: dict[str, str]

    def start(self, line: str) -> "subprocess.Popen[str]":
        """Starts a line as a terminal would: the process is the command itself, with every signal as usual."""
        return subprocess.Popen(
            ["bash", "-c", f"exec {line}"],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """With the tools file of docs/api.md, and nothing of this account's own."""
    home = tmp_path_factory.mktemp("r")  # as short as it gets: a unix socket's path has 107 bytes
    folder = home / "folder"
    put_command(folder)
    (folder / "tools.toml").write_text(_block("api.md", "toml"))
    (folder / "tools.toml").chmod(0o600)
    return Reader(folder, {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(home), "USER": "kim"})


def _block(name: str, kind: str, containing: str = "") -> str:
    """The first block of a kind on a page that has these words in it."""
    blocks: list[str] = re.findall(rf"^```{kind}\n(.*?)^```", page(name).read_text(), re.DOTALL | re.MULTILINE)
    return next(block for block in blocks if containing in block)


@contextlib.contextmanager
def serving(reader: Reader, line: str, number: int = signal.SIGTERM) -> Iterator[str]:
    """What a line says first. It ends with 0 and no further word when it gets the signal, as the pages say."""
    with reader.start(line) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            assert re.search(" (at|on) (http|unix)://", said), said
            yield said
        finally:
            process.send_signal(number)
            rest = process.communicate(timeout=PATIENCE)[1]
        assert (process.returncode, rest) == (0, ""), line


def _here(line: str, folder: Path) -> str:
    """The line with a free port, and a socket in the folder."""
    line = line.replace("/run/user/1000", str(folder))
    if "--unix" in line or ":0" in line:
        return line
    port = str(free_port())
    return re.sub(r"\d+$", port, line) if re.search(r"\d$", line) else f"{line} --port {port}"


def _health(address: str) -> tuple[int, bytes]:
    """What the service answers to whoever watches it."""
    if address.startswith("unix:"):
        with Client(address) as client:
            answer = client.send("GET", "/health")
            return answer.status, answer.body
    url = address if address.endswith("/metrics") else f"{address}/health"
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return answer.status, answer.read()


def test_the_pages_serve() -> None:
    assert len(LINES) >= 4, "how they are found has changed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("line", LINES)
def test_every_line_that_serves_does_until_it_is_told_to_end(reader: Reader, line: str, number: int) -> None:
    if "[::1]" in line and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    given = _here(line, reader.folder)
    with serving(reader, given, number) as said:
        (address,) = re.findall(r"(?:http|unix)://[^\s,]+", said)
        status, body = _health(address)
        assert status == 200
        assert b"healthy" in body or b"cronium_executions_total" in body
        if "[::1]:0" not in line:  # which is another place each time
            where = address.split("//")[1].partition("/metrics")[0]
            second = run_line(*reader, f"{given}", 125)
            assert second.stderr.count("\n") == 1, second.stderr
            assert where in second.stderr.replace(", port ", ":")
            assert re.search(r"choose another .*\[(usage.invalid|api.address_unusable)\]$", second.stderr.rstrip())
            assert _health(address)[0] == 200, "the first one goes on"
    if address.startswith("unix:"):
        assert not Path(address.removeprefix("unix://")).exists()
    with serving(reader, given):  # at once, in the place of the one that has ended
        pass


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def test_what_the_metrics_page_says_of_the_address(reader: Reader) -> None:
    port = free_port()
    (shown,) = re.findall(r"metrics --listen 9091 +serves them at (\S+)", page("metrics.md").read_text())
    with serving(reader, f"cronium metrics --listen {port}") as said:
        assert said == f"cronium: metrics at {shown}\n".replace("9091", str(port))


# -- docs/api.md -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["curl", "its stand-in"])
def curl(request: pytest.FixtureRequest, reader: Reader) -> str:
    """A `curl` that says nothing of its progress. The stand-in is for machines that have none."""
    if request.param == "curl":
        found = shutil.which("curl")
        if found is None:
            pytest.skip("curl is not installed; its stand-in was tried")
        return f"{found} -sS --noproxy '*'"
    return f"{sys.executable} {_CURL}"


def test_the_page_on_the_runtime_api_shows_what_is_answered(reader: Reader, curl: str) -> None:
    """All lines in one shell, as one of them sets what the others use."""
    shown = _block("api.md", "console", "curl")
    port = free_port()
    # A terminal shows an answer that has no line break at its end in a line of its own just the same.
    script = f'exec 2>&1\ncurl() {{ {curl} "$@"; echo; }}\n'
    for line in re.findall(r"^\$ (.*)$", shown, re.MULTILINE):
        quoted = line.replace("'", "'\\''")
        script += f"echo '$ {quoted}'\n{line}\n"
    (reader.folder / "lines.sh").write_text(script.replace("9090", str(port)))
    with serving(reader, f"cronium api serve --port {port}") as said:
        done = run_line(*reader, "bash lines.sh")
    assert _as_shown(done.stdout.replace(str(port), "9090")) == _as_shown(shown)
    said = said.replace(str(port), "9090").replace(str(reader.environment["HOME"]), "/home/kim")
    assert said in _block("api.md", "console", "api serve"), said
    assert serve.make_context("serve", []).params["port"] == 9090


def _as_shown(text: str) -> str:
    """Without what is another one each time: the time, a token's id, and who we are."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"operator \S+", "operator NAME", text)
    return re.sub(r"\b[0-9a-f]{32}\b", "TOKEN", text)


def test_a_header_is_handed_over_in_a_file(reader: Reader, curl: str) -> None:
    """The page's advice for machines that are shared."""
    assert "`curl -H @file`" in page("api.md").read_text()
    with serving(reader, f"cronium api serve --port {free_port()}") as said:
        address = re.findall(r"http://[^\s,]+", said)[0]
        run_line(*reader, 'cronium api token try-2 --output token && echo "Authorization: Bearer $(cat token)" >header')
        done = run_line(*reader, f"{curl} -H @header {address}/executions/try-2/input")
    assert done.stdout == '{"success":true,"data":null}'


@pytest.mark.sshd
def test_the_tool_of_the_page_is_called(seven_hosts: RemoteHost, tmp_path: Path) -> None:
    folder, environment = place(seven_hosts, tmp_path)
    text = page("api.md").read_text()
    (line,) = re.findall(r"`(CRONIUM_TOOLS=\S+ cronium run [^`]+)`", text)
    (folder / "check.sh").write_text(f"#!/usr/bin/env bash\n{_block('api.md', 'bash', 'executeToolAction')}")
    with WebServer() as web:
        url = r'"https://hooks\.example\.org'
        tools, count = re.subn(f'{url}[^"]*', f'"{web.url}', _block("api.md", "toml"))
        assert count == 1
        (folder / "tools.toml").write_text(tools)
        (folder / "tools.toml").chmod(0o600)
        done = run_line(folder, environment, line)
        (sent,) = web.received
    assert re.fullmatch(r'\{"status":200,"body":\{.*\}\}\n', done.stdout)
    assert sent.body | {"executionId": ""} == {
        "executionId": "", "tool": "webhook", "action": "send", "params": {"text": "disk full"},
    }  # fmt: skip
    assert {name.lower(): value for name, value in sent.headers.items()}["x-key"] == "the-key"
