"""How one execution's tree is held together and kept within its limits: decided before the claim, applied at the start,
watched while it runs, asked at the end which limit it was.

Every tree is held by the supervisor, its subreaper. A control group comes on top where a limit needs one, or where
CRONIUM_CONTAINMENT asks for one; why not always is docs/decisions/0005. Which mechanism enforces which limit is
`limits`' decision, how processes are signalled is `process`'s.
"""

import contextlib
import functools
import os
import resource
import signal
import time
from typing import Any, Final, NamedTuple

from . import cgroup, limits, process, sampling
from .errors import NotExecutableError, RunnerError
from .limits import Plan
from .wire.limits import Limits, shown, size

CHOICE: Final = "CRONIUM_CONTAINMENT"
CHOICES: Final = ("auto", "cgroup", "subreaper")
SAMPLE_SECONDS: Final = 0.1
"""Between two looks at a tree whose memory or size is limited: a process that does nothing but touch memory takes some
hundred MiB in between."""
SAMPLE_SHARE: Final = 10
"""Looking never takes more than one part in this many of a core, however large the tree is."""
_EXIT_BY_SIGNAL: Final = 128
"""What a shell adds to the signal that its command died by."""


class Exceeded(NamedTuple):
    """A limit that ended a job: an error code and a sentence with limit, observed value and mechanism."""

    code: str
    message: str


