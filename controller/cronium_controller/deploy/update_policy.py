"""Whether a job that meets another runner on its host than the controller's own puts that one there first.

Decisions only. `cronium deploy` asks for the controller's own and is not kept from it by a policy.
"""

import re
from collections.abc import Sequence
from enum import StrEnum

from ..errors import ControllerError
from .installed_forms import version_of

_MAJOR = re.compile(r"[0-9]{1,9}(?=\.|$)", re.ASCII)


class UpdatePolicy(StrEnum):
    """When a job's first contact with a host may upload a runner."""

    ALWAYS = "always"
    """Whenever the controller's own is not there."""
    SAME_MAJOR = "same-major"
    """When the host has none, or one whose version begins with the same number."""
    NEVER = "never"
    """A job uses what is there."""


def parse_policy(text: str, source: str) -> UpdatePolicy:
    """Raises ControllerError naming where the word stands."""
    try:
        return UpdatePolicy(text)
    except ValueError:
        raise ControllerError(
            "usage.invalid", f"{source}: {text[:40]!r} is no update policy; write {', '.join(UpdatePolicy)}"
        ) from None


def major(version: str) -> str | None:
    """The first number of a version; None for a version that has none."""
    found = _MAJOR.match(version)
    return None if found is None else found.group().lstrip("0") or "0"


def may_update(policy: UpdatePolicy, present: str | None, ours: str | None) -> bool:
    """Whether our version may be put where `present` is in use. None: the host has no runner; there is none here."""
    if ours is None or policy is UpdatePolicy.NEVER:
        return False
    if policy is UpdatePolicy.ALWAYS or present is None:
        return True
    return major(present) is not None and major(present) == major(ours)


def candidates(listing: Sequence[str], known: Sequence[str], ours: str | None) -> list[str]:
    """The folders to use instead of the controller's own, best first: by their last use from here, then the newest.

    `listing` is what the host has, the newest first; `known` what was used from here, the last first. Ours is not among
    them: it was tried.
    """
    ordered = [*(folder for folder in known if folder in listing), *listing]
    return [folder for folder in dict.fromkeys(ordered) if folder != ours]


def in_use(listing: Sequence[str], known: Sequence[str], ours: str | None) -> str | None:
    """The version that counts as the host's present one; None when it has no runner."""
    if ours in listing:
        return version_of(str(ours))
    found = candidates(listing, known, ours)
    return version_of(found[0]) if found else None
