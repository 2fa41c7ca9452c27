"""The runtime API as a client sees it: the real `cronium api serve`, over a real connection."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from api_process import Client, Platform
from cronium_controller.api.issue import context_from
from cronium_runner.wire import exactjson
from runner_process import wait_until

_counted = iter(range(10**6))


@pytest.fixture
def client(shared_platform: Platform) -> Iterator[Client]:
    """A client for an execution, and a user, of this test's own."""
    number = next(_counted)
    event = {
        "id": "7", "name": "Backup", "type": "BASH", "startTime": "2026-01-02T03:04:05Z", "metadata": {},
    }  # fmt: skip
    with shared_platform.client(
        f"e{number}", f"u{number}", job_id="j1", context=context_from(event),
        input=exactjson.loads('{"n": 12345678901234567890.10}'),
    ) as made:  # fmt: skip
        yield made


def test_input_is_what_was_registered_with_all_digits(client: Client) -> None:
    answer = client.get("input")
    assert (answer.status, answer.body) == (200, b'{"success":true,"data":{"n":12345678901234567890.10}}')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


def test_the_context(client: Client) -> None:
    told = client.get("context").json()
    assert told["success"] is True
    assert told["data"] == {
        "executionId": client.execution, "jobId": "j1", "userId": f"u{client.execution[1:]}", "eventId": "7",
        "eventName": "Backup", "eventType": "BASH", "startTime": "2026-01-02T03:04:05Z", "metadata": {},
    }  # fmt: skip


def test_a_variable_is_written_and_read(client: Client) -> None:
    missing = client.get("variables/RATE")
    assert (missing.status, missing.json()["error"]) == (404, "not_found")
    assert client.write("PUT", "variables/RATE", {"value": "0.2"}).body == b'{"success":true}'
    assert client.get("variables/RATE").json() == {"success": True, "data": {"key": "RATE", "value": "0.2"}}


@pytest.mark.parametrize(
    "value",
    ["9007199254740993", "1.10", "1e400", "-0", "12345678901234567890123.50", "null", '"\\u0000ü😀"', "[]", '{"a":{}}',
     "1" * 5000],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_values_come_back_as_they_were_written(client: Client, value: str) -> None:
    assert client.write("PUT", "variables/x", f'{{"value": {value}}}').status == 200
    key = b'"key":"x"'
    assert client.get("variables/x").body == b'{"success":true,"data":{%s,"value":%s}}' % (key, value.encode())


def test_a_variable_is_changed_and_deleted(client: Client) -> None:
    done = (200, b'{"success":true}')
    changed = b'{"success":true,"data":{"key":"%s","value":%s}}'
    for body, value in (('{"by": 1.10}', b"1.10"), ('{"by": 0.05}', b"1.15")):
        answer = client.write("POST", "variables/n%2F1/increment", body)
        assert (answer.status, answer.body) == (200, changed % (b"n/1", value))
    assert client.get("variables/n%2F1").body == changed % (b"n/1", b"1.15")
    for sequence, told in ((1, changed % (b"t", b'"ab"')), (1, done[1]), (2, changed % (b"t", b'"abab"'))):
        answer = client.write("POST", "variables/t/append", {"text": "ab"}, sequence)
        assert (answer.status, answer.body) == (200, told)
    assert client.get("variables/t").json()["data"]["value"] == "abab"
    for ignored in (None, b"null", b"no JSON"):
        key = {"Idempotency-Key": f"{client.execution}/3"}
        answer = client.send("DELETE", f"/executions/{client.execution}/variables/t", ignored, key)
        assert (answer.status, answer.body) == done
    assert client.get("variables/t").status == 404
    answer = client.send("DELETE", f"/executions/{client.execution}/variables/t")
    assert (answer.status, answer.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("what", "value", "error", "message"),
    [
        ("increment", {"by": 1}, "invalid_change", "the variable is no number"),
        ("increment", {"by": 1e308}, "invalid_change", "the variable is no number"),
        ("increment", {"by": "1"}, "invalid_body", '"by" is a number'),
        ("increment", {"by": True}, "invalid_body", '"by" is a number'),
        ("increment", {}, "invalid_body", 'the body needs "by"'),
        ("append", {"text": 1}, "invalid_body", '"text" is a text'),
        ("append", {"by": "x"}, "invalid_body", 'the body needs "text"'),
    ],
)
def test_changes_that_are_refused(client: Client, what: str, value: object, error: str, message: str) -> None:
    client.write("PUT", "variables/x", {"value": "text"})
    answer = client.write("POST", f"variables/x/{what}", value)
    status = 409 if error == "invalid_change" else 400
    assert (answer.status, answer.json()) == (status, {"error": error, "message": message})
    assert client.get("variables/x").json()["data"]["value"] == "text"


KEYS = ["a/b", "../../input", "..", ".", "/", "//", "a?b#c", "%2F", "\0", "ü 😀", "input", "é" * 500, "a+b c", "\r\n"]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: repr(key)[:20])
def test_any_key_is_one_path_segment(client: Client, key: str) -> None:
    path = f"variables/{quote(key, safe='')}"
    if key in ("..", "."):
        path = path.replace(".", "%2E")
    assert client.write("PUT", path, {"value": key}).status == 200
    assert client.get(path).json()["data"] == {"key": key, "value": key}
    assert client.get("variables/other").status == 404


