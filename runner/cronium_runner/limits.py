"""Which mechanism enforces which limit on this host. Pure: facts about the host in, a plan out, or a refusal.

The kernel does it where a control group's controller is there; else a resource limit, the CPU mask, or the supervisor,
which looks at the tree several times a second. Whatever it is, the meaning is the same: memory counts what is touched,
not what is reserved, and processes counts threads as well. What can't be enforced is refused, never weakened.
"""

import math
import resource
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from .errors import RunnerError
from .wire.limits import Limits, shown

CPU_PERIOD: Final = 100_000
"""Microseconds, cpu.max's own default: a job over its share waits a tenth of a second at most."""
LEAST_QUOTA: Final = 1_000
"""Microseconds; the kernel takes no less."""
MEMORY_BACKSTOP: Final = 8
LEAST_MEMORY_BACKSTOP: Final = 4 << 30
"""RLIMIT_DATA per process beside a sampled memory limit: eight times the limit, 4 GiB at least. It keeps one process
from taking the whole host between two samples, and is so high because it counts what is only reserved as well."""
PROCESS_BACKSTOP: Final = 256
"""RLIMIT_NPROC beside a sampled limit leaves room for as many as the limit, or this, above what the account has now:
it is counted for the account, so the account's other jobs share it."""


class Facts(NamedTuple):
    """What is so on this host, for this account."""

    is_privileged: bool
    controllers: frozenset[str]
    """Those that a group of ours would have."""
    hard: Mapping[int, int]
    """Hard resource limits, by resource; -1 is unlimited."""
    most_open_files: int
    """What the kernel allows even root."""
    cpus: tuple[int, ...]
    """Those that we may run on."""
    account_threads: int
    """How many the account has now."""
    nice: int
    lowest_nice: int
    """The lowest that the account may set."""


class Plan(NamedTuple):
    """How each limit is enforced. `mechanisms` says it for a person, by the limit's key."""

    limits: Limits = Limits()
    mechanisms: Mapping[str, str] = MappingProxyType({})
    settings: Mapping[str, str] = MappingProxyType({})
    """Files of the control group, and what is written to them."""
    resources: tuple[tuple[str, int, int], ...] = ()
    """Limit's key, resource and value, soft and hard."""
    cpus: tuple[int, ...] | None = None
    nice: int | None = None
    sampled: tuple[str, ...] = ()
    """Keys of the limits that the supervisor enforces by looking."""


def plan(limits: Limits, facts: Facts) -> Plan:
    """The plan for these limits. Raises RunnerError `limits.impossible` naming the key, its value and the bound."""
    making = _Making(limits, facts)
    for key in limits.to_json():
        getattr(making, key)()
    return Plan(
        limits,
        making.mechanisms,
        making.settings,
        tuple(making.resources),
        making.cpus,
        making.chosen_nice,
        tuple(making.sampled),
    )


def impossible(limits: Limits, key: str, bound: str) -> RunnerError:
    """The refusal of a limit that can't be set here."""
    return RunnerError(
        "limits.impossible",
        f"the limit {shown(key, getattr(limits, key))} cannot be set on this host: {bound}; nothing was started",
    )


class _Making:
    """A plan in the making: one method for each key."""

    def __init__(self, limits: Limits, facts: Facts) -> None:
        self._limits = limits
        self._facts = facts
        self.mechanisms: dict[str, str] = {}
        self.settings: dict[str, str] = {}
        self.resources: list[tuple[str, int, int]] = []
        self.sampled: list[str] = []
        self.cpus: tuple[int, ...] | None = None
        self.chosen_nice: int | None = None

    def memory(self) -> None:
        most = self._limits.memory or 0
        if "memory" in self._facts.controllers:
            # Without memory.oom.group the kernel would end one process of the tree and let the others go on without.
            self.settings |= {"memory.max": str(most), "memory.swap.max": "0", "memory.oom.group": "1"}
            self.mechanisms["memory"] = "cgroup memory.max"
            return
        self.sampled.append("memory")
        backstop = max(most * MEMORY_BACKSTOP, LEAST_MEMORY_BACKSTOP)
        hard = self._facts.hard.get(resource.RLIMIT_DATA, -1)
        if hard == -1 or backstop <= hard:
            self.resources.append(("memory", resource.RLIMIT_DATA, backstop))
        self.mechanisms["memory"] = "supervisor, by looking 10 times a second; RLIMIT_DATA far above"

    def cpu(self) -> None:
        cores = self._limits.cpu or 0.0
        if "cpu" in self._facts.controllers:
            quota = max(LEAST_QUOTA, int(min(cores, len(self._facts.cpus)) * CPU_PERIOD))
            self.settings["cpu.max"] = f"{quota} {CPU_PERIOD}"
            self.mechanisms["cpu"] = "cgroup cpu.max"
            return
        count = math.ceil(min(cores, len(self._facts.cpus)))
        if count < len(self._facts.cpus):
            self.cpus = self._facts.cpus[:count]
        self.mechanisms["cpu"] = f"sched_setaffinity, {count} of {len(self._facts.cpus)} CPUs"

    def processes(self) -> None:
        most = self._limits.processes or 0
        if "pids" in self._facts.controllers:
            self.settings["pids.max"] = str(most)
            self.mechanisms["processes"] = "cgroup pids.max"
            return
        self.sampled.append("processes")
        self.mechanisms["processes"] = "supervisor, by looking 10 times a second"
        if self._facts.is_privileged:
            return  # the kernel doesn't apply RLIMIT_NPROC to root
        hard = self._facts.hard.get(resource.RLIMIT_NPROC, -1)
        if hard != -1 and most > hard:
            raise impossible(self._limits, "processes", f"the account may have {hard} (RLIMIT_NPROC)")
        backstop = self._facts.account_threads + max(PROCESS_BACKSTOP, most)
        self.resources.append(("processes", resource.RLIMIT_NPROC, backstop if hard == -1 else min(hard, backstop)))
        self.mechanisms["processes"] += "; RLIMIT_NPROC far above"

    def open_files(self) -> None:
        self._resource("open_files", resource.RLIMIT_NOFILE, "RLIMIT_NOFILE", self._facts.most_open_files)

    def file_size(self) -> None:
        self._resource("file_size", resource.RLIMIT_FSIZE, "RLIMIT_FSIZE", -1)

    def nice(self) -> None:
        # 19 is the nicest there is: more than that changes nothing (setpriority(2)).
        target = min(19, max(-20, self._facts.nice + (self._limits.nice or 0)))
        if target < self._facts.nice and target < self._facts.lowest_nice:
            bound = f"we run at {self._facts.nice} and the account may go down to {self._facts.lowest_nice}"
            raise impossible(self._limits, "nice", bound + " (RLIMIT_NICE)")
        self.chosen_nice = target
        self.mechanisms["nice"] = f"setpriority to {target}"

    def _resource(self, key: str, number: int, name: str, most: int) -> None:
        value = getattr(self._limits, key)
        hard = self._facts.hard.get(number, -1)
        if hard != -1 and value > hard and not self._facts.is_privileged:
            raise impossible(self._limits, key, f"the account's hard limit is {hard} ({name})")
        if most != -1 and value > most:
            raise impossible(self._limits, key, f"the kernel's is {most} (fs.nr_open)")
        self.resources.append((key, number, value))
        self.mechanisms[key] = name