class Containment:
    """One execution's."""

    def __init__(self, plan: Plan, group: cgroup.Group | None) -> None:
        self.plan = plan
        self.group = group
        self.exceeded: Exceeded | None = None
        """The limit that sampling has found exceeded, once it has."""
        self.sample_at = time.monotonic() + SAMPLE_SECONDS if plan.sampled else float("inf")
        """When (monotonic) the next look is due."""

    def __repr__(self) -> str:
        return f"<Containment {self.held_by} {dict(self.plan.mechanisms)}>"

    @property
    def held_by(self) -> str:
        """What holds the tree, for a person."""
        return "subreaper" if self.group is None else "cgroup and subreaper"

    def record(self) -> dict[str, Any]:
        """For the record of the running state: how the tree is held, and by what each limit is enforced."""
        told: dict[str, Any] = {"heldBy": self.held_by}
        if self.plan.mechanisms:
            values = self.plan.limits.to_json()
            told["limits"] = {key: {"value": values[key], "by": by} for key, by in self.plan.mechanisms.items()}
        return told

    def is_empty(self) -> bool:
        """Whether nobody is left in the group. Without one the supervisor's own children tell."""
        return self.group is None or not self.group.processes()

    def close(self) -> None:
        """Removes the group. Call it when nothing is left in it."""
        if self.group is not None:
            self.group.remove()

    # -- between fork and exec, in the child ---------------------------------------------------------------------

    def steps(self) -> list[process.Step]:
        """What the child does to itself before it executes the script: the limit's key, or `group`, and a call each.

        Made before the fork, so that the child only calls. Raises OSError when the group is gone.
        """
        made: list[process.Step] = []
        if self.group is not None:
            entrance = self.group.open_entrance()
            made.append(("group", lambda: os.write(entrance, b"0")))
        plan = self.plan
        if plan.cpus is not None:
            cpus = plan.cpus
            made.append(("cpu", lambda: os.sched_setaffinity(0, cpus)))
        if plan.nice is not None:
            nice = plan.nice
            made.append(("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, nice)))
        for key, number, value in plan.resources:
            made.append((key, functools.partial(resource.setrlimit, number, (value, value))))
        return made

    def refusal(self, step: str, number: int) -> RunnerError:
        """What the child could not do to itself, as a refusal."""
        reason = os.strerror(number)
        if step == "group":
            return RunnerError("containment.unavailable", f"the control group cannot be entered: {reason}")
        if step not in self.plan.mechanisms:
            return NotExecutableError(f"the script cannot be started: {reason}")
        return limits.impossible(self.plan.limits, step, f"the kernel says '{reason}' to {self.plan.mechanisms[step]}")

    # -- while it runs -------------------------------------------------------------------------------------------

    def sample(self) -> Exceeded | None:
        """Looks at the tree; the limit that it is above, if it is above one."""
        began = time.monotonic()
        tree = sampling.tree(os.getpid())
        for key in self.plan.sampled:
            most = getattr(self.plan.limits, key)
            found = sampling.memory(tree, above=most) if key == "memory" else sampling.threads(tree)
            if found > most:
                self.exceeded = self._seen(key, found)
        now = time.monotonic()
        self.sample_at = now + max(SAMPLE_SECONDS, SAMPLE_SHARE * (now - began))
        if self.exceeded is not None:
            self.sample_at = float("inf")
        return self.exceeded

    def _seen(self, key: str, found: int) -> Exceeded:
        limit = shown(key, getattr(self.plan.limits, key))
        if key == "memory":
            used = f"the script and its processes used {size(found >> 20 << 20)} of memory"
        else:
            used = f"the script had {found} processes and threads"
        return Exceeded(f"limits.{key}", f"{used}, above its limit {limit}, and was ended (seen by the supervisor)")

    # -- at the end ----------------------------------------------------------------------------------------------

    def verdict(self, exit_code: int | None, number: int | None) -> Exceeded | None:
        """The limit that ended a job which has failed, as far as that can be told."""
        if self.exceeded is not None:
            return self.exceeded
        asked = self.plan.limits
        if self.group is not None:
            if asked.memory is not None and self.group.count("memory.events", "oom_kill"):
                peak = self.group.number("memory.peak")
                used = "more memory than it may" if peak is None else f"up to {size(peak >> 20 << 20)} of memory"
                sentence = f"the script and its processes needed {used}; its limit is {shown('memory', asked.memory)}"
                return Exceeded("limits.memory", f"{sentence}, so the kernel ended them (cgroup memory.max)")
            refused = self.group.count("pids.events", "max")
            if asked.processes is not None and refused:
                limit = shown("processes", asked.processes)
                sentence = f"{refused} times the script was refused another process or thread at its limit {limit}"
                return Exceeded("limits.processes", f"{sentence} (cgroup pids.max), and it failed")
        ended = number == signal.SIGXFSZ or exit_code == _EXIT_BY_SIGNAL + signal.SIGXFSZ
        if asked.file_size is not None and ended:
            limit = shown("file_size", asked.file_size)
            sentence = f"a file of the script would have become larger than its limit {limit}"
            return Exceeded("limits.file_size", f"{sentence}, so the kernel ended the writer (RLIMIT_FSIZE, SIGXFSZ)")
        return None


def contain(asked: Limits) -> Containment:
    """Decides, and makes the group if there is to be one. Raises RunnerError when a limit can't be enforced here."""
    choice = os.environ.get(CHOICE) or CHOICES[0]
    if choice not in CHOICES:
        raise RunnerError("usage.invalid", f"{CHOICE} is one of {', '.join(CHOICES)}, not {choice[:40]!r}")
    if asked == Limits() and choice != "cgroup":
        return Containment(Plan(), None)
    place = None if choice == "subreaper" else cgroup.place()
    if place is None and choice == "cgroup":
        raise RunnerError(
            "containment.unavailable",
            f"{CHOICE}=cgroup, but this account can make no control group with cgroup.kill here (Linux 5.14, "
            "cgroup v2, root or a delegated group); nothing was started",
        )
    plan = limits.plan(asked, _facts(frozenset() if place is None else place.controllers))
    if place is None or not (choice == "cgroup" or plan.settings):
        return Containment(plan, None)
    try:
        return Containment(plan, cgroup.Group.make(place, plan.settings))
    except OSError as error:
        raise RunnerError(
            "containment.unavailable",
            f"a control group with {', '.join(plan.settings) or 'cgroup.kill'} cannot be made in {place.path}: "
            f"{error.strerror}; nothing was started",
        ) from None


def _facts(controllers: frozenset[str]) -> limits.Facts:
    is_privileged = os.geteuid() == 0
    numbers = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_DATA, resource.RLIMIT_NPROC)
    nice = resource.getrlimit(resource.RLIMIT_NICE)[0]
    return limits.Facts(
        is_privileged=is_privileged,
        controllers=controllers,
        hard={number: resource.getrlimit(number)[1] for number in numbers},
        most_open_files=_number_in("/proc/sys/fs/nr_open"),
        cpus=_rotated(sorted(os.sched_getaffinity(0))),
        account_threads=0 if is_privileged else sampling.threads_of(os.geteuid()),
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        lowest_nice=-20 if is_privileged or nice == -1 else 20 - nice,
    )


def _rotated(cpus: list[int]) -> tuple[int, ...]:
    """So that not every limited job of the host sits on the first CPU."""
    start = os.getpid() % len(cpus)
    return (*cpus[start:], *cpus[:start])


def _number_in(path: str) -> int:
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        return int(file.read())
    return -1
