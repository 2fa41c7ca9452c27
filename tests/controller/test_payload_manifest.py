"""Whether a payload's script is to see the runtime API, as the controller reads it from the manifest."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from cronium_controller import payload_manifest
from cronium_controller.payload_manifest import exposes_api
from cronium_controller.payloads import load

BASE = b"version: v1\nentrypoint: s.sh\n"


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("manifest", "is_exposing"),
    [
        (BASE + b"expose_api: true\n", True),
        (b"\xef\xbb\xbf# expose_api: false\n" + BASE + b'"expose_api" : true # for curl\r\n', True),
        (b"{version: v1, entrypoint: s.sh, expose_api: true}", True),
        (BASE, False),
        (BASE + b"expose_api: false\n", False),
        (BASE + b'expose_api: "true"\n', False),
        (BASE + b"metadata: {extra: {expose_api: true}}\n", False),
        (BASE + b"expose_api: [true]\n", False),
        (b"expose_api: true\n: [", False),
        (b"- expose_api: true\n", False),
        (BASE + b"expose_api: true\n\xff", False),
        (b"expose_api: " + b"[" * 100_000, False),
        (BASE + b"expose_api: true\n#" + b"x" * payload_manifest.LONGEST, False),
    ],
)
def test_what_a_manifest_says(tmp_path: Path, manifest: bytes, is_exposing: bool) -> None:
    given = packed(tmp_path / "p.tar.gz", {"manifest.yaml": manifest, "s.sh": b"true\n"})
    assert exposes_api(load(given)) is is_exposing


def test_wherever_in_the_payload_it_is(tmp_path: Path) -> None:
    large = bytes(3 << 20)
    members = {"a": large, "sub/manifest.yaml": BASE, "./manifest.yml": BASE + b"expose_api: true\n", "z": large}
    assert exposes_api(load(packed(tmp_path / "p.tar.gz", members)))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "manifest.yaml").write_bytes(BASE + b"expose_api: true\n")
    (folder / "s.sh").write_text("true\n")
    assert exposes_api(load(folder))
    assert not exposes_api(load(folder / "s.sh"))


def test_a_payload_that_cannot_be_read_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packed(tmp_path / "p.tar.gz", {"a": bytes(1000), "manifest.yaml": BASE + b"expose_api: true\n"})
    content = whole.read_bytes()
    for number, damaged in enumerate((content[:60], b"\x1f\x8b" + bytes(60), gzip.compress(b"no tar" * 1000))):
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(damaged)
        assert not exposes_api(load(path))
    monkeypatch.setattr(payload_manifest, "SEARCHED", 512)
    monkeypatch.setattr(payload_manifest, "_PIECE", 512)
    assert not exposes_api(load(whole)), "not beyond what is searched"
