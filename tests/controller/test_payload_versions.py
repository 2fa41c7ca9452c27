"""Payloads of events in versions: when there is a new one, what is recorded, what goes, and what is said of damage."""

import hashlib
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import preloaded
from cronium_controller import payload_versions, payloads
from cronium_controller.errors import PayloadError
from cronium_controller.hosts import Host
from cronium_controller.payload_versions import PayloadVersions, Version
from cronium_controller.store import Store
from cronium_runner.wire.results import Outcome, Result
from remote_host import RemoteHost

HOST = Host("web01", "192.0.2.1")


@pytest.fixture
def versions(tmp_path: Path) -> Any:
    store = Store(tmp_path / "state" / "controller.db")
    yield PayloadVersions(store)
    store.close()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "backup.sh"
    path.write_text("echo one\n")
    return path


def built(versions: PayloadVersions, script: Path, **fields: Any) -> tuple[int, bool]:
    version, is_new = versions.build("7", payloads.load(script, fields))
    return version.version, is_new


def cronium(tmp_path: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "CRONIUM_CONTROLLER_STATE": str(tmp_path / "state"), "HOME": str(tmp_path)}
    environment.pop("CRONIUM_PAYLOADS", None)
    return preloaded.run("cronium", ["payload", *words], env=environment, text=True)


def test_fields_are_for_scripts_and_not_for_what_has_a_manifest(versions: PayloadVersions, script: Path) -> None:
    fields = {"interpreter": ["bash", "-l"]}
    store = versions._store
    assert payload_versions.load(script, store, fields).sha256 == payloads.load(script, fields).sha256
    assert payload_versions.load(script, store, {}).sha256 == payloads.load(script).sha256
    built(versions, script)
    with pytest.raises(PayloadError, match="event:7 has a manifest of its own: say interpreter to") as refused:
        payload_versions.load("event:7", store, fields)
    assert refused.value.code == "usage.invalid"


def test_a_version_is_new_exactly_when_something_changed(versions: PayloadVersions, script: Path) -> None:
    assert built(versions, script) == (1, True)
    assert built(versions, script) == (1, False)
    script.touch()
    assert built(versions, script) == (1, False)
    assert built(versions, script, timeout=60) == (2, True)
    assert built(versions, script, timeout=60) == (2, False)
    script.write_text("echo two\n")
    assert built(versions, script, timeout=60) == (3, True)
    script.chmod(0o755)
    assert built(versions, script, timeout=60) == (4, True)
    script.chmod(0o644)
    assert built(versions, script, timeout=60) == (5, True), "back to what it was is a change, too"
    found = versions.versions("7")
    assert [(version.version, version.is_active) for version in found] == [
        (5, True), (4, False), (3, False), (2, False), (1, False),
    ]  # fmt: skip
    assert found[0].hash == found[2].hash


def test_what_is_recorded_is_what_is_there(versions: PayloadVersions, script: Path) -> None:
    version, _ = versions.build("7", payloads.load(script), name="Daily Backup")
    assert version == versions.versions()[0]
    assert version.path == versions.folder / "event-7-v1.tar.gz"
    assert version.path.parent.parts[-2:] == ("storage", "payloads")
    subprocess.run(["sha256sum", "--check", "--quiet", f"{version.path}.sha256"], cwd=versions.folder, check=True)
    assert version.size == version.path.stat().st_size
    assert sorted(os.listdir(versions.folder)) == ["event-7-v1.tar.gz", "event-7-v1.tar.gz.sha256"]
    assert versions.event("event:7") == {"id": "7", "version": 1, "name": "Daily Backup"}
    assert versions.folder.stat().st_mode & 0o077 == 0


