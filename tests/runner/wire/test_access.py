"""Endpoint and token: which are taken, and that nothing shows the token."""

import pytest

from cronium_runner.wire.access import Access, AccessError, from_environment

TOKEN = "head.body.signature-0123"


@pytest.mark.parametrize(
    ("endpoint", "taken"),
    [
        ("unix:///run/x.api", "unix:///run/x.api"),
        ("http://127.0.0.1:9090", "http://127.0.0.1:9090"),
        ("http://localhost:9090/", "http://localhost:9090"),
        ("http://[::1]:9090", "http://[::1]:9090"),
        ("https://platform.example/api/", "https://platform.example/api"),
    ],
)
def test_endpoints_that_are_taken(endpoint: str, taken: str) -> None:
    access = Access.checked(endpoint, TOKEN)
    assert Access.from_json(access.to_json()) == access == (taken, TOKEN)
    assert TOKEN not in repr(access)


@pytest.mark.parametrize(
    "endpoint",
    [
        "", "unix://", "unix://relative", "unix:///a\0b", "unix:///" + "x" * 107, "http://platform.example",
        "http://127.0.0.1.example", "http://localhost@evil.example", "https://", "https://h:x", "https://h/?q", "//h",
        "https://h\\@x", "https://h\n", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_endpoints_that_are_not(endpoint: str) -> None:
    with pytest.raises(AccessError):
        Access.checked(endpoint, TOKEN)


@pytest.mark.parametrize("token", ["", "a b", "a\r\nb", "ü", "x" * 16385])
def test_tokens_that_are_not_and_that_no_message_shows(token: str) -> None:
    with pytest.raises(AccessError) as refused:
        Access.checked("unix:///x", token)
    assert not token or token not in str(refused.value)


def test_the_environment_has_both_or_neither() -> None:
    both = {"CRONIUM_API_ENDPOINT": "unix:///x", "CRONIUM_API_TOKEN": TOKEN}
    assert from_environment({}) is None
    assert from_environment(both) == Access("unix:///x", TOKEN)
    for name in both:
        with pytest.raises(AccessError, match=f"{name} is not"):
            from_environment({other: value for other, value in both.items() if other != name})
