"""Where the runtime API is, and the token that opens it for one execution: what makes an execution one in API mode.

It travels in SUBMIT and ATTACH frames and in the environment, never in an argument vector; nothing here prints it.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

ENDPOINT_NAME: Final = "CRONIUM_API_ENDPOINT"
TOKEN_NAME: Final = "CRONIUM_API_TOKEN"  # noqa: S105 - a name
"""The environment of `cronium-runner run`, and the script's when its manifest says `expose_api: true`."""

BUNDLED: Final = "bundled"
API: Final = "api"
"""The modes, as results and CRONIUM_HELPER_MODE name them."""

LONGEST_TOKEN: Final = 16 * 1024
"""Characters: a server would refuse so long a header anyway (431)."""
LONGEST_SOCKET_PATH: Final = 107
"""sun_path holds 108 bytes with its NUL (unix(7))."""

_TOKEN: Final = "[A-Za-z0-9._~+/=-]+"  # noqa: S105 - a pattern; compiled when it is needed, as every start loads this
_LOOPBACK: Final = r"localhost|127\.[0-9.]+|::1"
_UNIX: Final = "unix://"


class AccessError(ValueError):
    """An endpoint or a token that can't be used. The message never holds the token."""


class Access(NamedTuple):
    """`endpoint` is `unix:///path`, `http://127.0.0.1:9090` or `https://host/base`, without a slash at its end."""

    endpoint: str
    token: str

    def __repr__(self) -> str:
        return f"<Access {self.endpoint}>"

    @property
    def socket_path(self) -> str | None:
        """The socket's path when the endpoint is one."""
        return self.endpoint.removeprefix(_UNIX) if self.endpoint.startswith(_UNIX) else None

    def to_json(self) -> dict[str, str]:
        """The frames' `api`."""
        return {"endpoint": self.endpoint, "token": self.token}

    @classmethod
    def checked(cls, endpoint: object, token: object) -> "Access":
        """Raises AccessError unless both can be used."""
        if not isinstance(endpoint, str) or not isinstance(token, str):
            raise AccessError("the runtime API's endpoint and token are texts")
        if not re.fullmatch(_TOKEN, token) or len(token) > LONGEST_TOKEN:
            raise AccessError("the runtime API's token is empty, too long, or has characters that no token has")
        return cls(checked_endpoint(endpoint), token)

    @classmethod
    def from_json(cls, value: object) -> "Access":
        """Reads the frames' `api`. Raises AccessError, also for keys that are not known."""
        if not isinstance(value, dict) or set(value) != {"endpoint", "token"}:
            raise AccessError("'api' is an object of endpoint and token")
        return cls.checked(value["endpoint"], value["token"])


def from_environment(environment: Mapping[str, str]) -> "Access | None":
    """What CRONIUM_API_ENDPOINT and CRONIUM_API_TOKEN say, None when neither is there. Raises AccessError."""
    endpoint, token = environment.get(ENDPOINT_NAME), environment.get(TOKEN_NAME)
    if not endpoint and not token:
        return None
    if not endpoint or not token:
        present, missing = (ENDPOINT_NAME, TOKEN_NAME) if endpoint else (TOKEN_NAME, ENDPOINT_NAME)
        raise AccessError(f"{present} is set and {missing} is not; API mode needs both")
    return Access.checked(endpoint, token)


def checked_endpoint(endpoint: str) -> str:
    """The endpoint without a slash at its end. Raises AccessError for one that can't be used."""
    shown = repr(endpoint[:200])
    if endpoint.startswith(_UNIX):
        path = endpoint.removeprefix(_UNIX)
        if not path.startswith("/") or "\0" in path or len(path.encode(errors="replace")) > LONGEST_SOCKET_PATH:
            raise AccessError(
                f"the runtime API's endpoint {shown} is no unix:///absolute/path of at most {LONGEST_SOCKET_PATH} bytes"
            )
        return endpoint
    host, scheme = _host_and_scheme(endpoint)
    if scheme == "https" and host:
        return endpoint.rstrip("/")
    if scheme == "http" and host and re.fullmatch(_LOOPBACK, host):
        return endpoint.rstrip("/")
    if scheme == "http" and host:
        raise AccessError(f"the runtime API's endpoint {shown} would show the token to the network; use https://")
    raise AccessError(f"the runtime API's endpoint {shown} is not unix:///path, http://127.0.0.1:PORT or https://HOST")


def _host_and_scheme(endpoint: str) -> tuple[str | None, str | None]:
    if not endpoint.isprintable() or set(endpoint) & set(" \\@?#"):  # no password, no query; nothing that hides a host
        return None, None
    import urllib.parse  # 2 ms, in API mode only

    try:
        parts = urllib.parse.urlsplit(endpoint)
        _ = parts.port  # raises for one that is none
    except ValueError:
        return None, None
    return parts.hostname, parts.scheme


def mode_of(record: Mapping[str, Any]) -> str:
    """The mode that a claim or a result tells; those from before API mode tell none."""
    return API if record.get("mode") == API else BUNDLED