def test_another_compression_of_the_same_is_no_change(versions: PayloadVersions, script: Path, tmp_path: Path) -> None:
    version, _ = versions.build("7", payloads.load(script))
    again = tmp_path / "again.tar.gz"
    with again.open("wb") as packed:
        plain = subprocess.run(["gzip", "-dc", version.path], capture_output=True, check=True).stdout
        subprocess.run(["gzip", "-1nc"], input=plain, stdout=packed, check=True)
    other = payloads.load(again)
    assert other.sha256 != version.hash
    assert versions.build("7", other) == (version, False)
    version.path.write_bytes(b"damaged")
    mended, is_new = versions.build("7", other)
    assert (mended.version, mended.hash, is_new) == (1, other.sha256, False)
    assert versions.load("event:7").sha256 == other.sha256
    assert versions.verify() == [(str(version.path), [])]


def test_builds_at_once_make_one_version(tmp_path: Path, script: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: cronium(tmp_path, "build", "7", script, "--json"), range(4)))
    told = [json.loads(each.stdout) for each in done]
    assert sorted(each["isNew"] for each in told) == [False, False, False, True]
    assert {each["version"] for each in told} == {1}
    assert len(os.listdir(told[0]["path"].rpartition("/")[0])) == 2


def test_what_no_host_would_take_is_no_version(versions: PayloadVersions, script: Path) -> None:
    with pytest.raises(PayloadError, match="cobol") as refused:
        built(versions, script, interpreter="cobol")
    assert refused.value.code == "manifest.interpreter"
    assert versions.versions() == []
    assert os.listdir(versions.folder) == []
    for wrong in ("", "../x", ".x", "a" * 65):
        with pytest.raises(PayloadError, match="not an event id"):
            versions.build(wrong, payloads.load(script))


def test_a_directory_says_itself_what_its_manifest_says(versions: PayloadVersions, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("version: v1\nentrypoint: x.sh\n")
    (folder / "x.sh").write_text("true\n")
    with pytest.raises(PayloadError, match="manifest of its own"):
        payloads.load(folder, {"timeout": 60})
    assert versions.build("8", payloads.load(folder))[1]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("gone", "cannot be read: No such file"),
        ("longer", "recorded was"),
        ("sidecar gone", ".sha256 cannot be read"),
        ("sidecar wrong", ".sha256 does not say"),
        ("not a payload", "[payload.not_gzip]"),
    ],
)
def test_verify_names_what_is_wrong(versions: PayloadVersions, script: Path, damage: str, said: str) -> None:
    version, _ = versions.build("7", payloads.load(script))
    versions.build("8", payloads.load(script))
    harm(versions, version, damage)
    first, second = versions.verify()
    assert first[0] == str(version.path)
    assert said in "; ".join(first[1])
    assert second[1] == []
    assert len(versions.verify("7")) == 1


def harm(versions: PayloadVersions, version: Version, damage: str) -> None:
    sidecar = payloads.sidecar(version.path)
    match damage:
        case "gone":
            version.path.unlink()
        case "longer":
            with version.path.open("ab") as file:
                file.write(b"x")
        case "sidecar gone":
            sidecar.unlink()
        case "sidecar wrong":
            sidecar.write_text(f"{'0' * 64}  {version.path.name}\n")
        case _:  # as recorded, all the same
            version.path.write_bytes(b"x" * version.size)
            digest = hashlib.sha256(b"x" * version.size).hexdigest()
            sidecar.write_text(f"{digest}  {version.path.name}\n")
            versions._store.database.write(
                "UPDATE runner_payloads SET hash = :hash WHERE event_id = '7'", {"hash": digest}
            )


def test_a_damaged_version_is_not_run(versions: PayloadVersions, script: Path) -> None:
    version, _ = versions.build("7", payloads.load(script))
    other, _ = versions.build("8", payloads.load(script, {"timeout": 5}))
    version.path.write_bytes(other.path.read_bytes())
    payloads.sidecar(version.path).unlink()
    with pytest.raises(PayloadError, match="recorded was") as refused:
        versions.load("event:7")
    assert refused.value.code == "payload.digest_mismatch"
    assert built(versions, script) == (1, False), "and building it again mends it"
    assert versions.load("event:7").sha256 == version.hash


