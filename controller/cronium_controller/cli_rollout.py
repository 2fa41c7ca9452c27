"""`cronium deploy --stage`: a roll-out, told step by step on standard error, and at its end how each host stands."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cronium_runner.wire.results import EXIT_CANCELLED

from . import progress
from .deploy.stages import Stage, cut, parse_soak, parse_stages
from .schedule import Share, Tally, counted, parse_share

if TYPE_CHECKING:
    from .deploy.rollout import HostProgress, RollOut
    from .dispatch import Controller
    from .hosts import BadTarget, Host


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options of the command ask for."""

    stages: list[Stage]
    soak_seconds: float
    max_failures: Share
    forks: int
    as_json: bool

    @classmethod
    def parsed(cls, stages: str, soak: str, max_failures: str, *, forks: int, as_json: bool) -> "Wanted":
        """Raises ControllerError for what cannot be meant."""
        share = parse_share(max_failures, "--max-failures", lowest=0)
        return cls(parse_stages(stages), parse_soak(soak), share, forks, as_json)

    async def roll_out(self, controller: "Controller", targets: "list[Host | BadTarget]") -> int:
        """Does it; returns the exit status. Raises the error of a target that cannot be read, before any is changed."""
        from .deploy.rollout import RollOut
        from .hosts import BadTarget
        from .interrupts import Interrupts
        from .open_files import make_room

        hosts = []
        for target in targets:
            if isinstance(target, BadTarget):
                raise target.error
            hosts.append(target)
        make_room(min(self.forks, len(hosts)))
        rolling = RollOut(
            controller, hosts, cut(self.stages, len(hosts)),
            soak_seconds=self.soak_seconds, max_failures=self.max_failures.of(len(hosts)), forks=self.forks,
            tell=lambda sentence: progress.say(f"cronium: {sentence}"),
        )  # fmt: skip
        task = asyncio.current_task()
        assert task is not None
        is_interrupted = False
        try:
            with Interrupts(task.cancel):
                await rolling.run()
        except asyncio.CancelledError:
            is_interrupted = True
            task.uncancel()
        finally:
            status = self._tell(rolling, is_interrupted=is_interrupted)
        return status

    def _tell(self, rolling: "RollOut", *, is_interrupted: bool) -> int:
        """Shows how each host stands; returns the exit status."""
        from . import show

        tally, counts = Tally(), dict[str, int]()
        for one in rolling.hosts:
            counts[one.state.value] = counts.get(one.state.value, 0) + 1
            _count(tally, one, is_over=not rolling.is_stopped)
            if self.as_json:
                show.print_json(one.to_json())
            else:
                _print_line(one)
        verdict = "interrupted" if is_interrupted else "rolled back" if rolling.is_stopped else "complete"
        status = EXIT_CANCELLED if is_interrupted else tally.exit_status
        if self.as_json:
            summary: dict[str, Any] = {"verdict": verdict, "stages": rolling.stages, "states": counts}
            show.print_json({**summary, "exitStatus": status})
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        click.echo(f"cronium: {verdict}: {told} of {counted(len(rolling.hosts))}", err=True)
        if is_interrupted:
            click.echo(
                "cronium: go on with the same command; take a host back with: "
                "cronium deploy --host HOST --version FOLDER, as its line has it behind 'before'",
                err=True,
            )
        return status


def _count(tally: Tally, one: "HostProgress", *, is_over: bool) -> None:
    from .deploy.rollout import HostState

    match one.state:
        case HostState.UPDATED | HostState.UNCHANGED:
            tally.note(0, ok=True)
        case HostState.FAILED:
            tally.note(1 if one.error is None else one.error.exit_status, ok=False)
        case HostState.WAITING if is_over:  # the stages end before it
            pass
        case _:
            tally.note(0, ok=False)


def _print_line(one: "HostProgress") -> None:
    from .deploy.rollout import HostState

    uses = "no runner is known" if one.uses is None else f"jobs use {one.uses}"
    note = f" ({one.note})" if one.note else ""
    if one.state is HostState.UPDATED:
        uses = f"{uses}, before {one.before or 'none'}"
    if one.error is None:
        click.echo(f"{one.host}: {one.state.value}; {uses}{note}")
    else:
        reason = one.error.message.removeprefix(f"{one.host}: ")
        click.echo(f"{one.host}: {one.state.value}: {reason} [{one.error.code}]; {uses}{note}")
