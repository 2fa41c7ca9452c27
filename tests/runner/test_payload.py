"""Payload: every hostile archive is refused by its own code, touches nothing outside and leaves nothing behind."""

import contextlib
import hashlib
import io
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import payload_bytes as pb
from cronium_runner import archive, payload, tree
from cronium_runner.errors import PayloadError, RunnerError, StateDirectoryError
from payload_bytes import GNU, V7, folder, gnu_long_name, header, member, pax

GOOD = member(b"script.sh", b"echo hi\n")
LONG = b"d" * 247


def repeated(count: int) -> bytes:
    return b"".join(header(b"f%d" % number) for number in range(count))


def cve_2025_4517() -> bytes:
    """Folders so long that a resolved path passes PATH_MAX, links up through them, a file through those."""
    parts = []
    path = b""
    for letter in b"abcdefghijklmnop":
        path += LONG + b"/"
        parts.append(gnu_long_name(path) + folder(b"x"))
        parts.append(member(b"K", LONG + b"\0", kind=b"K") + header(bytes([letter]), 0, b"2"))
    parts.append(header(b"escape", 0, b"2", link=b"a/b/c/../../../../outside"))
    parts.append(member(b"escape/owned", b"x"))
    return pb.archive(*parts)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


# Name, bytes, code. The outside that names point at is ../outside, beside the work directory.
HOSTILE: list[tuple[str, Callable[[], bytes], str]] = [
    # Names
    ("dotdot", lambda: pb.archive(member(b"../outside/owned", b"x")), "payload.unsafe_name"),
    ("dotdot inside", lambda: pb.archive(member(b"a/../../outside/owned", b"x")), "payload.unsafe_name"),
    ("dotdot harmless", lambda: pb.archive(member(b"a/../b", b"x")), "payload.unsafe_name"),
    ("dotdot at the end", lambda: pb.archive(folder(b"a/..")), "payload.unsafe_name"),
    ("dotdot alone", lambda: pb.archive(folder(b"..")), "payload.unsafe_name"),
    ("dotdot in prefix", lambda: pb.archive(member(b"owned", b"x", prefix=b"../outside")), "payload.unsafe_name"),
    ("dotdot in pax", lambda: pb.archive(pax({b"path": b"../outside/owned"}), GOOD), "payload.unsafe_name"),
    ("dotdot in GNU name", lambda: pb.archive(gnu_long_name(b"../outside/owned"), GOOD), "payload.unsafe_name"),
    ("dotdot as macOS file", lambda: pb.archive(member(b"../outside/._owned", b"x")), "payload.unsafe_name"),
    ("absolute", lambda: pb.archive(member(b"/tmp/cronium-owned", b"x")), "payload.unsafe_name"),
    ("absolute folder", lambda: pb.archive(folder(b"/")), "payload.unsafe_name"),
    ("absolute in prefix", lambda: pb.archive(member(b"owned", b"x", prefix=b"/tmp")), "payload.unsafe_name"),
    ("absolute in pax", lambda: pb.archive(pax({b"path": b"//tmp/owned"}), GOOD), "payload.unsafe_name"),
    ("absolute in GNU name", lambda: pb.archive(gnu_long_name(b"/tmp/owned"), GOOD), "payload.unsafe_name"),
    ("empty", lambda: pb.archive(member(b"", b"x")), "payload.unsafe_name"),
    ("only dot", lambda: pb.archive(member(b".", b"x")), "payload.unsafe_name"),
    ("file with slash", lambda: pb.archive(member(b"a/", b"x")), "payload.unsafe_name"),
    ("NUL in header", lambda: pb.archive(member(b"script.sh\x00.txt", b"x")), "payload.unsafe_name"),
    ("NUL in prefix", lambda: pb.archive(member(b"s", b"x", prefix=b"a\x00b")), "payload.unsafe_name"),
    ("NUL in pax", lambda: pb.archive(pax({b"path": b"a\x00b"}), GOOD), "payload.unsafe_name"),
    ("NUL in GNU name", lambda: pb.archive(gnu_long_name(b"a\x00b"), GOOD), "payload.unsafe_name"),
    ("not UTF-8", lambda: pb.archive(member(b"caf\xe9", b"x")), "payload.unsafe_name"),
    ("component too long", lambda: pb.archive(pax({b"path": b"n" * 256}), GOOD), "payload.unsafe_name"),
    ("name too long", lambda: pb.archive(pax({b"path": b"/".join([b"n" * 200] * 6)}), GOOD), "payload.unsafe_name"),
    ("too deep", lambda: pb.archive(member(b"/".join([b"d"] * 33), b"x")), "payload.unsafe_name"),
    ("very deep", lambda: pb.archive(pax({b"path": b"d/" * 100_000}), GOOD), "payload.unsafe_name"),
    ("CVE-2025-4517", cve_2025_4517, "payload.unsafe_type"),
    ("long folders", lambda: pb.archive(gnu_long_name((LONG + b"/") * 5), folder(b"x")), "payload.unsafe_name"),
    # Twice the same
    ("duplicate", lambda: pb.archive(GOOD, GOOD), "payload.duplicate_name"),
    ("duplicate by dot", lambda: pb.archive(GOOD, member(b"./script.sh", b"y")), "payload.duplicate_name"),
    ("duplicate by slashes", lambda: pb.archive(member(b"a/b"), member(b"a//b")), "payload.duplicate_name"),
    (
        "duplicate by pax",
        lambda: pb.archive(GOOD, pax({b"path": b"script.sh"}), member(b"o")),
        "payload.duplicate_name",
    ),
    ("duplicate folder", lambda: pb.archive(folder(b"a/"), folder(b"a")), "payload.duplicate_name"),
    ("file as folder", lambda: pb.archive(member(b"a", b"x"), member(b"a/b", b"y")), "payload.duplicate_name"),
    ("file as deep folder", lambda: pb.archive(member(b"a", b"x"), member(b"a/b/c", b"y")), "payload.duplicate_name"),
    ("file then folder", lambda: pb.archive(member(b"a", b"x"), folder(b"a")), "payload.duplicate_name"),
    ("folder then file", lambda: pb.archive(folder(b"a"), member(b"a", b"x")), "payload.duplicate_name"),
    ("implied folder then file", lambda: pb.archive(member(b"a/b"), member(b"a", b"x")), "payload.duplicate_name"),
    # Types
    ("symbolic link", lambda: pb.archive(header(b"l", 0, b"2", link=b"/etc/passwd")), "payload.unsafe_type"),
    ("link inside", lambda: pb.archive(GOOD, header(b"l", 0, b"2", link=b"script.sh")), "payload.unsafe_type"),
    (
        "file through link",
        lambda: pb.archive(header(b"l", 0, b"2", link=b"../outside"), member(b"l/owned", b"x")),
        "payload.unsafe_type",
    ),
    ("hard link", lambda: pb.archive(header(b"l", 0, b"1", link=b"../outside/kept")), "payload.unsafe_type"),
    ("macOS-named link", lambda: pb.archive(header(b"._l", 0, b"2", link=b"/etc")), "payload.unsafe_type"),
    (
        "GNU long link",
        lambda: pb.archive(member(b"L", b"t\0", kind=b"K"), header(b"l", 0, b"2")),
        "payload.unsafe_type",
    ),
    ("character device", lambda: pb.archive(header(b"null", 0, b"3")), "payload.unsafe_type"),
    ("block device", lambda: pb.archive(header(b"sda", 0, b"4")), "payload.unsafe_type"),
    ("FIFO", lambda: pb.archive(header(b"pipe", 0, b"6")), "payload.unsafe_type"),
    ("contiguous", lambda: pb.archive(member(b"c", b"x", kind=b"7")), "payload.unsafe_type"),
    ("GNU sparse", lambda: pb.archive(member(b"s", b"x", kind=b"S", magic=GNU)), "payload.unsafe_type"),
    ("pax sparse", lambda: pb.archive(pax({b"GNU.sparse.realsize": b"9" * 12}), GOOD), "payload.unsafe_type"),
    ("volume label", lambda: pb.archive(header(b"v", 0, b"V", magic=GNU)), "payload.unsafe_type"),
    ("multi-volume", lambda: pb.archive(header(b"m", 0, b"M", magic=GNU)), "payload.unsafe_type"),
    ("GNU directory dump", lambda: pb.archive(header(b"d", 0, b"D", magic=GNU)), "payload.unsafe_type"),
    ("unknown type", lambda: pb.archive(header(b"q", 0, b"Q")), "payload.unsafe_type"),
    # gzip
    ("empty file", lambda: b"", "payload.not_gzip"),
    ("plain tar", lambda: GOOD + pb.END, "payload.not_gzip"),
    ("zip", lambda: b"PK\x03\x04" + bytes(60), "payload.not_gzip"),
    ("half a magic", lambda: b"\x1f", "payload.not_gzip"),
    ("only a magic", lambda: b"\x1f\x8b", "payload.damaged"),
    ("only a gzip header", pb.gzip_header, "payload.damaged"),
    ("unknown method", lambda: b"\x1f\x8b\x07" + bytes(40), "payload.damaged"),
    ("reserved gzip flags", lambda: pb.gzip_by_hand(GOOD + pb.END, flags=0xE0), "payload.damaged"),
    (
        "wrong gzip header checksum",
        lambda: pb.gzip_by_hand(GOOD + pb.END, flags=2, extra=b"\0\0"),
        "payload.damaged",
    ),
    ("wrong CRC", lambda: pb.gzip_by_hand(GOOD + pb.END, crc=1), "payload.damaged"),
    ("wrong length", lambda: pb.gzip_by_hand(GOOD + pb.END, size=1), "payload.damaged"),
    ("flipped bit", lambda: flipped(pb.archive(GOOD, member(b"r", bytes(range(256)) * 9)), 90), "payload.damaged"),
    ("missing tail", lambda: pb.archive(GOOD)[:-1], "payload.damaged"),
    ("missing trailer", lambda: pb.archive(GOOD)[:-8], "payload.damaged"),
    ("half", lambda: (lambda whole: whole[: len(whole) // 2])(pb.archive(GOOD)), "payload.damaged"),
    ("trailing byte", lambda: pb.archive(GOOD) + b"x", "payload.trailing_data"),
    ("trailing zeros", lambda: pb.archive(GOOD) + bytes(512), "payload.trailing_data"),
    ("second member", lambda: pb.archive(GOOD) + pb.archive(member(b"b")), "payload.trailing_data"),
    ("second empty member", lambda: pb.archive(GOOD) + pb.gzipped(b""), "payload.trailing_data"),
    (
        "second member after a buffer",
        lambda: pb.archive(member(b"r", os.urandom((16 << 10) - 300))) + pb.archive(GOOD),
        "payload.trailing_data",
    ),
    # tar
    ("nothing in it", lambda: pb.gzipped(b""), "payload.damaged"),
    ("text in it", lambda: pb.gzipped(b"#!/bin/sh\n" * 100), "payload.damaged"),
    ("no end", lambda: pb.archive(GOOD, end=b""), "payload.damaged"),
    ("half an end", lambda: pb.archive(GOOD, end=bytes(512)), "payload.damaged"),
    ("content cut short", lambda: pb.archive(header(b"a", 2000), bytes(600), end=b""), "payload.damaged"),
    ("header cut short", lambda: pb.archive(GOOD, header(b"a")[:300], end=b""), "payload.damaged"),
    ("member after one zero block", lambda: pb.archive(GOOD, bytes(512), member(b"b")), "payload.damaged"),
    ("member after the end", lambda: pb.archive(GOOD, pb.END, member(b"b", b"x")), "payload.trailing_data"),
    ("text after the end", lambda: pb.archive(GOOD, pb.END, bytes(100_000), b"x"), "payload.trailing_data"),
    ("wrong checksum", lambda: pb.archive(header(b"a", checksum=b"000001\0 ")), "payload.damaged"),
    ("checksum of letters", lambda: pb.archive(header(b"a", checksum=b"checksum")), "payload.damaged"),
    ("size of letters", lambda: pb.archive(header(b"a", size_field=b"zzzzzzzzzzz\0")), "payload.damaged"),
    ("size below zero", lambda: pb.archive(header(b"a", size_field=b"\xff" * 12)), "payload.damaged"),
    ("signed octal", lambda: pb.archive(header(b"a", size_field=b"-0000000001\0")), "payload.damaged"),
    ("mode of letters", lambda: pb.archive(header(b"a", mode_field=b"rwxr-xr-")), "payload.damaged"),
    ("unknown magic", lambda: pb.archive(header(b"a", magic=b"zstar\x0000")), "payload.damaged"),
    ("folder with content", lambda: pb.archive(member(b"a", b"x", kind=b"5")), "payload.damaged"),
    ("pax without member", lambda: pb.archive(GOOD, pax({b"path": b"b"})), "payload.damaged"),
    ("GNU name without member", lambda: pb.archive(GOOD, gnu_long_name(b"b")), "payload.damaged"),
    ("pax length too long", lambda: pb.archive(pax(b"99 path=a\n"), GOOD), "payload.damaged"),
    ("pax length too short", lambda: pb.archive(pax(b"3 path=a\n"), GOOD), "payload.damaged"),
    ("pax length zero", lambda: pb.archive(pax(b"0 path=a\n"), GOOD), "payload.damaged"),
    ("pax length missing", lambda: pb.archive(pax(b"path=a\n"), GOOD), "payload.damaged"),
    ("pax length negative", lambda: pb.archive(pax(b"-9 path=a\n"), GOOD), "payload.damaged"),
    ("pax length superscript", lambda: pb.archive(pax("¹0 path=a\n".encode()), GOOD), "payload.damaged"),
    ("pax without equals", lambda: pb.archive(pax(b"9 pathab\n"), GOOD), "payload.damaged"),
    ("pax without newline", lambda: pb.archive(pax(b"9 path=ab"), GOOD), "payload.damaged"),
    ("pax size of letters", lambda: pb.archive(pax({b"size": b"many"}), GOOD), "payload.damaged"),
    ("pax size below zero", lambda: pb.archive(pax({b"size": b"-1"}), GOOD), "payload.damaged"),
    ("pax size without end", lambda: pb.archive(pax({b"size": b"9" * 5000}), GOOD), "payload.damaged"),
    ("pax size past the end", lambda: pb.archive(pax({b"size": b"99999"}), GOOD), "payload.damaged"),
    ("pax size hides a member", lambda: pb.archive(pax({b"size": b"0"}), GOOD), "payload.damaged"),
    # Bombs
    (
        "announced terabyte",
        lambda: pb.archive(header(b"a", size_field=b"\x80" + b"\0" * 5 + b"\1" + bytes(5))),
        "payload.too_large",
    ),
    ("announced in pax", lambda: pb.archive(pax({b"size": b"9" * 20}), GOOD), "payload.too_large"),
    ("zeros in a file", lambda: pb.zeros(200 << 20, header(b"a", 200 << 20)), "payload.ratio"),
    ("zeros in a macOS file", lambda: pb.zeros(200 << 20, header(b"._a", 200 << 20)), "payload.ratio"),
    ("zeros in a pax comment", lambda: pb.zeros(200 << 20, header(b"g", 200 << 20, b"g")), "payload.ratio"),
    ("zeros in a link name", lambda: pb.zeros(200 << 20, header(b"K", 200 << 20, b"K")), "payload.ratio"),
    ("zeros in a pax header", lambda: pb.zeros(200 << 20, header(b"x", 200 << 20, b"x")), "payload.too_large"),
    ("zeros in a GNU name", lambda: pb.zeros(200 << 20, header(b"L", 200 << 20, b"L")), "payload.too_large"),
    ("zeros after the end", lambda: pb.zeros(200 << 20, GOOD), "payload.ratio"),
    ("100,000 entries", lambda: pb.archive(repeated(100_000)), "payload.too_many_entries"),
    (
        "10,001 pax headers",
        lambda: pb.archive(*(pax({b"comment": os.urandom(99).hex().encode()}) for _ in range(10_001))),
        "payload.too_many_entries",
    ),
]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(("build", "code"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_payload(tmp_path: Path, build: Callable[[], bytes], code: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    before = snapshot(tmp_path)
    work = tmp_path / "work"
    work.mkdir(0o700)
    hostile = io.BytesIO(build())
    open_descriptors = len(os.listdir("/proc/self/fd"))

    with pytest.raises(RunnerError) as caught:
        payload.unpack(hostile, str(work))

    assert caught.value.code == code, caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300
    assert len(os.listdir("/proc/self/fd")) == open_descriptors
    payload.remove_tree(str(work))
    assert snapshot(tmp_path) == before
    assert not os.path.lexists("/tmp/cronium-owned")


def test_there_are_enough_hostile_payloads() -> None:
    assert len({name for name, _, _ in HOSTILE}) == len(HOSTILE) >= 100


BOMBS = [case for case in HOSTILE if "zeros in" in case[0] or ",00" in case[0] or "very deep" in case[0]]

UNPACK_IN_LITTLE_MEMORY = """
import os, sys
sys.path[:0] = sys.argv[3:]
from cronium_runner import payload
from cronium_runner.errors import RunnerError
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
idle = resident()
try:
    payload.unpack(sys.argv[1], sys.argv[2])
    print("unpacked", end=" ")
except RunnerError as error:
    print(error.code, end=" ")
# Not getrusage: its maximum survives exec and so would be the test process's own.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]
print(int(peak) * 1024 - idle)
"""


def memory_of_unpacking(tmp_path: Path, content: bytes) -> tuple[str, int]:
    """What unpacking in a process of its own said, and how many bytes above idle it needed."""
    (tmp_path / "p.tar.gz").write_bytes(content)
    (tmp_path / "work").mkdir()
    runner = str(Path(payload.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", UNPACK_IN_LITTLE_MEMORY, tmp_path / "p.tar.gz", tmp_path / "work", runner],
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    code, above_idle = done.stdout.split()
    return code.decode(), int(above_idle)


@pytest.mark.parametrize(("build", "code"), [case[1:] for case in BOMBS], ids=[case[0] for case in BOMBS])
def test_bombs_need_little_memory(tmp_path: Path, build: Callable[[], bytes], code: str) -> None:
    said, above_idle = memory_of_unpacking(tmp_path, build())
    assert said == code
    assert above_idle < 16 << 20  # four times better than promised


def test_a_large_honest_payload_needs_little_memory(tmp_path: Path) -> None:
    content = pb.archive(member(b"big", os.urandom(40 << 20)))
    said, above_idle = memory_of_unpacking(tmp_path, content)
    assert said == "unpacked"
    assert above_idle < 16 << 20
    assert (tmp_path / "work" / "big").stat().st_size == 40 << 20


def test_too_large_without_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1 << 20)
    content = pb.archive(*(member(b"f%d" % number, os.urandom(100_000)) for number in range(12)))
    with pytest.raises(PayloadError) as caught:
        payload.unpack(io.BytesIO(content), str(tmp_path))
    assert caught.value.code == "payload.too_large"


# What is accepted


def test_files_folders_and_modes(tmp_path: Path) -> None:
    os.umask(0o022)
    names = payload.unpack(
        io.BytesIO(
            pb.archive(
                pax({b"comment": b"of a commit"}, kind=b"g"),
                folder(b"./"),
                member(b"./script.sh", b"echo\n", mode=0o4777),
                folder(b"lib/", magic=GNU),
                member(b"lib/a.py", b"a = 1\n", mode=0o666, magic=GNU),
                member(b"deep/er/b", b"", mode=0o010, magic=V7),
                header(b"deep", 0, b"5", 0),
                header(b"old/", 0, b"\x00", magic=V7),
                member(b"._script.sh", b"resource fork"),
                member(b"lib/._a.py", b"resource fork"),
                member(b"with prefix", b"p", prefix=b"some/where"),
                pax({b"path": "name/ü".encode(), b"mtime": b"1.5", b"SCHILY.xattr.x": b"\0\n="}),
                member(b"short", b"long"),
                gnu_long_name(b"g" * 150),
                member(b"g" * 100, b"gnu", magic=GNU),
                pax({b"size": b"3"}),
                header(b"sized", 0) + pb.padded(b"abc"),
                member(b"sized in base 256", b"", size_field=b"\x80" + bytes(10) + b"\x02") + pb.padded(b"ab"),
                end=bytes(20 * 512),
            )
        ),
        str(tmp_path),
    )
    assert names == [
        "script.sh", "lib/a.py", "deep/er/b", "some/where/with prefix", "name/ü", "g" * 150, "sized",
        "sized in base 256",
    ]  # fmt: skip
    assert (tmp_path / "sized").read_bytes() == b"abc"
    assert (tmp_path / "sized in base 256").read_bytes() == b"ab"
    assert (tmp_path / "name/ü").read_bytes() == b"long"
    for path in tmp_path.rglob("*"):
        expected = 0o700 if path.is_dir() or path.name == "script.sh" else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    assert (tmp_path / "old").is_dir()
    assert not list(tmp_path.rglob("._*"))


FILES = {
    "manifest.yaml": b"version: v1\nentrypoint: script.sh\n",
    "script.sh": b"#!/bin/sh\necho hi\n",
    "lib/" + "n" * 120 + "/" + "m" * 80 + ".txt": bytes(range(256)) * 1000,
    "ünï/empty": b"",
}


def write_files(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "script.sh").chmod(0o755)


def assert_unpacks(content: bytes, work: Path) -> None:
    work.mkdir()
    assert sorted(payload.unpack(io.BytesIO(content), str(work))) == sorted(FILES)
    assert {name: (work / name).read_bytes() for name in FILES} == FILES
    assert os.access(work / "script.sh", os.X_OK)
    assert stat.S_IMODE((work / "manifest.yaml").stat().st_mode) == 0o600


@pytest.mark.parametrize("style", ["gnu", "oldgnu", "posix", "pax"])
def test_real_gnu_tar(tmp_path: Path, style: str) -> None:
    source = tmp_path / "source"
    write_files(source)
    packed = tmp_path / "p.tar.gz"
    subprocess.run(["tar", "-C", source, f"--format={style}", "-czf", packed, "."], check=True)
    assert_unpacks(packed.read_bytes(), tmp_path / "work")


@pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox here")
def test_real_busybox_tar(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_files(source)
    packed = tmp_path / "p.tar.gz"
    subprocess.run(["busybox", "tar", "-C", source, "-czf", packed, "."], check=True)
    assert_unpacks(packed.read_bytes(), tmp_path / "work")


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_real_python_tar(tmp_path: Path, style: int) -> None:
    source = tmp_path / "source"
    write_files(source)
    packed = tmp_path / "p.tar.gz"
    with tarfile.open(packed, "w:gz", format=style) as tar:
        tar.add(source, arcname=".")
    assert_unpacks(packed.read_bytes(), tmp_path / "work")


def test_into_a_descriptor(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert payload.unpack(io.BytesIO(pb.make_payload({"a/b": b"x"})), descriptor) == ["a/b"]
    finally:
        os.close(descriptor)
    assert (tmp_path / "a/b").read_bytes() == b"x"


def test_never_follows_a_link_that_is_already_there(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name, target in (("folder", outside), ("file", outside / "owned")):
        work = tmp_path / f"work-{name}"
        work.mkdir()
        (work / name).symlink_to(target)
        member_name = "folder/owned" if name == "folder" else "file"
        with pytest.raises(StateDirectoryError):
            payload.unpack(io.BytesIO(pb.make_payload({member_name: b"x"})), str(work))
    (tmp_path / "linked").symlink_to(outside)
    with pytest.raises(StateDirectoryError):
        payload.unpack(io.BytesIO(pb.make_payload({"owned": b"x"})), str(tmp_path / "linked"))
    assert list(outside.iterdir()) == []


def test_makes_nothing_but_the_members(tmp_path: Path) -> None:
    payload.unpack(io.BytesIO(pb.make_payload({"manifest.yaml": b"m", "script.sh": b"s"})), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.yaml", "script.sh"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs to mount a small tmpfs")
def test_a_full_disk_is_the_hosts_fault_not_the_payloads(tmp_path: Path) -> None:
    (tmp_path / "p.tar.gz").write_bytes(pb.archive(member(b"big", os.urandom(2 << 20))))
    (tmp_path / "small").mkdir()
    runner = str(Path(payload.__file__).parents[1])
    small = str(tmp_path / "small")
    unpack = [sys.executable, "-c", UNPACK_IN_LITTLE_MEMORY, str(tmp_path / "p.tar.gz"), small, runner]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', small, *unpack],
        stdout=subprocess.PIPE,
        timeout=60,
    )
    if done.returncode == 32 or not done.stdout:
        pytest.skip("mounting is not allowed here")
    assert done.stdout.split()[0] == b"state.unusable"


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_damaged_payloads_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    """Any mutation of a good tar is accepted or refused with a RunnerError, and nothing lands outside."""
    tar = bytearray(
        b"".join((pax({b"path": b"long/name"}), GOOD, gnu_long_name(b"n" * 120), member(b"b", b"x" * 600), pb.END))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(tar) - 1))
        tar[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # with the checksum made right again, so that the other checks are reached
            start = at // 512 * 512
            block = tar[start : start + 512]
            block[148:156] = b" " * 8
            tar[start + 148 : start + 156] = b"%06o\x00 " % sum(block)
    work = tmp_path / "work"
    work.mkdir()
    with contextlib.suppress(PayloadError):
        payload.unpack(io.BytesIO(pb.gzipped(bytes(tar))), str(work))
    payload.remove_tree(str(work))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chunk", [1, 7, 16384])
def test_a_source_that_reads_short(tmp_path: Path, chunk: int) -> None:
    class Short(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(chunk + 1, size or 0))

    content = os.urandom(200_000) + bytes(200_000)
    payload.unpack(Short(pb.make_payload({"a": content})), str(tmp_path))
    assert (tmp_path / "a").read_bytes() == content


# Digest and sidecar


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "p.tar.gz"
    path.write_bytes(pb.make_payload({"a": b"x"}))
    return path


def test_right_digest(packed: Path) -> None:
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    payload.verify_digest(str(packed), digest.upper())
    with payload.open_payload(str(packed), digest) as source:
        payload.verify_digest(source, digest)
        assert source.read() == packed.read_bytes()


def test_wrong_digest_is_found_before_anything_is_parsed(packed: Path) -> None:
    packed.write_bytes(b"not even gzip")
    with pytest.raises(PayloadError) as caught:
        payload.open_payload(str(packed), "0" * 64)
    assert caught.value.code == "payload.digest_mismatch"
    assert hashlib.sha256(b"not even gzip").hexdigest() in caught.value.message


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63, "0" * 65, "0" * 32 + "\n" + "0" * 31])
def test_malformed_digest(packed: Path, digest: str) -> None:
    with pytest.raises(PayloadError) as caught:
        payload.open_payload(str(packed), digest)
    assert caught.value.code == "payload.digest_malformed"


@pytest.mark.parametrize("options", [[], ["--binary"], ["--zero"]])
@pytest.mark.parametrize("name", ["p.tar.gz", "a\\b\nc.tar.gz", "a\\nb.tar.gz", "with space.tar.gz"])
def test_sidecar_of_the_real_sha256sum(tmp_path: Path, name: str, options: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(pb.make_payload({"a": b"x"}))
    sidecar = subprocess.run(["sha256sum", *options, path], stdout=subprocess.PIPE, check=True).stdout
    if options == ["--zero"]:
        sidecar = sidecar.replace(b"\0", b"\n") if "\n" not in name and "\\" not in name else b""
        if not sidecar:
            return
    (tmp_path / (name + ".sha256")).write_bytes(sidecar)
    assert payload.sidecar_digest(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    payload.open_payload(str(path)).close()
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(PayloadError) as caught:
        payload.open_payload(str(path))
    assert caught.value.code == "payload.digest_mismatch"


def test_explicit_digest_beats_the_sidecar(packed: Path) -> None:
    Path(f"{packed}.sha256").write_text("0" * 64 + "  p.tar.gz\n")
    payload.open_payload(str(packed), hashlib.sha256(packed.read_bytes()).hexdigest()).close()


@pytest.mark.parametrize(
    "sidecar",
    [
        "",
        "\n",
        "0" * 64,
        "0" * 64 + "  other.tar.gz\n",
        "0" * 63 + "  p.tar.gz\n",
        "z" * 64 + "  p.tar.gz\n",
        "0" * 64 + " p.tar.gz\n",
        "0" * 64 + "  p.tar.gz\n" + "1" * 64 + "  p.tar.gz\n",
        "x" * (70 << 10) + "\n" + "0" * 64 + "  p.tar.gz\n",
    ],
)
def test_malformed_sidecar(packed: Path, sidecar: str) -> None:
    Path(f"{packed}.sha256").write_text(sidecar)
    with pytest.raises(PayloadError) as caught:
        payload.open_payload(str(packed))
    assert caught.value.code == "payload.digest_malformed"


def test_no_payload(tmp_path: Path) -> None:
    with pytest.raises(PayloadError) as caught:
        payload.unpack(str(tmp_path / "none"), str(tmp_path))
    assert caught.value.code == "payload.not_found"


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # opening it the usual way would wait for ever
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name in ("fifo", "socket", "."):
            with pytest.raises(PayloadError) as caught:
                payload.unpack(str(tmp_path / name), str(tmp_path))
            assert caught.value.code == "payload.unreadable"


# A folder as payload


def test_copy_of_a_folder(tmp_path: Path) -> None:
    source, work = tmp_path / "source", tmp_path / "source" / "state" / "work"
    write_files(source)
    (source / "._script.sh").write_bytes(b"fork")
    (source / "empty").mkdir(mode=0o500)
    work.mkdir(parents=True)
    assert payload.copy_directory(str(source), str(work)) == sorted(FILES)
    assert {name: (work / name).read_bytes() for name in FILES} == FILES
    assert os.access(work / "script.sh", os.X_OK)
    assert stat.S_IMODE((work / "empty").stat().st_mode) == 0o700
    assert list((work / "state").iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "fifo", "deep", "many", "large", "missing"])
def test_copy_refuses_what_a_payload_refuses(tmp_path: Path, kind: str) -> None:
    source, work = tmp_path / "source", tmp_path / "work"
    work.mkdir()
    if kind != "missing":
        source.mkdir()
    if kind == "link":
        (source / "l").symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(source / "pipe")
    elif kind == "deep":
        source.joinpath(*["d"] * 33).mkdir(parents=True)
    elif kind == "many":
        for number in range(10_001):
            os.link(source / "0", source / str(number)) if number else (source / "0").touch()
    elif kind == "large":
        with open(source / "hole", "wb") as file:
            file.truncate(600 << 20)
    codes = {
        "link": "payload.unsafe_type",
        "fifo": "payload.unsafe_type",
        "deep": "payload.unsafe_name",
        "many": "payload.too_many_entries",
        "large": "payload.too_large",
        "missing": "payload.not_found",
    }
    with pytest.raises(PayloadError) as caught:
        payload.copy_directory(str(source), str(work))
    assert caught.value.code == codes[kind]


# Removal


def test_removal_leaves_what_links_point_at(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    work = tmp_path / "work"
    (work / "a").mkdir(parents=True)
    (work / "a" / "link").symlink_to(outside)
    (work / "link").symlink_to(outside / "kept")
    os.mkfifo(work / "pipe")
    payload.remove_tree(str(work))
    payload.remove_tree(str(work))  # gone already
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (outside / "kept").read_bytes() == b"kept"
    (tmp_path / "top").symlink_to(outside)
    with pytest.raises(StateDirectoryError):
        payload.remove_tree(str(tmp_path / "top"))
    assert (outside / "kept").exists()


def test_removal_of_any_depth(tmp_path: Path) -> None:
    """Deeper than Python's recursion limit, than 1024 descriptors and than PATH_MAX."""
    work = tmp_path / "work"
    work.mkdir()
    descriptor = os.open(work, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deep", dir_fd=descriptor)
        below = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 128, limits[1]))
    try:
        payload.remove_tree(str(work))
        assert not work.exists()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        subprocess.run(["rm", "-rf", work], check=True)  # what is left of it is too deep for pytest


def test_removal_of_many_folders(tmp_path: Path) -> None:
    """More than one read of the directory returns, so that moved ones turn up while it is still being read."""
    work = tmp_path / "work"
    for number in range(3000):
        (work / f"folder-{number}").mkdir(parents=True)
        (work / f"folder-{number}" / "file").touch()
    payload.remove_tree(str(work))
    assert not work.exists()


REMOVE = (
    "import sys; sys.path[:0] = sys.argv[2:]; from cronium_runner.tree import remove_tree; remove_tree(sys.argv[1])"
)


def remove_with(work: Path, *prefix: str) -> subprocess.CompletedProcess[bytes]:
    runner = str(Path(tree.__file__).parents[1])
    return subprocess.run(
        [*prefix, sys.executable, "-c", REMOVE, str(work), runner], stderr=subprocess.PIPE, timeout=60
    )


def remove_as_nobody(work: Path) -> int:
    """In a forked child, as another user may not be allowed to start this interpreter."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            payload.remove_tree(str(work))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def shared_tmp() -> Iterator[Path]:
    """A folder that another user can reach, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="cronium-test-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user whom permissions stop")
def test_removal_opens_what_the_script_closed(shared_tmp: Path) -> None:
    work = shared_tmp / "work"
    for name in ("none", "search", "read", "outer/inner"):
        (work / name).mkdir(parents=True)
        (work / name / "file").touch()
    for name, mode in (("none", 0), ("search", 0o100), ("read", 0o400), ("outer/inner", 0o500), ("outer", 0o500)):
        os.chown(work / name, 65534, 65534)
        (work / name).chmod(mode)
    os.chown(work, 65534, 65534)
    work.chmod(0o500)
    assert remove_as_nobody(work) == 0
    assert not work.exists()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs to mount")
def test_removal_does_not_enter_a_mount(tmp_path: Path) -> None:
    outside, work = tmp_path / "outside", tmp_path / "work"
    outside.mkdir()
    (outside / "kept").touch()
    (work / "mounted").mkdir(parents=True)
    (work / "file").touch()
    done = remove_with(
        work, "unshare", "-m", "sh", "-c", f'mount --bind "{outside}" "{work}/mounted" && exec "$0" "$@"'
    )
    if b"mount:" in done.stderr or b"unshare:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 1
    assert b"StateDirectoryError" in done.stderr
    assert (outside / "kept").exists()
    assert not (work / "file").exists()


@pytest.mark.parametrize("size", [0, 1, 65_536, 200_000])
def test_a_byte_order_mark_is_taken_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "script"
    content = bytes(number * number % 251 for number in range(size))
    for mark in (b"\xef\xbb\xbf", b""):
        path.write_bytes(mark + content)
        payload.remove_byte_order_mark(str(path))
        assert path.read_bytes() == content