@pytest.mark.parametrize("key", ["", "%00" * 1025, "n" * 1025])
def test_keys_that_no_variable_can_have(client: Client, key: str) -> None:
    assert client.get(f"variables/{key}").status == 404
    assert client.write("PUT", f"variables/{key}", {"value": 1}).status == 400


@pytest.mark.parametrize("key", ["%FF", "%ED%A0%80", "%C0%AF"])
def test_keys_that_are_no_text(client: Client, key: str) -> None:
    for answer in (client.get(f"variables/{key}"), client.write("PUT", f"variables/{key}", {"value": 1})):
        assert (answer.status, answer.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/executions/{id}/variables/a/b", 404),
        ("GET", "/executions/{id}/variables/../input", 404),
        ("GET", "/executions/{id}/variables", 404),
        ("GET", "/executions/{id}/input/", 404),
        ("GET", "/executions/{id}", 404),
        ("GET", "//executions/{id}/input", 404),
        ("GET", "/executions%2F{id}%2Finput", 404),
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("POST", "/executions/{id}/input", 405),
        ("GET", "/executions/{id}/output", 405),
        ("POST", "/executions/{id}/variables/x", 405),
        ("GET", "/executions/{id}/variables/x/increment", 405),
        ("POST", "/executions/{id}/variables/x/decrement", 404),
        ("POST", "/executions/{id}/variables/x/append/", 404),
        ("BREW", "/executions/{id}/variables/x", 405),
        ("POST", "/health", 405),
    ],
)
def test_there_is_nothing_else(client: Client, method: str, path: str, status: int) -> None:
    answer = client.send(method, path.replace("{id}", client.execution))
    assert answer.status == status
    assert set(answer.json()) == {"error", "message"}
    if path.endswith("/variables/x"):
        assert {"GET", "PUT", "DELETE"} <= set(answer.headers["allow"].replace(" ", "").split(","))


@pytest.mark.parametrize(
    ("method", "what", "body"),
    [
        ("POST", "output", ""),
        ("POST", "output", "{}"),
        ("POST", "output", "[1]"),
        ("POST", "output", "null"),
        ("POST", "output", '{"data": NaN}'),
        ("POST", "output", '{"data": 1'),
        ("POST", "output", '{"data": 1}x'),
        ("POST", "output", '{"data": "\\ud800"}'),
        ("POST", "output", b'{"data": "\xff"}'),
        ("POST", "output", '{"data": ' + "[" * 100_000),
        ("POST", "output", '{"data": ' + "[" * 600 + "]" * 600 + "}"),
        ("PUT", "variables/x", '{"data": 1}'),
        ("POST", "condition", '{"condition": 1}'),
        ("POST", "condition", '{"condition": "true"}'),
        ("POST", "condition", '{"condition": null}'),
        ("POST", "condition", "{}"),
    ],
)
def test_bad_bodies_are_400_and_change_nothing(client: Client, method: str, what: str, body: str | bytes) -> None:
    answer = client.write(method, what, body)
    assert (answer.status, answer.json()["error"]) == (400, "invalid_body")
    assert client.get("input").status == 200, "the connection is still good"


