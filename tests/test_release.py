"""`scripts/release`: what it refuses, and the list of parts. Whole releases: tests/faults/test_release.py."""

import json
import re
from pathlib import Path

import pytest

import signing
from releasing import cloned, commit, git, needs_repository, release
from runner_process import ROOT

pytestmark = signing.needs_ssh_keygen
BUILD = str(ROOT / "build")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone of the project as it is, whose changelog has a date."""
    return cloned(tmp_path / "checkout")


@needs_repository
def test_what_cannot_be_released_is_refused(checkout: Path, tmp_path: Path) -> None:
    """Before anything is built."""
    key = signing.key(tmp_path)
    changes = checkout / "CHANGELOG.md"
    text = changes.read_text()
    (checkout / "new.txt").write_text("new\n")
    done = release(checkout, "--key", key)
    assert (done.returncode, "the checkout has changes" in done.stderr, "new.txt" in done.stderr) == (1, True, True)
    (checkout / "new.txt").unlink()
    for changed, why in (
        (text.replace("2026-12-01", "unreleased", 1), "write the date there"),
        (re.sub(r"^## \[0\.2\.0\].*$", "## [9.9.9] - 2026-12-01", text, flags=re.MULTILINE), "has no section"),
        (re.sub(r"(?<=2026-12-01\n).*?(?=^## )", "\n", text, flags=re.MULTILINE | re.DOTALL), "is empty"),
    ):
        assert changed != text
        changes.write_text(changed)
        commit(checkout)
        done = release(checkout, "--key", key)
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr
    changes.write_text(text)
    git(checkout, "tag", "v0.2.0")
    commit(checkout)
    done = release(checkout, "--key", key)
    assert (done.returncode, "is on another commit" in done.stderr) == (1, True), done.stderr
    git(checkout, "tag", "--delete", "v0.2.0")
    (tmp_path / "there").mkdir()
    done = release(checkout, "--key", key, "--output", tmp_path / "there")
    assert (done.returncode, "exists; remove it" in done.stderr) == (1, True), done.stderr
    assert release(checkout).returncode != 0


# -- the list of parts -------------------------------------------------------------------------------------------------


def test_the_list_of_parts_is_as_cyclonedx_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BUILD)
    import sbom
    from archive import Package

    form = tmp_path / "installed"
    (form / "_internal" / "lib-dynload").mkdir(parents=True)
    (form / "_internal" / "libone.so.1").write_bytes(b"one")
    (form / "_internal" / "libpython3.11.so.1.0").write_bytes(b"two")
    (form / "_internal" / "lib-dynload" / "_json.so").write_bytes(b"three")
    one = Package("libone1", "1:2.0-1", "arm64", "one", "1" * 64)
    python = Package("libpython3.11", "3.11.2-6", "arm64", "python3.11", "2" * 64)
    owners = {"usr/lib/x/libone.so.1": one, "usr/lib/x/libpython3.11.so.1.0": python, "usr/lib/y/_json.so": python}
    parts = [*sbom.distributions({"click.core", "yaml", "cronium_runner.cli", "os"}, tmp_path)]
    parts += sbom.of_packages(form, tmp_path, owners)
    binary = tmp_path / "cronium-runner-1.0.0-linux-x86_64"
    binary.write_bytes(b"program")
    made = [
        sbom.bill(parts, version="1.0.0", commit="abc", made_at="2026-12-01T12:00:00Z", binary=binary) for _ in range(2)
    ]
    assert made[0] == made[1]
    told = json.loads(made[0])
    assert (told["bomFormat"], told["specVersion"], told["version"]) == ("CycloneDX", "1.5", 1)
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", told["serialNumber"]
    )
    assert told["metadata"]["timestamp"] == "2026-12-01T12:00:00Z"
    found = {part["name"].lower(): part for part in told["components"]}
    assert set(found) == {"click", "pyyaml", "pyinstaller", "ziglang", "zstandard", "libpython3.11", "libone1"}
    assert found["libone1"]["purl"] == "pkg:deb/debian/libone1@1%3A2.0-1?arch=arm64"
    assert found["libone1"]["properties"] == [{"name": "cronium:sha256-of-package", "value": "1" * 64}]
    assert "source package one" in found["libone1"]["description"]
    assert [file["name"] for file in found["libpython3.11"]["components"]] == [
        "_internal/lib-dynload/_json.so",
        "_internal/libpython3.11.so.1.0",
    ]
    assert re.fullmatch(r"[0-9a-f]{64}", found["click"]["properties"][0]["value"])
    assert found["click"]["licenses"][0]["license"]["name"]
    refs = [part["bom-ref"] for part in told["components"]]
    assert len(set(refs)) == len(refs)
    assert told["dependencies"][0]["dependsOn"] == refs
    with pytest.raises(SystemExit, match="no licence text of libone1"):
        sbom.components(form, {"click"}, tmp_path, owners)
    (form / "_internal" / "libnobodys.so.1").write_bytes(b"four")
    with pytest.raises(SystemExit, match=r"libnobodys\.so\.1 comes from no package"):
        sbom.components(form, {"click"}, tmp_path, owners)
