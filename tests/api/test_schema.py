"""The OpenAPI description: the committed one is the served one, and the service keeps to it whatever is sent."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from api_process import Client, Platform
from cronium_controller.api.errors import STATUSES
from cronium_controller.api.schema import document

PROJECT = Path(__file__).resolve().parents[2]

# Cases for each operation: enough to find what one can find without state, in some seconds on two busy cores.


@pytest.fixture(scope="module")
def client(shared_platform: Platform) -> Iterator[Client]:
    with shared_platform.client("schema", input={"n": 1}) as made:
        made.write("PUT", "variables/there", {"value": 1})
        yield made


def test_the_committed_description_is_the_served_one(client: Client) -> None:
    committed = json.loads((PROJECT / "docs" / "openapi.json").read_text())
    assert committed == document(), "write it again: cronium api openapi > docs/openapi.json"
    assert client.send("GET", "/openapi.json").json() == committed


def test_every_path_and_status_is_described_in_the_documentation() -> None:
    page = (PROJECT / "docs" / "api.md").read_text()
    for path in document()["paths"]:
        assert path.replace("{id}", "ID").replace("{key}", "KEY") in page, path
    for error, status in STATUSES.items():
        assert f"| `{error}` | {status} |" in page, error


def own_execution() -> dict[str, Any]:
    """The description for whoever has a token for the execution `schema`: any other id would only ever show 403."""
    described = document()
    described["components"]["parameters"]["execution"]["schema"] = {"type": "string", "enum": ["schema"]}
    # A name has 1024 bytes; the description's 256 characters always fit, and longer ones that fit are accepted too.
    del described["components"]["parameters"]["key"]["schema"]["maxLength"]
    return described


SCHEMA = schemathesis.openapi.from_dict(own_execution())

# Cases are made while tests are collected, when there is no service and no token yet.
PLACEHOLDER = "Bearer later"


@SCHEMA.auth()
class _OurToken:
    def get(self, _case: Any, _context: Any) -> str:
        return PLACEHOLDER

    def set(self, case: Any, data: str, _context: Any) -> None:
        case.headers = {**(case.headers or {}), "Authorization": data}


@SCHEMA.parametrize()
@settings(
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
def test_any_request_gets_a_described_answer(case: Any, client: Client, shared_platform: Platform) -> None:
    """With all of schemathesis' checks."""
    if case.headers and case.headers.get("Authorization") == PLACEHOLDER:
        case.headers["Authorization"] = f"Bearer {client.token}"
    if case.meta.generation.mode.is_positive and (case.headers or {}).get("Idempotency-Key") == "0":
        del case.headers["Idempotency-Key"]  # schemathesis 4.32 takes "0" for a text of our pattern
    case.call_and_validate(base_url=shared_platform.address)


@SCHEMA.parametrize()
@settings(max_examples=5, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
def test_without_a_token_nothing_is_answered(case: Any, shared_platform: Platform) -> None:
    answer = case.call(base_url=shared_platform.address)
    if case.path in ("/health", "/metrics"):
        assert answer.status_code in (200, 405)
    else:
        assert answer.status_code in (401, 404, 405)
        jsonschema.validate(answer.json(), document()["components"]["schemas"]["Error"])
