"""The pool: who gets which connection. Its decisions are pure; its acting is tried with connections that only count.

Real connections over a real server are in test_connection and tests/sshd.
"""

import asyncio
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_controller.errors import UnreachableError
from cronium_controller.pool import Entry, Limits, Pool, assign


class Counted:
    """Stands for a connection: open until it is closed or fails."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.number = next(self.numbers)
        self.has_failed = False
        self.closings = 0
        self.farewell = asyncio.Event()
        self.farewell.set()

    def is_closed(self) -> bool:
        return self.has_failed or self.closings > 0

    async def close(self) -> None:
        self.closings += 1
        await self.farewell.wait()


class Opener:
    """Counts what is opened; waits for `gate`, and raises what is in `failures` first."""

    def __init__(self) -> None:
        self.opened: list[Counted] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failures: list[Exception] = []

    async def __call__(self, key: str) -> Counted:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.opened.append(Counted())
        return self.opened[-1]


def make(opener: Opener, clock: Callable[[], float] | None = None, **limits: float) -> Pool[str, Counted]:
    return Pool(opener, limits=Limits(**limits), clock=clock)  # type: ignore[arg-type]


async def test_parallel_first_calls_open_one_connection() -> None:
    opener = Opener()
    opener.gate.clear()
    pool = make(opener)
    everybody_in = asyncio.Barrier(9)

    async def use() -> int:
        async with pool.lease("web01") as lease:
            await everybody_in.wait()
            return lease.connection.number

    callers = [asyncio.ensure_future(use()) for _ in range(9)]
    await asyncio.sleep(0)
    opener.gate.set()
    assert len(set(await asyncio.gather(*callers))) == 1
    assert len(opener.opened) == 1
    await pool.close_all_connections()
    assert opener.opened[0].closings == 1


async def test_more_sessions_than_the_server_allows_get_a_further_connection() -> None:
    opener = Opener()
    pool = make(opener, queue=0.01)
    async with pool.lease("web01") as first, pool.lease("web01") as second:
        assert first.connection is second.connection
        second.note_refused()  # MaxSessions 1
        async with pool.lease("web01") as third:
            assert third.connection is not first.connection
    async with pool.lease("web01") as fourth, pool.lease("web01") as fifth:
        assert fourth.connection is not fifth.connection or fourth.connection is third.connection
    await pool.close_all_connections()


async def test_callers_queue_when_all_connections_are_full_and_none_is_forgotten() -> None:
    opener = Opener()
    pool = make(opener, connections=2, queue=0)
    most = in_use = 0

    async def use() -> None:
        nonlocal most, in_use
        async with pool.lease("web01") as lease:
            lease._entry.capacity = 1
            in_use += 1
            most = max(most, in_use)
            await asyncio.sleep(0)
            in_use -= 1

    await asyncio.wait_for(asyncio.gather(*(use() for _ in range(60))), 10)
    assert len(opener.opened) <= 2
    assert most > 1
    await pool.close_all_connections()


async def test_the_failure_to_open_is_everybodys_who_waited_and_nobodys_after() -> None:
    opener = Opener()
    opener.gate.clear()
    opener.failures = [UnreachableError("host.unreachable", "no route", host="web01")]
    pool = make(opener)

    async def use() -> int:
        async with pool.lease("web01") as lease:
            return lease.connection.number

    callers = [asyncio.ensure_future(use()) for _ in range(3)]
    await asyncio.sleep(0)
    opener.gate.set()
    assert all(isinstance(error, UnreachableError) for error in await asyncio.gather(*callers, return_exceptions=True))
    assert await use() >= 0
    await pool.close_all_connections()


async def test_a_caller_that_gives_up_takes_nobody_elses_connection_away() -> None:
    opener = Opener()
    opener.gate.clear()
    pool = make(opener)

    async def use() -> int:
        async with pool.lease("web01") as lease:
            return lease.connection.number

    impatient, patient = asyncio.ensure_future(use()), asyncio.ensure_future(use())
    await asyncio.sleep(0)
    impatient.cancel()
    opener.gate.set()
    assert await patient == opener.opened[0].number
    assert impatient.cancelled()
    await pool.close_all_connections()


async def test_idle_and_old_connections_end_and_one_in_use_never_does() -> None:
    opener = Opener()
    now = 0.0
    pool = make(opener, clock=lambda: now, idle=300.0, max_age=1000.0)
    async with pool.lease("web01") as held:
        now = 5000.0
        async with pool.lease("web01") as other:
            assert other.connection is not held.connection, "too old for a new lease"
        assert not held.connection.is_closed()
    now = 5299.0
    async with pool.lease("web01") as again:
        assert again.connection is other.connection
    now = 5600.0
    async with pool.lease("web01") as fresh:
        assert fresh.connection is not again.connection
    await pool.close_all_connections()
    assert [connection.closings for connection in opener.opened] == [1, 1, 1]


async def test_an_idle_connection_ends_though_nobody_asks_again() -> None:
    opener = Opener()
    pool = make(opener, idle=0.01)
    async with pool.lease("web01"):
        pass
    async with asyncio.timeout(5):
        while not opener.opened[0].closings:
            await asyncio.sleep(0.005)
    await pool.close_all_connections()


async def test_a_connection_that_failed_or_was_suspected_is_not_handed_out_again() -> None:
    opener = Opener()
    pool = make(opener)
    async with pool.lease("web01") as first:
        first.connection.has_failed = True
    async with pool.lease("web01") as second:
        assert second.connection is not first.connection
        second.retire()
    async with pool.lease("web01") as third:
        assert third.connection is not second.connection
    await pool.close_all_connections()


async def test_closing_all_reaches_those_who_wait_for_one_being_opened() -> None:
    opener = Opener()
    opener.gate.clear()
    pool = make(opener)

    async def use() -> None:
        async with pool.lease("web01"):
            pass

    waiting = asyncio.ensure_future(use())
    await asyncio.sleep(0)
    await pool.close_all_connections()
    with pytest.raises(UnreachableError, match="closed while"):
        await waiting


ENTRIES = st.builds(
    lambda leases, capacity, idle, opened, old: Entry(
        Counted(), opened_at=opened, idle_since=max(opened, idle), leases=leases, capacity=capacity, is_retiring=old
    ),
    st.integers(0, 10), st.integers(1, 10), st.floats(0, 1000), st.floats(0, 1000), st.booleans(),
)  # fmt: skip


@given(st.lists(ENTRIES, max_size=12), st.integers(0, 1), st.sampled_from([None, 500.0]))
def test_assignments_are_sound(entries: list[Entry[Counted]], opening: int, max_age: float | None) -> None:
    decided = assign(entries, opening, 1000.0, Limits(max_age=max_age))
    assert all(entry.leases == 0 for entry in decided.close), "one in use is never closed"
    assert decided.use not in decided.close
    assert not (decided.use and decided.must_open)
    assert not (opening and decided.must_open), "single flight"
    if decided.use:
        assert decided.use.leases < decided.use.capacity
        assert not decided.use.is_retiring


async def test_who_waits_while_the_last_connection_is_swept_away_loses_none() -> None:
    opener = Opener()
    pool = make(opener, connections=1, queue=0.01, idle=1000.0)
    first = await pool.acquire("web01", is_resident=True)
    first.note_refused()  # one session
    waiting = asyncio.ensure_future(pool.acquire("web01"))
    await asyncio.sleep(0)
    first.connection.has_failed = True
    pool._sweep()
    later = await pool.acquire("web01")
    second = await waiting
    assert second.connection is later.connection
    for lease in (first, second, later):
        lease.give_back()
    await pool.close_all_connections()
    assert [connection.closings for connection in opener.opened] == [1, 1]


async def test_closing_what_nobody_uses_leaves_what_somebody_uses_or_waits_for() -> None:
    opener = Opener()
    pool = make(opener)
    async with pool.lease("web01") as held:
        await pool.close_idle_connections("web01")
        assert not held.connection.is_closed()
    await pool.close_idle_connections("web01")
    assert held.connection.is_closed()
    opener.gate.clear()
    waiting = asyncio.ensure_future(pool.acquire("web01"))
    await asyncio.sleep(0)
    await pool.close_idle_connections("web01")
    opener.gate.set()
    lease = await waiting
    assert not lease.connection.is_closed()
    lease.give_back()
    opener.gate.clear()
    leaving = asyncio.ensure_future(pool.acquire("web02"))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await pool.close_idle_connections("web02")
    opener.gate.set()
    await asyncio.sleep(0)
    assert len(opener.opened) == 2, "nobody waited for the third"


async def test_a_host_that_hangs_at_its_farewell_keeps_no_other_from_its_own() -> None:
    pool = make(Opener())
    async with pool.lease("web01") as hanging, pool.lease("web02") as other:
        hanging.connection.farewell.clear()
    leaving = asyncio.ensure_future(pool.close_idle_connections("web01"))
    async with asyncio.timeout(5):
        while not hanging.connection.is_closed():
            await asyncio.sleep(0)
        await pool.close_idle_connections("web02")
    assert other.connection.is_closed()
    assert not leaving.done()
    again = asyncio.ensure_future(pool.close_idle_connections("web01"))
    await asyncio.sleep(0.01)
    assert not again.done(), "whoever asks again waits as well"
    hanging.connection.farewell.set()
    async with asyncio.timeout(5):
        await asyncio.gather(leaving, again)


async def test_one_that_is_too_old_ends_with_its_last_lease_and_idle_ones_without_being_asked() -> None:
    opener = Opener()
    now = 0.0
    pool = make(opener, clock=lambda: now, idle=1000.0, max_age=100.0)
    async with pool.lease("web01") as held:
        now = 100.0
        assert not held.connection.is_closed()
    await asyncio.sleep(0)
    assert held.connection.is_closed()
    pool = make(opener, idle=1000.0, max_age=0.05)
    async with pool.lease("web01") as idle:
        pass
    async with asyncio.timeout(5):
        while not idle.connection.is_closed():
            await asyncio.sleep(0.005)
