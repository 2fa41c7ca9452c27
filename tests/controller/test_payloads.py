"""Equal content is an equal payload, whatever the file system thinks of it; what can't be one is refused by name."""

import gzip
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cronium_controller import payloads
from cronium_controller.errors import PayloadError
from cronium_controller.payloads import Payload, load
from cronium_runner import payload as runner_payload
from cronium_runner.wire.frames import DATA_PIECE
from remote_host import resident_memory_growth

FILES = {
    "manifest.yaml": b"version: v1\nentrypoint: main.sh\n",
    "main.sh": b"echo hello\n",
    "lib/b.sh": b"b",
    "lib/a.sh": b"a",
    "lib.txt": b"sorts between lib/ and lib0",
    "z\xc3\xbc.txt": b"",
}


def make_directory(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / os.fsdecode(name.encode("latin-1"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def content(payload: Payload) -> bytes:
    return b"".join(payload.pieces())


def members(payload: Payload) -> dict[str, tuple[int, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content(payload))) as archive:
        found = {}
        for entry in archive:
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name] = entry.mode, file.read()
    return found


def refusal(path: Path) -> PayloadError:
    with pytest.raises(PayloadError) as refused:
        load(path)
    assert "\n" not in refused.value.message
    assert refused.value.exit_status == 125
    return refused.value


def test_empty_folders_arrive(tmp_path: Path) -> None:
    plain = make_directory(tmp_path / "plain", FILES)
    before = load(plain).sha256
    made = make_directory(tmp_path / "made", FILES)
    for name in ("logs", "a/b/c", "lib/empty", "\u00e4" * 120, "mac"):
        (made / name).mkdir(parents=True)
    (made / "mac" / "._x").touch()
    packed = load(made)
    target = tmp_path / "target"
    target.mkdir()
    unpacked = runner_payload.unpack(io.BytesIO(content(packed)), str(target))
    assert sorted(unpacked) == sorted(os.fsdecode(name.encode("latin-1")) for name in FILES)
    assert {name for name in ("logs", "a/b/c", "lib/empty", "\u00e4" * 120, "mac") if (target / name).is_dir()} == {
        "logs", "a/b/c", "lib/empty", "\u00e4" * 120, "mac",
    }  # fmt: skip
    assert load(made).sha256 == packed.sha256
    shutil.rmtree(made / "logs")
    assert load(made).sha256 != packed.sha256
    for name in ("a", "lib/empty", "\u00e4" * 120, "mac"):
        shutil.rmtree(made / name)
    assert load(made).sha256 == before, "folders that files imply are no members, so payloads stay the same bytes"


def test_equal_content_is_an_equal_payload(tmp_path: Path) -> None:
    first = make_directory(tmp_path / "one" / "job", FILES)
    expected = load(first).sha256
    umask = os.umask(0o077)
    try:
        second = make_directory(tmp_path / "two" / "job", dict(reversed(FILES.items())))
    finally:
        os.umask(umask)
    for folder, _, files in os.walk(second):
        for name in files:
            os.utime(Path(folder, name), (1, 10**9))
            if os.geteuid() == 0:
                os.chown(Path(folder, name), 1234, 4321)
    assert load(second).sha256 == expected
    assert load(second).sha256 == expected, "building it again"
    in_another_process = "import sys; from cronium_controller.payloads import load; print(load(sys.argv[1]).sha256)"
    printed = subprocess.run(
        [sys.executable, "-c", in_another_process, second],
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "5"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert printed.stdout.strip() == expected


def test_a_payload_stays_what_0_1_0_built(tmp_path: Path) -> None:
    """Before compression, which differs between versions of zlib: the recorded digests go on being right."""
    (tmp_path / "manifest.yaml").write_text(
        "version: v1\nentrypoint: script.sh\nmetadata: {jobId: 77, eventId: 0123, inputData: {a: 3.10, b: 1234e56}}\n"
    )
    (tmp_path / "script.sh").write_text("echo hello\n")
    unpacked = gzip.decompress(content(load(tmp_path)))
    assert hashlib.sha256(unpacked).hexdigest() == "db9533d77151502237b54f52cc703825b18024b1941344ac4306533ecdc3f060"


@pytest.mark.parametrize("change", ["content", "name", "more", "x bit"])
def test_other_content_is_another_payload(tmp_path: Path, change: str) -> None:
    folder = make_directory(tmp_path, FILES)
    before = load(folder).sha256
    match change:
        case "content":
            (folder / "lib/a.sh").write_bytes(b"A")
        case "name":
            (folder / "lib/a.sh").rename(folder / "lib/A.sh")
        case "more":
            (folder / "empty").touch()
        case _:
            (folder / "main.sh").chmod(0o755)
    assert load(folder).sha256 != before


def test_a_payload_holds_names_content_and_the_x_bit_only(tmp_path: Path) -> None:
    folder = make_directory(tmp_path, FILES)
    (folder / "main.sh").chmod(0o4711)
    payload = load(folder)
    found = members(payload)
    assert list(found) == sorted(found, key=str.encode)
    assert {name: text for name, (_, text) in found.items()} == {
        name.encode("latin-1").decode(): text for name, text in FILES.items()
    }
    assert {name: mode for name, (mode, _) in found.items() if mode != 0o644} == {"main.sh": 0o755}
    with tarfile.open(fileobj=io.BytesIO(content(payload))) as archive:
        assert {(e.uid, e.gid, e.uname, e.gname, e.mtime) for e in archive} == {(0, 0, "", "", 0)}
    assert content(payload)[4:8] == bytes(4), "gzip's own time"
    assert payload.sha256 == hashlib.sha256(content(payload)).hexdigest()
    assert payload.size == len(content(payload))


def test_what_a_local_run_leaves_is_no_part_of_a_directory(tmp_path: Path) -> None:
    folder = make_directory(tmp_path, FILES)
    before = load(folder).sha256
    (folder / "output.json").write_text("{}")
    (folder / "variables.json").write_text("{}")
    assert load(folder).sha256 == before
    (folder / "lib" / "output.json").write_text("{}")
    assert load(folder).sha256 != before, "only at the top"


@pytest.mark.parametrize("name", ["job.sh", "no extension", 'quo"te.py', "ü: [x]#.sh", "-dash.sh", "null", "1.0"])
def test_a_script_becomes_a_payload_under_its_own_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"echo hi\n")
    found = members(load(tmp_path / name))
    import yaml

    manifest = found.pop("manifest.yaml")[1]
    assert yaml.safe_load(manifest) == {"version": "v1", "entrypoint": name}
    assert found == {name: (0o644, b"echo hi\n")}


def test_a_script_may_be_given_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.sh").write_bytes(b"echo hi\n")
    (tmp_path / "link.sh").symlink_to("real.sh")
    assert members(load(tmp_path / "link.sh"))["link.sh"][1] == b"echo hi\n"


@pytest.mark.parametrize("name", ["manifest.yaml", "manifest.yml"])
def test_a_manifest_is_not_a_script(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES["manifest.yaml"])
    assert "directory" in refusal(tmp_path / name).message


@pytest.mark.parametrize("name", ["new\nline.sh", "esc\x1b[31m.sh", os.fsdecode(b"latin-\xfc.sh")])
def test_a_name_that_no_manifest_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"echo hi\n")
    assert refusal(tmp_path / name).code == "payload.unsafe_name"


@pytest.mark.parametrize("name", [os.fsdecode(b"latin-\xfc.txt"), "x" * 200 + ".txt"])
def test_every_other_name_in_a_directory_arrives_as_it_is(tmp_path: Path, name: str) -> None:
    folder = make_directory(tmp_path, FILES)
    (folder / name).write_bytes(b"?")
    with tarfile.open(fileobj=io.BytesIO(content(load(folder))), errors="surrogateescape") as archive:
        assert name in archive.getnames()


def test_a_fifo_where_the_script_should_be_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert str(tmp_path / "fifo") in refusal(tmp_path / "fifo").message


def link_to_file(path: Path) -> None:
    path.symlink_to("main.sh")


def link_to_folder(path: Path) -> None:
    path.symlink_to("lib")


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(path))