def test_a_reference_means_the_active_version_or_the_one_it_names(versions: PayloadVersions, script: Path) -> None:
    first, _ = versions.build("7", payloads.load(script))
    second, _ = versions.build("7", payloads.load(script, {"timeout": 5}))
    assert versions.find("event:7") == second
    assert versions.find("event:7@1").hash == first.hash
    for missing in ("event:7@3", "event:9"):
        with pytest.raises(PayloadError, match="cronium payload build"):
            versions.find(missing)
    for wrong in ("event:", "event:7@", "event:7@0", "event:../7"):
        with pytest.raises(PayloadError, match="not like event:ID"):
            versions.find(wrong)


def test_collection_spares_what_is_active_or_in_use(versions: PayloadVersions, script: Path) -> None:
    for number in range(1, 6):
        built(versions, script, timeout=number)
    used = versions.find("event:7@2")
    assert versions._store.record("e1", HOST, used.hash, "backup.sh", time.time())
    removed = versions.collect(keep=2)
    assert {path.name for path in removed} == {"event-7-v1.tar.gz", "event-7-v3.tar.gz"}
    assert [version.version for version in versions.versions()] == [5, 4, 2]
    versions._store.finish(Result("e1", Outcome.SUCCEEDED, exit_code=0), time.time())
    assert [path.name for path in versions.collect(keep=1)] == ["event-7-v4.tar.gz", "event-7-v2.tar.gz"]
    assert sorted(os.listdir(versions.folder)) == ["event-7-v5.tar.gz", "event-7-v5.tar.gz.sha256"]
    assert built(versions, script, timeout=1) == (6, True), "a number is not used twice"


def test_what_a_cut_off_build_left_is_named_and_goes_after_an_hour(versions: PayloadVersions, script: Path) -> None:
    built(versions, script)
    old, new, foreign = (versions.folder / name for name in (".new-00", ".new-11", "notes.txt"))
    for path in (old, new, foreign):
        path.write_bytes(b"half")
    for path in (old, foreign):
        os.utime(path, (0, 0))
    assert [path for path, problems in versions.verify() if problems] == [str(old)]
    assert versions.collect() == [old]
    assert not old.exists()
    assert new.exists()
    assert foreign.exists()


def test_the_commands_say_it_in_lines(tmp_path: Path, script: Path) -> None:
    assert cronium(tmp_path, "build", "7", script, "--env", "A=b", "--limit", "memory=64MiB").stdout.startswith("built")
    assert cronium(tmp_path, "build", "7", script, "--env", "A=b", "--limit", "memory=64MiB").stdout.startswith("unch")
    assert "* event:7@1 " in cronium(tmp_path, "list").stdout
    assert cronium(tmp_path, "verify").returncode == 0
    (tmp_path / "state" / "storage" / "payloads" / "event-7-v1.tar.gz").unlink()
    assert cronium(tmp_path, "verify").returncode == 1
    assert cronium(tmp_path, "gc", "--keep", "0").returncode == 125
    wrong = cronium(tmp_path, "build", "7", tmp_path / "nothing.sh")
    assert (wrong.returncode, wrong.stdout) == (125, "")
    assert "[payload.not_found]" in wrong.stderr


@pytest.mark.sshd
def test_an_event_runs_by_its_id(remote: RemoteHost) -> None:
    script = remote.script("cronium.event id; cronium.event version; cronium.event name")
    for name in ("First", "Second"):
        assert remote.cronium("payload", "build", "7", script, "--name", name).returncode == 0
    assert remote.run("event:7").stdout == b"7\n2\nSecond\n"
    assert remote.run("event:7@1").stdout == b"7\n1\nSecond\n"
    assert remote.run("event:9").returncode == 125
