"""A token for an execution: the execution is made known, the token's grant written down, then the token handed out."""

import getpass
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..platform_store import Caller, LiveExecution, PlatformStore
from .tokens import Issued, Tokens


def issue(
    store: PlatformStore,
    tokens: Tokens,
    execution: LiveExecution,
    *,
    timeout: float,
    actor: str,
    clock: Callable[[], float] = time.time,
) -> Issued:
    """A new token. Made again for an execution that is known, it opens what was registered first.

    `timeout` is the script's, in seconds. Raises StoreError.
    """
    if not store.register(execution, clock(), actor=actor):
        execution = store.find(execution.id) or execution
    event_id = execution.context.get("eventId")
    made = tokens.issue(
        execution.id, timeout=timeout, user_id=execution.user_id, job_id=execution.job_id, event_id=event_id
    )
    store.grant(Caller(execution.id, made.jti), clock(), made.expires_at, actor=actor)
    return made


def operator() -> str:
    """Who works here, for the audit log."""
    try:
        return f"operator {getpass.getuser()}"
    except (OSError, KeyError):  # an account that the password database doesn't have
        return f"operator {os.getuid()}"


_CONTEXT_NAMES: Final = {"id": "eventId", "name": "eventName", "type": "eventType"}


def context_from(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event as a context: the same under its longer names."""
    return {_CONTEXT_NAMES.get(name, name): value for name, value in event.items()}
