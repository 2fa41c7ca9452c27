"""The spool: bytes as they came, up to the cap, and a loss that is always flagged."""

import hashlib
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cronium_runner.output import TAIL, Spool


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(0, 300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_the_head_is_kept_exactly_and_anything_more_is_flagged(tmp_path: Path, pieces: list[bytes], cap: int) -> None:
    path = tmp_path / "stdout"
    for left in tmp_path.iterdir():
        left.unlink()
    spool = Spool(str(path), cap=cap)
    for piece in pieces:
        spool.write(piece)
    summary = spool.close()
    content = b"".join(pieces)
    assert (path.read_bytes() if path.exists() else b"") == content[:cap]
    assert summary.size == min(len(content), cap)
    assert summary.sha256 == sha256(content[:cap])
    assert summary.truncated == (len(content) > cap)
    assert (tmp_path / "stdout.tail").exists() == (len(content) > cap)
    if len(content) > cap:
        assert (tmp_path / "stdout.tail").read_bytes() == content[cap:][-TAIL:]


def test_an_empty_stream_costs_no_file(tmp_path: Path) -> None:
    summary = Spool(str(tmp_path / "stdout")).close()
    assert list(tmp_path.iterdir()) == []
    assert (summary.size, summary.truncated, summary.sha256) == (0, False, sha256(b""))


def test_the_last_64_kib_of_a_truncated_stream_are_kept(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "stdout"), cap=10)
    content = os.urandom(300_000)
    for start in range(0, len(content), 7000):
        spool.write(content[start : start + 7000])
    assert spool.close().truncated
    assert (tmp_path / "stdout.tail").read_bytes() == content[-65536:]


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        spool = Spool(str(tmp_path / "stdout"), cap=1)
        spool.write(b"abc")
        spool.close()
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o600, 0o600]


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file of this process may grow over `limit` bytes: a disk that refuses, without a disk.

    Only around what is tested: the test runner's own output may be a file, too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_refuses_never_raises_and_what_was_kept_is_described(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    spool = Spool(str(path))
    content = os.urandom(10_000)
    with small_files(4096):
        spool.write(content[:3000])
        spool.write(content[3000:9000])
        spool.write(content[9000:])
        summary = spool.close()
    assert path.read_bytes() == content[:4096]
    assert (summary.size, summary.truncated, summary.sha256) == (4096, True, sha256(content[:4096]))
    assert spool.error is not None


def test_a_directory_that_is_gone_is_flagged_as_a_loss(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "gone" / "stdout"))
    spool.write(b"abc")
    summary = spool.close()
    assert (summary.size, summary.truncated, summary.sha256) == (0, True, sha256(b""))


def test_a_link_in_place_of_the_spool_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "stdout").symlink_to(tmp_path / "victim")
    spool = Spool(str(tmp_path / "stdout"))
    spool.write(b"abc")
    assert spool.close().truncated
    assert (tmp_path / "victim").read_text() == "precious"
