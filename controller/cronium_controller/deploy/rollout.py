"""A roll-out in stages: the controller's own runner onto some hosts, then more; back to what they had, if it fails.

Which runner jobs use on a host is the ledger's word (`Deployments.choose`): an earlier form stays on the host, and
going back is choosing it again, so no job that runs is disturbed. Hosts whose stage has not begun are held at the
runner that they were last seen with: else the next job would bring them the new one.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ..deployments import ROLLED_BACK
from ..each import answers
from ..errors import ControllerError, StoreError, UnreachableError
from ..hosts import Host
from ..install import Site, look, put_on
from ..rolling_back import roll_back
from ..runners import MACHINES
from ..schedule import counted
from .health_check import check_health
from .installed_forms import version_of
from .update_policy import candidates

if TYPE_CHECKING:
    from ..dispatch import Controller
    from ..sessions import Connection


class HostState(StrEnum):
    """How a host stands in the roll-out."""

    WAITING = "waiting"
    """Its stage has not begun."""
    CHANGING = "changing"
    """Left in the middle, by an interrupt."""
    UPDATED = "updated"
    """It has the new runner, and every check so far was passed."""
    UNCHANGED = "unchanged"
    """The same, and it had that runner before."""
    FAILED = "failed"
    ROLLED_BACK = "rolled back"
    """It was well, and has what it had before, as others failed."""


@dataclass(slots=True)
class HostProgress:
    """One host of a roll-out. `before` and `uses` are folders of installed forms; None: none, or none is known."""

    host: Host
    stage: int = 0
    state: HostState = HostState.WAITING
    before: str | None = None
    uses: str | None = None
    """The runner that jobs from here use there."""
    error: ControllerError | None = None
    """Why it failed."""
    note: str | None = None
    """What a person should know about its way back."""
    is_changed: bool = False
    """Whether this roll-out has changed which runner jobs use there, and has not put that back."""

    def to_json(self) -> dict[str, Any]:
        """For `cronium deploy --stage --json`."""
        error = None if self.error is None else {"code": self.error.code, "message": self.error.message}
        return {
            "host": self.host.name, "stage": self.stage, "state": self.state.value, "before": self.before,
            "uses": self.uses, "error": error, "note": self.note,
        }  # fmt: skip


class RollOut:
    """One roll-out. `hosts` tells at any time, also after an interrupt, how each host stands."""

    def __init__(
        self,
        controller: "Controller",
        hosts: Sequence[Host],
        stages: Sequence[int],
        *,
        soak_seconds: float,
        max_failures: int,
        forks: int,
        tell: Callable[[str], None],
    ) -> None:
        """`stages` are counts of hosts, increasing (`stages.cut`). With more than `max_failures` failed hosts it stops
        and goes back. `tell` hears a sentence for each step."""
        self.hosts = [HostProgress(host) for host in hosts]
        self.stages = list(stages)
        self._controller = controller
        self._ledger = controller.deployments
        self._soak_seconds = soak_seconds
        self._max_failures = max_failures
        self._forks = forks
        self._tell = tell
        start = 0
        for number, end in enumerate(stages, 1):
            for progress in self.hosts[start:end]:
                progress.stage = number
            start = end

    @property
    def failures(self) -> int:
        """How many hosts have failed."""
        return sum(progress.state is HostState.FAILED for progress in self.hosts)

    @property
    def is_stopped(self) -> bool:
        """Whether more hosts have failed than may."""
        return self.failures > self._max_failures

    async def run(self) -> None:
        """Stage by stage; returns when the last one is over, or when all that was changed has been put back.

        A host that fails is put back at once. Raises StoreError, and ControllerError when there is no binary here.
        """
        if not self._controller.runners.likely():
            self._controller.runners.for_machine(os.uname().machine, "")
        self._hold()
        for number in range(1, len(self.stages) + 1):
            part = [progress for progress in self.hosts if progress.stage == number]
            self._tell(f"stage {number} of {len(self.stages)}: {counted(len(part))}")
            await self._each(part, self._change)
            if not self.is_stopped and self._soak_seconds:
                self._tell(f"stage {number}: waiting {self._soak_seconds:g} s, then checking again")
                await asyncio.sleep(self._soak_seconds)
                await self._each([one for one in part if one.state is not HostState.FAILED], self._check)
            if self.is_stopped:
                return await self._go_back()
        return None

    def _hold(self) -> None:
        """Has jobs on hosts that wait use what they were last seen with."""
        ours = {binary.folder for binary in self._controller.runners.likely()}
        for progress in self.hosts:
            seen = self._ledger.seen(progress.host, self._root)
            if seen is not None:
                progress.before = progress.uses = seen.folder
                if seen.folder not in ours:
                    self._ledger.choose(progress.host, self._root, seen.folder)

    @property
    def _root(self) -> str:
        return self._controller.runners.root

    async def _each(self, part: Sequence[HostProgress], ask: Callable[[HostProgress], Awaitable[None]]) -> None:
        """`ask` for each; none is begun any more once too many have failed. A failure is put back at once."""

        async def asked(progress: HostProgress) -> None:
            try:
                with self._controller.connections.hurried(progress.host):
                    await ask(progress)
            except StoreError:
                raise
            except ControllerError as error:
                progress.state, progress.error = HostState.FAILED, error
                self._tell(f"{progress.host}: {error.message.removeprefix(f'{progress.host}: ')} [{error.code}]")
                await self._put_back(progress)

        async for _, answer in answers((one for one in part if not self.is_stopped), asked, forks=self._forks):
            if answer is not None:
                raise answer  # of the database: nothing can be relied on any more

    async def _change(self, progress: HostProgress) -> None:
        """The new runner onto a host, and into use; then the check. Raises ControllerError."""
        progress.state = HostState.CHANGING
        ledger, host = self._ledger, progress.host
        opening = self._controller.connections.open
        site = Site(await opening(host), self._controller.runners, ledger, lambda: opening(host))
        try:
            machine, listing = await look(site)
            ours = site.runners.for_machine(machine, host.name)
            before = self._present(host, listing)
            progress.before = progress.uses = before
            if before is not None and before != ours.folder:  # until ours is there whole
                ledger.note_checked(host, self._root, before, version_of(before), MACHINES[machine], "")
                ledger.choose(host, self._root, before)
            await put_on(site, None)
            ledger.choose(host, self._root, None)
            progress.uses = ours.folder
            progress.is_changed = ours.folder != before
        finally:
            await site.connection.close()
        await self._check(progress)
        progress.state = HostState.UPDATED if progress.is_changed else HostState.UNCHANGED

    def _present(self, host: Host, listing: Sequence[str]) -> str | None:
        """The form that jobs use there now: the chosen one, the one that was used last from here, or the newest."""
        known = self._ledger.known(host, self._root)
        chosen = [one.folder for one in known if one.is_chosen]
        used = [one.folder for one in known if one.checked_at is not None]
        return next(iter(candidates(listing, [*chosen, *used], None)), None)

    async def _check(self, progress: HostProgress) -> None:
        await check_health(self._controller, progress.host)

    async def _go_back(self) -> None:
        changed = [progress for progress in self.hosts if progress.is_changed and progress.state is HostState.UPDATED]
        failed, back_to = counted(self.failures), counted(len(changed))
        self._tell(f"stopped: {failed} failed, more than {self._max_failures}; rolling back {back_to}")

        async def put_back(progress: HostProgress) -> None:
            with self._controller.connections.hurried(progress.host):
                await self._put_back(progress)
            if not progress.is_changed:
                progress.state = HostState.ROLLED_BACK

        async for _, answer in answers(changed, put_back, forks=self._forks):
            if answer is not None:
                raise answer

    async def _put_back(self, progress: HostProgress) -> None:
        """Has jobs use what the host had before; says in `note` what is short of that. Raises StoreError."""
        if not progress.is_changed:
            return
        before, host = progress.before, progress.host
        if before is None:
            progress.note = (
                f"it had no runner before this roll-out, so there is none to go back to; it keeps {progress.uses}"
            )
            return
        connection: Connection | None = None
        try:
            connection = await self._controller.connections.open(host)
            await roll_back(connection, self._controller.runners, self._ledger, before, outcome=ROLLED_BACK)
        except UnreachableError as error:  # which runner is used is decided here
            self._ledger.choose(host, self._root, before)
            progress.note = f"{before} was not checked there: {error.message.removeprefix(f'{host}: ')}"
        except StoreError:
            raise
        except ControllerError as error:
            progress.note = (
                f"it could not be put back to {before} and keeps {progress.uses}: "
                f"{error.message.removeprefix(f'{host}: ')}"
            )
            return
        finally:
            if connection is not None:
                with contextlib.suppress(UnreachableError):
                    await connection.close()
        progress.uses, progress.is_changed = before, False