def test_bodies_that_are_too_large(client: Client) -> None:
    assert client.write("POST", "output", {"data": "x" * (8 << 20)}).status == 413
    assert client.write("POST", "output", {"data": "x" * ((8 << 20) - 100)}).status == 200

    def pieces() -> Iterator[bytes]:  # no Content-Length
        yield b"x" * (8 << 20)
        yield b"x"
        time.sleep(0.2)  # for a service that would answer now, and close the connection with the rest unread
        yield b"x" * (1 << 20)

    answer = client.send("POST", f"/executions/{client.execution}/output", pieces())  # type: ignore[arg-type]
    assert (answer.status, answer.json()["error"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [("executions/other/output", "", 403), ("executions/{}/output", "nobody", 401), ("nowhere", "", 404)],
)
def test_refused_before_a_chunked_body_is_read(client: Client, path: str, token: str, status: int) -> None:
    """The answer arrives also where a client reads it after the last of its chunks."""

    def pieces() -> Iterator[bytes]:
        yield b"x" * (1 << 20)
        time.sleep(0.2)  # for a service that would answer now, and close the connection with the rest unread
        yield b"x" * (1 << 20)

    client.token = token or client.token
    answer = client.send("POST", "/" + path.format(client.execution), pieces())  # type: ignore[arg-type]
    assert answer.status == status


def test_a_repeated_key_is_answered_and_not_applied(shared_platform: Platform, client: Client) -> None:
    assert client.write("PUT", "variables/x", {"value": 1}, sequence=1).status == 200
    user = f"u{client.execution[1:]}"
    shared_platform.api("variables", "set", "x", "the operator's", "--user", user)
    again = client.write("PUT", "variables/x", '{ "value" : 1 }', sequence=1)
    assert (again.status, again.body) == (200, b'{"success":true}')
    assert client.get("variables/x").json()["data"]["value"] == "the operator's"
    assert client.write("POST", "output", {"data": 1}, sequence=3).status == 200
    for late in (
        client.write("POST", "output", {"data": 2}, sequence=2),
        client.write("POST", "output", {"data": 2}, sequence=3),
    ):
        assert (late.status, late.json()["error"]) == (400, "out_of_order")
    written = [(e["action"], e["sequence"]) for e in shared_platform.audit(client.execution) if e["sequence"]]
    assert written == [("variable.set", 1), ("output.set", 3)]


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("two/1", 403),
        ("{id}", 400),
        ("{id}/", 400),
        ("{id}/-1", 400),
        ("{id}/1/1", 400),
        ("{id}/9223372036854775808", 400),
        ("{id}/9999999999999999999", 400),
        ("{id}/٣", 400),
        ("", 400),
    ],
)
def test_keys_of_idempotency(client: Client, key: str, status: int) -> None:
    sent = {"Idempotency-Key": key.replace("{id}", client.execution).encode().decode("latin-1")}
    answer = client.send("POST", f"/executions/{client.execution}/output", '{"data": 1}', sent)
    assert answer.status == status
    assert client.send("POST", f"/executions/{client.execution}/output", '{"data": 1}').status == 200


def test_two_executions_of_a_user_see_each_others_writes(shared_platform: Platform) -> None:
    with (
        shared_platform.client("pair1", "pair") as one,
        shared_platform.client("pair2", "pair") as two,
    ):
        assert one.write("PUT", "variables/x", {"value": [1]}).status == 200
        assert two.get("variables/x").json()["data"]["value"] == [1]
        assert two.write("PUT", "variables/x", {"value": [2]}).status == 200
        assert one.get("variables/x").json()["data"]["value"] == [2]


