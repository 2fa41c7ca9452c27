from dataclasses import fields, replace

import pytest

from cronium_controller.errors import ControllerError
from cronium_controller.hosts import Host, SSHConfig, parse_host


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


class HostConfig:
    """What other people's programs have."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


def test_settings_have_the_sixteen_fields_and_their_defaults() -> None:
    config = SSHConfig("web01")
    assert len(fields(config)) == 16
    assert (config.connect_timeout, config.command_timeout, config.control_persist) == (10, 60, 300)
    assert (config.server_alive_interval, config.server_alive_count_max) == (30, 4)
    assert config.use_control_master
    assert not config.use_cloudflare
    assert SSHConfig("web01", cloudflare_tunnel="ssh.example.com").use_cloudflare


def test_settings_come_from_any_object_or_mapping() -> None:
    wanted = SSHConfig("10.0.0.1", 2222, "ubuntu", "~/.ssh/key", tailscale_ip="100.64.0.1", work_dir="/srv")
    given = {
        "name": "runpod", "ssh_host": "10.0.0.1", "ssh_port": 2222, "ssh_user": "ubuntu", "ssh_key": "~/.ssh/key",
        "tailscale_ip": "100.64.0.1", "work_dir": "/srv", "gpu": "H100", "cloudflare_tunnel": None,
    }  # fmt: skip
    assert SSHConfig.from_host_config(given) == SSHConfig.from_host_config(HostConfig(**given)) == wanted
    assert SSHConfig.from_host_config(HostConfig(name="web01")) == SSHConfig("web01")
    assert SSHConfig.from_host_config(SSHConfig("web01", port=1)) == SSHConfig("web01", port=1)
    with pytest.raises(ControllerError, match="names no host"):
        SSHConfig.from_host_config({"port": 22})


def test_settings_make_a_host() -> None:
    config = SSHConfig("10.0.0.1", user="x", key_path="~/k", connect_timeout=3, server_alive_interval=7)
    host = config.to_host("web01")
    assert (host.name, host.address, host.user, host.identity) == ("web01", "10.0.0.1", "x", "~/k")
    assert (host.connect_timeout, host.keepalive_seconds, host.keepalive_count) == (3, 7, 4)
    assert SSHConfig("root@web01:2022").to_host() == replace(
        SSHConfig("web01", port=2022, user="root").to_host(), name="root@web01:2022"
    )


def test_secrets_are_in_no_representation() -> None:
    config = SSHConfig("web01", cloudflare_service_token_id="the-id", cloudflare_service_token_secret="the-secret")
    shown = f"{config!r} {config} {config.to_host()!r} {config.to_host()}"
    assert "the-secret" not in shown
    assert "the-id" not in shown