@pytest.mark.parametrize("make", [link_to_file, link_to_folder, dangling_link, os.mkfifo, unix_socket])
def test_links_and_special_files_are_refused_by_name(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = make_directory(tmp_path, FILES)
    odd = folder / "lib" / "odd"
    make(odd)
    error = refusal(folder)
    assert error.code == "payload.unsafe_type"
    assert str(odd) in error.message


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert error.code == "manifest.missing"
    assert str(tmp_path) in error.message


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "gone.sh")
    assert error.code == "payload.not_found"
    assert str(tmp_path / "gone.sh") in error.message
    assert refusal(tmp_path / ("x" * 300)).code == "payload.unreadable"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other accounts may enter. Those of pytest stay closed: other tests rely on that meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_what_cannot_be_read_is_named(open_folder: Path) -> None:
    folder = make_directory(open_folder / "job", FILES)
    (folder / "secret").touch()
    (folder / "secret").chmod(0)
    as_nobody = "import os, sys; os.getuid() or os.setuid(65534)\n"
    as_nobody += "from cronium_controller.payloads import load\nfrom cronium_controller.errors import PayloadError\n"
    as_nobody += "try: load(sys.argv[1])\nexcept PayloadError as e: print(e.code, e.message)"
    folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", as_nobody, folder], capture_output=True, text=True, check=False)
    if "Permission" in done.stderr or "No module" in done.stderr:
        pytest.skip("another account cannot read this checkout")
    assert done.stdout.startswith(f"payload.unreadable cannot read {folder / 'secret'}"), (done.stdout, done.stderr)


