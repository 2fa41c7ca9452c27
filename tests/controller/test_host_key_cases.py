"""The decision about a host's key, and the recorded line, for every case of the table: without a server."""

from pathlib import Path

import asyncssh
import pytest

from cronium_controller.hostkeys import HostKeyCheck
from cronium_controller.ssh_settings import SSHSettings
from host_key_cases import CASES, Case, Files, Keys

PORT = 2222


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


def settings_of(case: Case, files: Files, keys: Keys) -> SSHSettings:
    options = case.options
    return SSHSettings(
        "127.0.0.1",
        PORT,
        "me",
        host_key_alias=options.get("HostKeyAlias"),
        user_known_hosts_files=tuple(map(str, files.user)),
        global_known_hosts_files=(str(files.system),),
        revoked_host_keys=None if case.revoked is None else str(keys.revoked(case.revoked)),
        strict_host_key_checking=options.get("StrictHostKeyChecking", "ask"),
        hash_known_hosts="HashKnownHosts" in options,
        host_key_algorithms=options.get("HostKeyAlgorithms"),
    )


@pytest.mark.parametrize("case", CASES, ids=[case.what.replace(" ", "_") for case in CASES])
def test_decision_and_record(case: Case, keys: Keys, tmp_path: Path) -> None:
    files = Files(case, keys, tmp_path / "files", PORT)
    warnings: list[str] = []
    check = HostKeyCheck(settings_of(case, files, keys), warnings.append, host="web01")
    shown = keys.blobs(case.server)
    blob = next(shown[algorithm] for algorithm in check.algorithms() if algorithm in shown)
    try:
        key = check.validate(blob)
    except asyncssh.HostKeyNotVerifiable:
        assert case.is_refused
        assert check.refusal is not None
        assert "\n" not in check.refusal.message
    else:
        assert not case.is_refused
        assert key.public_data in {private.public_data for private in keys.private.values()}
        assert check.validate(blob) == key, "asked again when the keys of the session are renewed"
    assert files.recorded() == files.expected()
