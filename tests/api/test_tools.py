"""Tool actions: dispatched to what the operator has configured, once, and written down."""

import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from api_process import Client, Platform
from cronium_controller.api.tools import ToolCaller, ToolError, load_tools
from cronium_controller.api.webhook import LARGEST_ANSWER, Webhook
from cronium_controller.errors import ControllerError
from cronium_runner.wire import exactjson
from web_server import WebServer, answer

CALLER = ToolCaller("one")


def tools_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tools.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def execute(client: Client, body: str) -> "tuple[int, dict[str, object]]":
    given = client.send("POST", "/tool-actions/execute", body)
    return given.status, given.json()


def test_a_webhook_gets_what_the_script_hands_over(platform: Platform) -> None:
    with WebServer() as web:
        tools = tools_file(
            platform.folder,
            f'[alerts]\ntype = "webhook"\nurl = "{web.url}/hook?k=1"\nheaders = {{ X-Key = "t0p-secret-key" }}\n',
        )
        platform.serve("--port", "0", "--tools", str(tools))
        with platform.client("one") as client:
            status, told = execute(
                client, '{"tool": "alerts", "action": "send", "params": {"n": 12345678901234567890}}'
            )
            assert (status, told) == (
                200,
                {"success": True, "data": {"status": 200, "body": {"ok": True, "exact": 1.1}}},
            )
            assert execute(client, '{"tool": "alerts", "action": "send", "config": {"c": 1}}')[0] == 200
            assert execute(client, '{"tool": "alerts", "action": "send"}')[0] == 200
        assert [each.body["params"] for each in web.received] == [{"n": 12345678901234567890}, {"c": 1}, {}]
        first = web.received[0]
        assert (first.path, first.headers["x-key"]) == ("/hook?k=1", "t0p-secret-key")
        assert {**first.body, "params": 0} == {"executionId": "one", "tool": "webhook", "action": "send", "params": 0}
    entries = [
        (e["action"], e["subject"], e["detail"]) for e in platform.audit("one") if e["action"].startswith("tool")
    ]
    assert (
        entries
        == [("tool.started", "alerts", {"action": "send"}), ("tool.succeeded", "alerts", {"action": "send"})] * 3
    )
    with Client(platform.address) as stranger:
        assert (
            b'cronium_api_tool_actions_total{result="succeeded",tool="alerts"} 3.0'
            in stranger.send("GET", "/metrics").body
        )
    assert "t0p-secret-key" not in platform.log.read_text()
    assert web.url not in platform.log.read_text()


def test_a_failure_is_told_written_down_and_not_repeated(platform: Platform) -> None:
    with WebServer(lambda handler: answer(handler, 503)) as web:
        tools = tools_file(platform.folder, f'[alerts]\ntype = "webhook"\nurl = "{web.url}"\n')
        platform.serve("--port", "0", "--tools", str(tools))
        with platform.client("one") as client:
            status, told = execute(client, '{"tool": "alerts", "action": "send", "params": {}}')
        assert (status, told) == (
            200, {"success": False, "data": {"error": "tool_failed", "message": "the address answered 503"}},
        )  # fmt: skip
        assert len(web.received) == 1
    assert [e["action"] for e in platform.audit("one")][-2:] == ["tool.started", "tool.failed"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"tool": "none", "action": "send", "params": {}}', 404),
        ('{"action": "send", "params": {}}', 400),
        ('{"tool": "none", "params": {}}', 400),
        ('{"tool": 1, "action": "send"}', 400),
        ('{"tool": "none", "action": null}', 400),
        ('{"tool": "none", "action": "send", "params": []}', 400),
        ('{"tool": "\\u0000", "action": "\\u0000"}', 404),
        ("", 400),
    ],
)
def test_what_no_tool_takes(shared_platform: Platform, body: str, status: int) -> None:
    with shared_platform.client("one") as client:
        assert execute(client, body)[0] == status
        keyed = client.send("POST", "/tool-actions/execute", body, {"Idempotency-Key": "one/1"})
        assert (keyed.status, keyed.json()["error"]) == (400, "invalid_key")
    with Client(shared_platform.address) as stranger:
        assert execute(stranger, body)[0] == 401