def archive(folder: Path) -> Path:
    path = folder / "job.tar.gz"
    path.write_bytes(content(load(make_directory(folder / "job", FILES))))
    return path


def test_an_archive_is_sent_as_it_is_under_any_name(tmp_path: Path) -> None:
    path = archive(tmp_path)
    renamed = path.rename(tmp_path / "payload")
    assert content(load(renamed)) == renamed.read_bytes()


def test_a_sidecar_vouches_for_an_archive(tmp_path: Path) -> None:
    path = archive(tmp_path)
    written = subprocess.run(["sha256sum", path.name], cwd=tmp_path, check=True, capture_output=True).stdout
    sidecar = tmp_path / "job.tar.gz.sha256"
    sidecar.write_bytes(written)
    assert load(path).sha256 == written.split()[0].decode()
    sidecar.write_bytes(written.upper())
    assert load(path).sha256


@pytest.mark.parametrize("said", [b"", b"0" * 64 + b"  job.tar.gz\n", b"nonsense", bytes(range(256))])
def test_a_sidecar_that_says_otherwise_is_believed(tmp_path: Path, said: bytes) -> None:
    path = archive(tmp_path)
    (tmp_path / "job.tar.gz.sha256").write_bytes(said)
    error = refusal(path)
    assert error.code in ("payload.digest_mismatch", "payload.digest_malformed")
    assert "job.tar.gz.sha256" in error.message


def test_a_large_payload_is_built_and_read_without_holding_it(tmp_path: Path) -> None:
    folder = make_directory(tmp_path / "job", FILES)
    with (folder / "large").open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1024 * 1024))
    largest = 0
    with resident_memory_growth() as grown:
        payload = load(folder)
        digest = hashlib.sha256()
        for piece in payload.pieces():
            largest = max(largest, len(piece))
            digest.update(piece)
    assert payload.size > 64 * 1024 * 1024
    assert digest.hexdigest() == payload.sha256
    assert largest <= DATA_PIECE
    assert grown[0] < payloads.IN_MEMORY + 16 * 1024 * 1024, grown
    payload.close()
    shutil.rmtree(folder)


def test_two_readers_of_one_payload_do_not_disturb_each_other(tmp_path: Path) -> None:
    folder = make_directory(tmp_path, {**FILES, "noise": os.urandom(3 * DATA_PIECE)})
    payload = load(folder)
    both = list(zip(payload.pieces(), payload.pieces(), strict=True))
    assert len(both) > 2
    assert all(one == other for one, other in both)


def test_a_file_that_changes_its_size_meanwhile_is_no_traceback(tmp_path: Path) -> None:
    """Shrunk between its size and its content: the archive would lie about it."""
    folder = make_directory(tmp_path, FILES)
    grows_short = folder / "growing"
    grows_short.write_bytes(b"x" * 100_000)

    real = tarfile.TarFile.addfile

    def shrink_first(self: tarfile.TarFile, entry: tarfile.TarInfo, file: io.IOBase | None = None) -> None:
        if entry.name == "growing":
            os.truncate(grows_short, 10)
        real(self, entry, file)

    tarfile.TarFile.addfile = shrink_first  # type: ignore[assignment,method-assign]
    try:
        assert "growing" in refusal(folder).message
    finally:
        tarfile.TarFile.addfile = real  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["bad.tar.gz", "bad.tgz", "bad"])
def test_a_payload_whose_magic_is_broken_is_never_a_script(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"#!/bin/sh\necho never\n")
    if name == "bad":
        (tmp_path / "bad.sha256").write_text("ab" * 32 + "  bad\n")
    with pytest.raises(PayloadError) as refused:
        load(tmp_path / name)
    assert refused.value.code == "payload.not_gzip"
    assert str(tmp_path / name) in refused.value.message