def test_an_operators_change_is_seen_by_the_next_read(shared_platform: Platform, client: Client) -> None:
    shared_platform.api("variables", "set", client.execution, "first")
    assert client.get(f"variables/{client.execution}").json()["data"]["value"] == "first"
    shared_platform.api("variables", "set", client.execution, '{"now": 1.50}', "--json")
    assert client.get(f"variables/{client.execution}").body.endswith(b'"value":{"now":1.50}}}')


def test_hundred_parallel_writers_of_hundred_keys_lose_nothing(shared_platform: Platform) -> None:
    token = shared_platform.token("many", "many")
    start = threading.Barrier(100)

    def write(number: int) -> int:
        with Client(shared_platform.address, token, "many") as client:
            start.wait(60)
            return client.write("PUT", f"variables/k{number}", {"value": number}).status

    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(write, range(100))) == {200}
    told = json.loads(shared_platform.api("variables", "list", "--user", "many", "--json"))
    assert told == {f"k{number}": number for number in range(100)}


def test_another_executions_token_opens_nothing(shared_platform: Platform, client: Client) -> None:
    path = "/executions/victim"
    shared_platform.token("victim", "victim", input="private")
    for method, what, body in [
        ("GET", "input", None),
        ("GET", "context", None),
        ("GET", "variables/x", None),
        ("PUT", "variables/x", '{"value": 1}'),
        ("DELETE", "variables/x", None),
        ("POST", "variables/x/increment", '{"by": 1}'),
        ("POST", "variables/x/append", '{"text": "x"}'),
        ("POST", "output", '{"data": 1}'),
        ("POST", "condition", '{"condition": true}'),
        ("POST", "condition", "not even JSON"),
    ]:
        answer = client.send(method, f"{path}/{what}", body)
        assert (answer.status, answer.json()["error"]) == (403, "forbidden")
    for nobody in ("nobody-has-this-id", "", "..%2F", f"{client.execution}%00"):
        assert client.send("GET", f"/executions/{nobody}/input").status == 403
    assert [entry["action"] for entry in shared_platform.audit("victim")] == ["execution.registered", "token.issued"]


def test_health_and_metrics_need_no_token(shared_platform: Platform, client: Client) -> None:
    client.get("variables/" + "k" * 50)
    with Client(shared_platform.address) as stranger:
        health = stranger.send("GET", "/health")
        assert (health.status, health.json()["status"]) == (200, "healthy")
        assert stranger.send("HEAD", "/health").body == b""
        figures = stranger.send("GET", "/metrics")
    assert figures.headers["content-type"].startswith("text/plain")
    lines = figures.body.decode().splitlines()
    route = 'cronium_api_requests_total{method="GET",route="/executions/{id}/variables/{key}",status="404"}'
    assert any(line.startswith(route) for line in lines)
    assert "kkkk" not in figures.body.decode(), "keys are no labels"


def test_a_rate_limit_is_each_executions_own(platform: Platform) -> None:
    platform.serve("--port", "0", "--requests-per-minute", "5")
    with platform.client("fast") as fast, platform.client("calm") as calm:
        answers = [fast.get("input") for _ in range(8)]
        limited = [answer for answer in answers if answer.status == 429]
        assert [answer.status for answer in answers[:5]] == [200] * 5
        assert limited
        assert limited[0].json()["error"] == "rate_limited"
        assert int(limited[0].headers["retry-after"]) >= 1
        assert calm.get("input").status == 200


def test_the_log_holds_neither_tokens_nor_keys_nor_values(shared_platform: Platform, client: Client) -> None:
    client.write("PUT", "variables/my-secret-key", {"value": "my-secret-value"})
    client.write("PUT", "variables/my-secret-key", '{"value": "my-secret-value"')
    client.send("GET", "/executions/x/input?my-secret-query")

    def logged() -> bool:
        return shared_platform.log.read_text().count(client.execution) >= 2

    wait_until(logged, "the requests' lines in the log")
    log = shared_platform.log.read_text()
    assert client.token is not None
    for secret in ("my-secret", client.token, client.token.split(".")[2], shared_platform.key_file.read_text().strip()):
        assert secret not in log
    audit = json.dumps(shared_platform.audit())
    assert "my-secret-value" not in audit
    assert client.token not in audit
