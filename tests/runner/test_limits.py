"""Which mechanism enforces which limit, decided from facts; and how limits are written."""

import resource
from typing import Any

import pytest

from cronium_runner import limits
from cronium_runner.errors import RunnerError
from cronium_runner.wire.limits import LimitError, Limits, from_mapping, from_words, shown

ALL = frozenset({"memory", "pids", "cpu"})
GIB = 1 << 30


def facts(**known: Any) -> limits.Facts:
    """An ordinary account without controllers, unless said otherwise."""
    usual: dict[str, Any] = {
        "is_privileged": False,
        "controllers": frozenset(),
        "hard": {},
        "most_open_files": 1_048_576,
        "cpus": (2, 3, 0, 1),
        "account_threads": 40,
        "nice": 0,
        "lowest_nice": 0,
    }
    return limits.Facts(**{**usual, **known})


# How they are written


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["memory=512MiB"], Limits(memory=512 << 20)),
        (["memory=1000", "memory=1KiB"], Limits(memory=1024)),
        (["cpu=0.5", "processes=100"], Limits(cpu=0.5, processes=100)),
        (["cpu=2", "open_files=64", "file_size=3TiB", "nice=-5"], Limits(None, 2.0, None, 64, 3 << 40, -5)),
        ([], Limits()),
    ],
)
def test_words(words: list[str], found: Limits) -> None:
    assert from_words(words) == found
    assert from_mapping(found.to_json()) == found


@pytest.mark.parametrize(
    "word",
    ["memory", "memory=", "memory=-1", "memory=1GB", "memory=1e9", "cpu=0", "cpu=nan", "cpu=inf", "cpu=two", "nice=20",
     "nice=1.5", "processes=0", "open_files=1_0", "disk=1", "=1", "processes= 5", "memory=" + "9" * 40],
)  # fmt: skip
def test_words_that_are_refused_name_the_key(word: str) -> None:
    with pytest.raises(LimitError, match=word.partition("=")[0] or "unknown limit"):
        from_words([word])


@pytest.mark.parametrize("value", [None, True, [], {}, "x", 1.5])
def test_values_of_the_wrong_type(value: object) -> None:
    with pytest.raises(LimitError, match=r"limits\.memory"):
        from_mapping({"memory": value})


def test_a_submissions_limits_beat_the_manifests_key_by_key() -> None:
    assert Limits(memory=1, nice=0).or_else(Limits(memory=2, cpu=3.0, nice=4)) == Limits(memory=1, cpu=3.0, nice=0)
    assert Limits(memory=1).or_else(None) == Limits(memory=1)


def test_they_are_shown_as_they_would_be_written() -> None:
    told = [shown(key, value) for key, value in Limits(1536 << 20, 0.5, 9, 64, 1000, -5).to_json().items()]
    assert told == ["memory=1536MiB", "cpu=0.5", "processes=9", "open_files=64", "file_size=1000", "nice=-5"]


# By what they are enforced


