"""Questions to a host's agent that start and follow nothing: how executions stand, and what a collection removed.

Each is one request and its answer, over a channel that is open. Who reaches the host is `dispatch`.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from cronium_runner.wire.codes import CODES
from cronium_runner.wire.collection import is_report
from cronium_runner.wire.frames import Kind, ProtocolError

from .channel import AgentChannel
from .errors import ChannelLostError, RefusedError
from .inbox import Piece

GC: Final = "gc"
"""What an agent that collects says in HELLO that it knows. An older one would never answer the frame."""
MOST_TOLD: Final = 128 * 1024 * 1024
"""Bytes of all statuses of one host together: more than a hundred thousand executions."""


async def status(agent: AgentChannel, execution_id: str) -> dict[str, Any]:
    """How one execution stands. Raises RefusedError when the host knows nothing of it, ChannelLostError."""
    told, _ = await _ask(agent, Kind.STATUS, {"executionId": execution_id})
    match told.get("executions"):
        case [dict() as found]:
            return _readable(found, execution_id, agent)
    raise ChannelLostError(f"the agent's status of '{execution_id}' cannot be read", host=agent.host_name)


async def statuses(agent: AgentChannel, *, wants_all: bool = False, is_brief: bool = False) -> list[dict[str, Any]]:
    """How the executions of the account stand, oldest first, results without their output and variables.

    With `wants_all` also those of which only a tombstone is left. With `is_brief` only what a table shows; an older
    agent tells all the same. Raises ChannelLostError.
    """
    try:
        async with asyncio.timeout(agent.patience.collection):
            found = await _pages(agent, {"all": wants_all, "brief": is_brief})
    except TimeoutError:
        raise _overdue(agent, agent.patience.collection) from None
    return sorted(found, key=lambda one: str(one.get("claimedAt")))


async def _pages(agent: AgentChannel, asked: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    size = 0
    while True:
        told, length = await _ask(agent, Kind.STATUS, asked)
        size += length
        match told.get("executions"):
            case list(page) if size <= MOST_TOLD and all(isinstance(one, dict) for one in page):
                found += [_readable(one, None, agent) for one in page]
            case _:
                raise ChannelLostError("the agent's statuses cannot be read", host=agent.host_name)
        after = told.get("after")
        if not isinstance(after, str) or after <= asked.get("after", ""):
            return found  # the last page; one that leads nowhere must not be asked for again and again
        asked["after"] = after


_ABSENT: Final[dict[str, Any]] = {"stdout": {"bytes": 0}, "stderr": {"bytes": 0}, "result": None, "error": None}


def _readable(one: dict[str, Any], execution_id: str | None, agent: AgentChannel) -> dict[str, Any]:
    """A status in which all is of the type that it has to be. Raises ChannelLostError.

    Not by patterns: there may be 20,000, and those take ten times as long.
    """
    found = one if _ABSENT.keys() <= one.keys() else {**_ABSENT, **one}
    told_id, result, error = found.get("executionId"), found["result"], found["error"]
    is_readable = (
        isinstance(told_id, str)
        and execution_id in (None, told_id)
        and isinstance(found.get("state"), str)
        and all(
            isinstance(each, dict) and type(each.get("bytes")) is int for each in (found["stdout"], found["stderr"])
        )
        and (error is None or isinstance(error, dict))
    )
    if is_readable and result is not None:
        is_readable = isinstance(result, dict) and isinstance(result.get("state"), str)
    if is_readable and result is not None and result.get("error") is not None:
        is_readable = isinstance(result["error"], dict)
    elif is_readable and execution_id is not None and found.get("collected"):
        is_readable = False  # what became of it is in its error
    if not is_readable:
        raise ChannelLostError("the agent tells a status that cannot be read", host=agent.host_name)
    return found


async def collect(agent: AgentChannel, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Has the host remove what may go; what it says of that. Raises RefusedError, ChannelLostError."""
    if GC not in (agent.agent.get("knows") or ()):
        raise RefusedError(
            "channel.version",
            "the runner there is older than this controller and collects nothing when asked; "
            "end its agent's connections, then `cronium deploy` brings the new one",
            host=agent.host_name,
        )
    told = (await _ask(agent, Kind.GC, dict(asked), agent.patience.collection))[0].get("collection")
    if not is_report(told):
        raise ChannelLostError("the agent's report of its collection cannot be read", host=agent.host_name)
    return told


async def _ask(
    agent: AgentChannel, kind: Kind, body: dict[str, Any], seconds: float | None = None
) -> tuple[dict[str, Any], int]:
    """The answer and its length in bytes. Raises RefusedError, ChannelLostError."""
    conversation = agent.converse()
    conversation.send(kind, body)
    seconds = seconds or agent.patience.answer
    try:
        async with asyncio.timeout(seconds):
            frame = await conversation.receive()
    except TimeoutError:
        raise _overdue(agent, seconds) from None
    finally:
        conversation.close()
    assert frame is not None, "nobody else closes this conversation"
    assert not isinstance(frame, Piece), "none was asked for, and its channel would have ended"
    try:
        told = frame.told()
    except ProtocolError as error:
        raise ChannelLostError(f"the agent said something unknown: {error}", host=agent.host_name) from None
    if frame.kind == Kind.REFUSED:
        raise refusal(told, agent.host_name)
    if frame.kind != Kind.STATUS:
        raise ChannelLostError(f"the agent answered with frame {frame.kind}", host=agent.host_name)
    return told, len(frame.body)


def _overdue(agent: AgentChannel, seconds: float) -> ChannelLostError:
    sentence = f"the agent has not answered within {seconds:g} s; look at the host, and ask again"
    return ChannelLostError(sentence, host=agent.host_name)


def refusal(told: Mapping[str, Any], host: str) -> RefusedError:
    """The agent's refusal as an error. A newer agent may have codes that are not ours."""
    code = told.get("code")
    is_known = isinstance(code, str) and code in CODES
    return RefusedError(str(code) if is_known else "runner.internal", str(told.get("message")), host=host)