async def test_redirects_are_followed_on_the_same_host_only() -> None:
    def redirecting(location: str, status: int = 307) -> "object":
        def answering(handler: BaseHTTPRequestHandler) -> None:
            if handler.path == "/end":
                answer(handler, 200, b'"there"')
            else:
                answer(handler, status, Location=location)

        return answering

    with WebServer() as other, WebServer() as web:
        hook = Webhook({"url": f"{web.url}/begin"})
        web.answering = redirecting("/end")  # type: ignore[assignment]
        assert (await hook.execute("a", {}, CALLER))["body"] == "there"
        for location, status, said in [
            (f"{other.url}/end", 307, "another host"),
            ("//127.0.0.2/end", 308, "another host"),
            ("https://127.0.0.1/end", 307, "another host"),
            ("file:///etc/passwd", 307, "another host"),
            ("/begin", 307, "more than 3 redirects"),
            ("/end", 302, "answered 302"),
            ("http://[", 307, "no address|another host"),
        ]:
            web.answering = redirecting(location, status)  # type: ignore[assignment]
            with pytest.raises(ToolError, match=said):
                await hook.execute("a", {}, CALLER)
        assert not other.received


async def test_an_answer_that_is_too_large_too_late_or_no_json() -> None:
    released = threading.Event()
    with WebServer() as web:
        hook = Webhook({"url": web.url})
        web.answering = lambda handler: answer(handler, 200, b"plain \xff")
        assert await hook.execute("a", {}, CALLER) == {"status": 200, "body": "plain �"}
        web.answering = lambda handler: answer(handler, 200, b"1" * (LARGEST_ANSWER + 1))
        with pytest.raises(ToolError, match="larger than"):
            await hook.execute("a", {}, CALLER)
        web.answering = lambda _handler: (released.wait(30), None)[1]
        with pytest.raises(ToolError, match=r"no answer within 0.3 s; whether it was acted on is not known"):
            await Webhook({"url": web.url, "timeout": 0.3}).execute("a", {}, CALLER)
        released.set()
        web.answering = lambda handler: answer(handler, 200, b"1.10")
        assert exactjson.dumps(await hook.execute("a", {}, CALLER)) == '{"status":200,"body":1.10}'
    with pytest.raises(ToolError, match="could not be reached") as caught:
        await hook.execute("a", {}, CALLER)
    assert web.url not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alerts = 1", "needs a type"),
        ("[alerts]\nurl = 'https://x'", "needs a type"),
        ("[alerts]\ntype = 'pigeon'", r"no tool of type 'pigeon' is installed \(known: .*webhook"),
        ("[alerts]\ntype = 'webhook'", "url is missing"),
        ("[alerts]\ntype = 'webhook'\nurl = 'ftp://x'", "https://"),
        ("[alerts]\ntype = 'webhook'\nurl = 'https://x'\ncolour = 'red'", "no setting 'colour'"),
        ("[alerts]\ntype = 'webhook'\nurl = 'https://x'\ntimeout = 0", "timeout"),
        ("[alerts]\ntype = 'webhook'\nurl = 'https://x'\nheaders = { a = 1 }", "headers"),
        ("[alerts", "cannot be used"),
    ],
)
def test_a_tools_file_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ControllerError, match=said) as caught:
        load_tools(tools_file(tmp_path, text))
    assert caught.value.code == "api.tools_invalid"


def test_a_tools_file_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[alerts]\ntype = 'webhook'\nurl = 'https://x'"
    with pytest.raises(ControllerError, match="chmod 600"):
        load_tools(tools_file(tmp_path, text, 0o644))
    monkeypatch.setenv("CRONIUM_TOOLS", str(tools_file(tmp_path, text)))
    assert list(load_tools()) == ["alerts"]
    monkeypatch.delenv("CRONIUM_TOOLS")
    assert load_tools() == {}
    with pytest.raises(ControllerError, match="No such file"):
        load_tools(tmp_path / "none")
