"""Questions to a host's agent that start and follow nothing: how executions stand, and what a collection removed.

Each is one request and its answer, over a channel that is open. Who reaches the host is `dispatch`.
"""

from collections.abc import Mapping
from typing import Any, Final

from cronium_runner.wire.codes import CODES
from cronium_runner.wire.collection import is_report
from cronium_runner.wire.frames import Kind, ProtocolError

from .channel import AgentChannel
from .errors import ChannelLostError, RefusedError

GC: Final = "gc"
"""What an agent that collects says in HELLO that it knows. An older one would never answer the frame."""


async def status(agent: AgentChannel, execution_id: str) -> dict[str, Any]:
    """How one execution stands. Raises RefusedError when the host knows nothing of it, ChannelLostError."""
    told = await _ask(agent, Kind.STATUS, {"executionId": execution_id})
    match told.get("executions"):
        case [{"state": str()} as found]:
            return dict(found)
    raise ChannelLostError(f"the agent's status of '{execution_id}' cannot be read", host=agent.host_name)


async def statuses(agent: AgentChannel, *, wants_all: bool = False, is_brief: bool = False) -> list[dict[str, Any]]:
    """How the executions of the account stand, oldest first, results without their output and variables.

    With `wants_all` also those of which only a tombstone is left. With `is_brief` only what a table shows; an older
    agent tells all the same. Raises ChannelLostError.
    """
    found: list[dict[str, Any]] = []
    asked: dict[str, Any] = {"all": wants_all, "brief": is_brief}
    while True:
        told = await _ask(agent, Kind.STATUS, asked)
        match told.get("executions"):
            case list(page) if all(isinstance(one, dict) and isinstance(one.get("executionId"), str) for one in page):
                found += page
            case _:
                raise ChannelLostError("the agent's statuses cannot be read", host=agent.host_name)
        after = told.get("after")
        if not isinstance(after, str) or after <= asked.get("after", ""):
            break  # the last page; one that leads nowhere must not be asked for again and again
        asked["after"] = after
    return sorted(found, key=lambda one: str(one.get("claimedAt")))


async def collect(agent: AgentChannel, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Has the host remove what may go; what it says of that. Raises RefusedError, ChannelLostError."""
    if GC not in (agent.agent.get("knows") or ()):
        raise RefusedError(
            "channel.version",
            "the runner there is older than this controller and collects nothing when asked; "
            "end its agent's connections, then `cronium deploy` brings the new one",
            host=agent.host_name,
        )
    told = (await _ask(agent, Kind.GC, dict(asked))).get("collection")
    if not is_report(told):
        raise ChannelLostError("the agent's report of its collection cannot be read", host=agent.host_name)
    return told


async def _ask(agent: AgentChannel, kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
    conversation = agent.converse()
    conversation.send(kind, body)
    try:
        frame = await conversation.receive()
    finally:
        conversation.close()
    assert frame is not None, "nobody else closes this conversation"
    try:
        told = frame.told()
    except ProtocolError as error:
        raise ChannelLostError(f"the agent said something unknown: {error}", host=agent.host_name) from None
    if frame.kind == Kind.REFUSED:
        raise refusal(told, agent.host_name)
    if frame.kind != Kind.STATUS:
        raise ChannelLostError(f"the agent answered with frame {frame.kind}", host=agent.host_name)
    return told


def refusal(told: Mapping[str, Any], host: str) -> RefusedError:
    """The agent's refusal as an error. A newer agent may have codes that are not ours."""
    code = told.get("code")
    return RefusedError(code if code in CODES else "runner.internal", str(told.get("message")), host=host)
