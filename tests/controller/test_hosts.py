import pytest

from cronium_controller.errors import ControllerError
from cronium_controller.hosts import Host, parse_host


@pytest.mark.parametrize(
    ("text", "address", "port", "user"),
    [
        ("web01", "web01", None, None),
        ("web01:2222", "web01", 2222, None),
        ("deploy@web01", "web01", None, "deploy"),
        ("deploy@web01:2222", "web01", 2222, "deploy"),
        ("first.last@realm@web01", "web01", None, "first.last@realm"),
        ("10.0.0.1:65535", "10.0.0.1", 65535, None),
        ("::1", "::1", None, None),
        ("[::1]", "::1", None, None),
        ("[::1]:22", "::1", 22, None),
        ("root@[fe80::1%eth0]:22", "fe80::1%eth0", 22, "root"),
        ("root@2001:db8::7", "2001:db8::7", None, "root"),
        ("[web01]:1", "web01", 1, None),
        ("bücher.example", "bücher.example", None, None),
    ],
)
def test_a_host_is_user_address_and_port(text: str, address: str, port: int | None, user: str | None) -> None:
    found = parse_host(text, identity="key")
    assert (found.address, found.port, found.user, found.identity) == (address, port, user, "key")


def test_a_host_is_called_what_was_written_without_the_user() -> None:
    assert str(parse_host("deploy@web01:2222")) == parse_host("web01:2222").name == "web01:2222"


def test_equal_hosts_share_a_connection() -> None:
    assert parse_host("a@web01:22") == parse_host("a@web01:22")
    assert hash(parse_host("a@web01:22")) == hash(Host("web01:22", "web01", 22, "a"))
    assert parse_host("a@web01:22") != parse_host("b@web01:22")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "@web01",
        "root@",
        "root@:22",
        ":22",
        "[]:22",
        "[::1",
        "[::1]22",
        "[::1]x:22",
        "web01:",
        "web01:0",
        "web01:65536",
        "web01:-1",
        "web01:ssh",
        "web01:2 2",
        "web01:２２",
        "web01:" + "9" * 5000,
        "web 01",
        " web01",
        "web01\n",
        "web\x0001",
        "web\x7f01",
        "web\x1b[31m01",
        "-oProxyCommand=id",
        "root@-oProxyCommand=id",
        "-root@web01",
    ],
)
def test_nonsense_is_refused_with_one_sentence(text: str) -> None:
    with pytest.raises(ControllerError) as refused:
        parse_host(text)
    assert refused.value.code == "host.config"
    assert refused.value.exit_status == 125
    assert "\n" not in refused.value.message
    assert "\x1b" not in refused.value.message
    assert len(refused.value.message) < 300