def test_control_groups_where_there_are_controllers() -> None:
    made = limits.plan(Limits(memory=GIB, cpu=1.5, processes=10), facts(controllers=ALL))
    assert made.settings == {
        "memory.max": str(GIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "pids.max": "10",
    }
    assert (made.sampled, made.resources, made.cpus) == ((), (), None)
    assert made.mechanisms == {"memory": "cgroup memory.max", "cpu": "cgroup cpu.max", "processes": "cgroup pids.max"}


def test_each_controller_counts_for_itself() -> None:
    made = limits.plan(Limits(memory=GIB, cpu=1, processes=10), facts(controllers=frozenset({"pids"})))
    assert made.settings == {"pids.max": "10"}
    assert made.sampled == ("memory",)
    assert made.cpus == (2,)


def test_without_controllers_the_supervisor_looks_and_resource_limits_stand_behind_it() -> None:
    made = limits.plan(Limits(memory=GIB, processes=10), facts())
    assert made.settings == {}
    assert made.sampled == ("memory", "processes")
    assert made.resources == (
        ("memory", resource.RLIMIT_DATA, 8 * GIB),
        ("processes", resource.RLIMIT_NPROC, 40 + limits.PROCESS_BACKSTOP),
    )


def test_a_backstop_never_stands_above_the_hard_limit() -> None:
    hard = {resource.RLIMIT_DATA: 2 * GIB, resource.RLIMIT_NPROC: 100}
    made = limits.plan(Limits(memory=GIB, processes=10), facts(hard=hard))
    assert made.resources == (("processes", resource.RLIMIT_NPROC, 100),)


def test_root_has_no_process_backstop_as_the_kernel_ignores_it() -> None:
    assert limits.plan(Limits(processes=10), facts(is_privileged=True)).resources == ()


@pytest.mark.parametrize(("cores", "count"), [(0.1, 1), (1, 1), (1.2, 2), (3, 3)])
def test_cores_without_a_controller_are_whole_processors(cores: float, count: int) -> None:
    assert limits.plan(Limits(cpu=cores), facts()).cpus == (2, 3, 0, 1)[:count]


@pytest.mark.parametrize("cores", [4, 3.5, 1e300])
def test_as_many_cores_as_there_are_need_nothing(cores: float) -> None:
    made = limits.plan(Limits(cpu=cores), facts())
    assert made.cpus is None
    assert "4 of 4" in made.mechanisms["cpu"]
    assert limits.plan(Limits(cpu=cores), facts(controllers=ALL)).settings["cpu.max"].endswith(" 100000")


def test_a_tiny_share_is_the_least_that_the_kernel_takes() -> None:
    assert limits.plan(Limits(cpu=0.001), facts(controllers=ALL)).settings == {"cpu.max": "1000 100000"}


@pytest.mark.parametrize(
    ("asked", "known", "said"),
    [
        (Limits(open_files=65), {"hard": {resource.RLIMIT_NOFILE: 64}}, ["open_files=65", "64"]),
        (Limits(open_files=2_000_000), {"is_privileged": True}, ["open_files=2000000", "1048576"]),
        (Limits(file_size=GIB), {"hard": {resource.RLIMIT_FSIZE: 1000}}, ["file_size=1GiB", "1000"]),
        (Limits(processes=200), {"hard": {resource.RLIMIT_NPROC: 100}}, ["processes=200", "100"]),
        (Limits(nice=-1), {}, ["nice=-1", "down to 0"]),
        (Limits(nice=-10), {"nice": 5, "lowest_nice": 0}, ["nice=-10", "we run at 5"]),
    ],
)
def test_what_cannot_be_is_refused_with_key_value_and_bound(
    asked: Limits, known: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(RunnerError) as caught:
        limits.plan(asked, facts(**known))
    assert caught.value.code == "limits.impossible"
    assert all(part in caught.value.message for part in said), caught.value.message


def test_root_may_go_above_hard_limits() -> None:
    hard = {resource.RLIMIT_NOFILE: 64, resource.RLIMIT_FSIZE: 1000}
    made = limits.plan(Limits(open_files=65, file_size=GIB), facts(is_privileged=True, hard=hard, lowest_nice=-20))
    assert made.resources == (("open_files", resource.RLIMIT_NOFILE, 65), ("file_size", resource.RLIMIT_FSIZE, GIB))


@pytest.mark.parametrize(
    ("nice", "now", "lowest", "becomes"),
    [(5, 0, 0, 5), (10, 15, 0, 19), (-3, 5, 0, 2), (-20, 0, -20, -20), (0, 3, 0, 3)],
)
def test_nice_is_added_to_ours(nice: int, now: int, lowest: int, becomes: int) -> None:
    made = limits.plan(Limits(nice=nice), facts(nice=now, lowest_nice=lowest))
    assert made.nice == becomes
