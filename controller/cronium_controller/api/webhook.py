"""The tool `webhook`: posts what a script hands over, as JSON, to the one address that the operator has configured.

    POST url    {"executionId", "tool": "webhook", "action", "params"}

The script chooses action and params, never the address. Once: no retry, because a lost answer says nothing about
whether the other side acted.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import httpx

from cronium_runner import __version__
from cronium_runner.wire import exactjson

from .tools import ToolCaller, ToolError

DEFAULT_SECONDS: Final = 10.0
"""For everything, from the name's look-up to the answer's last byte: common webhooks answer in one or two."""

LARGEST_ANSWER: Final = 1 << 20
"""Bytes. An answer goes on through the tunnel to a script; data of that size belongs elsewhere."""

MOST_REDIRECTS: Final = 3
_REPEATABLE: Final = (307, 308)
"""The redirects that keep method and body. Of the others a POST becomes a GET, which is not what was asked for."""


class Webhook:
    """Settings: `url`; optional `headers` (a table) and `timeout` (seconds)."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        unknown = sorted(settings.keys() - {"url", "headers", "timeout"})
        if unknown:
            raise ValueError(f"a webhook has no setting '{unknown[0]}' (known: headers, timeout, url)")
        self._url = _url(settings.get("url"))
        self._headers = _headers(settings.get("headers", {}))
        self._timeout = _seconds(settings.get("timeout", DEFAULT_SECONDS))

    def __repr__(self) -> str:
        return f"<Webhook {self._url.host}>"

    async def execute(self, action: str, params: Mapping[str, Any], caller: ToolCaller) -> Any:
        """`{"status", "body"}` of the answer; a body that isn't JSON is a text."""
        body = exactjson.encode(
            {"executionId": caller.execution_id, "tool": "webhook", "action": action, "params": dict(params)}
        )
        try:
            async with asyncio.timeout(self._timeout):
                status, answer = await self._post(body)
        except TimeoutError:
            raise ToolError(f"no answer within {self._timeout:g} s; whether it was acted on is not known") from None
        except httpx.HTTPError as error:
            raise ToolError(f"the address could not be reached: {type(error).__name__}") from None
        if not 200 <= status < 300:
            raise ToolError(f"the address answered {status}")
        return {"status": status, "body": _value(answer)}

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        # trust_env: a .netrc or proxy of the operator's account is not part of this tool's settings.
        async with httpx.AsyncClient(trust_env=False, timeout=self._timeout, follow_redirects=False) as client:
            url = self._url
            for _ in range(MOST_REDIRECTS + 1):
                async with client.stream("POST", url, content=body, headers=self._headers) as answer:
                    if answer.status_code not in _REPEATABLE:
                        return answer.status_code, await _limited(answer)
                    url = self._redirected(url, answer.headers.get("location", ""))
        raise ToolError(f"more than {MOST_REDIRECTS} redirects")

    def _redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            there = url.join(location)
        except httpx.InvalidURL:
            raise ToolError("the address redirects to something that is no address") from None
        if (there.scheme, there.host, there.port) != (self._url.scheme, self._url.host, self._url.port):
            raise ToolError("the address redirects to another host, which is not followed")
        return there


async def _limited(answer: httpx.Response) -> bytes:
    content = bytearray()
    async for piece in answer.aiter_bytes():  # after decompression: that is what is kept in memory
        content += piece
        if len(content) > LARGEST_ANSWER:
            raise ToolError(f"the answer is larger than {LARGEST_ANSWER} bytes")
    return bytes(content)


def _value(answer: bytes) -> Any:
    try:
        return exactjson.loads(answer)
    except ValueError:
        return answer.decode(errors="replace")


def _url(given: Any) -> httpx.URL:
    try:
        url = httpx.URL(given)
    except (TypeError, httpx.InvalidURL):
        raise ValueError("url is missing or no address") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("url begins with https:// or http:// and a host")
    return url


def _headers(given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise ValueError("headers is a table of texts")
    ours = {"content-type": "application/json", "user-agent": f"cronium/{__version__}"}
    try:
        return dict(httpx.Headers({**ours, **{name.lower(): value for name, value in given.items()}}))
    except (ValueError, TypeError):
        raise ValueError("headers holds a name or value that HTTP can't carry") from None


def _seconds(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= 300:
        raise ValueError("timeout is a number of seconds, at most 300")
    return float(given)
