"""Payload files by digest: the agent's own tests send them; here is what only shows over a long life."""

import os
from pathlib import Path

from cronium_runner.jobdir import StateDirectory
from cronium_runner.payload_cache import MAX_REMEMBERED, PayloadCache


def test_an_agent_that_has_seen_many_payloads_remembers_a_bounded_number(tmp_path: Path) -> None:
    cache = PayloadCache(StateDirectory.open(str(tmp_path / "state")))
    for number in range(2 * MAX_REMEMBERED):
        cache.remember(f"{number:064x}")
    assert f"{MAX_REMEMBERED} remembered" in repr(cache)


def test_what_is_discarded_or_dropped_is_gone(tmp_path: Path) -> None:
    state = StateDirectory.open(str(tmp_path / "state"))
    cache = PayloadCache(state)
    incoming = cache.receive("0" * 64)
    incoming.write(b"some")
    incoming.discard()
    incoming.discard()
    assert os.listdir(state.payloads) == []
    Path(cache.path("1" * 64)).write_bytes(b"rotten")
    assert cache.has("1" * 64)
    cache.drop("1" * 64)
    assert not cache.has("1" * 64)
