"""Where runner binaries are found, in which order, and what is said where there is none."""

import hashlib
import os
import sys
from pathlib import Path

import pytest

from cronium_controller.deploy import binary_sources
from cronium_controller.errors import ControllerError
from cronium_controller.runners import Runners, own_architecture
from cronium_runner import __version__


def put_binary(folder: Path, architecture: str, version: str = __version__) -> Path:
    """A file that is named as a binary is, with its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cronium-runner-{version}-linux-{architecture}"
    path.write_text(f"{folder} {architecture}")
    path.chmod(0o644)  # as pip leaves it
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return path


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRONIUM_RUNNER_BINARY", raising=False)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that this controller is taken to belong to; its dist/ is empty."""
    for name in ("pyproject.toml", "scripts/build"):
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).touch()
    monkeypatch.setattr(binary_sources, "_PROJECT", tmp_path / "checkout")
    return tmp_path / "checkout"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed cronium-runner-binaries without any binary, and no checkout."""
    package = tmp_path / "site" / binary_sources.PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nothing of it is imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(binary_sources, "_PROJECT", tmp_path / "lib")
    return package


def message(architecture: str) -> str:
    with pytest.raises(ControllerError) as refused:
        Runners().for_machine(architecture, "web01")
    assert refused.value.code == "binary.missing"
    return refused.value.message


def test_the_newest_of_a_checkout_comes_before_the_installed_one(
    checkout: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary_sources, "_PROJECT", checkout)
    put_binary(installed, "x86_64")
    assert Runners().for_machine("x86_64", "").path.parent == installed
    older, newer = put_binary(checkout / "dist", "x86_64", "0.0.1"), put_binary(checkout / "dist", "x86_64")
    os.utime(older, (1, 1))
    assert Runners().for_machine("x86_64", "").path == newer
    assert Runners().of_version("0.0.1", "x86_64") is not None


def test_a_named_binary_comes_before_all(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_binary(checkout / "dist", "x86_64")
    by_variable, by_option = put_binary(tmp_path / "one", "x86_64"), put_binary(tmp_path / "two", "x86_64")
    monkeypatch.setenv("CRONIUM_RUNNER_BINARY", str(by_variable))
    assert Runners().for_machine("x86_64", "").path == by_variable
    assert Runners(str(by_option)).for_machine("x86_64", "").path == by_option


def test_the_installed_one_is_found_and_checked(installed: Path) -> None:
    path = put_binary(installed, "aarch64")
    found = Runners().for_machine("arm64", "web01")
    assert (found.path, found.version, found.machine) == (path, __version__, "aarch64")
    assert [binary.path for binary in Runners().likely()] == [path]
    assert binary_sources.PACKAGE not in sys.modules
    path.write_text("exchanged")
    with pytest.raises(ControllerError) as refused:
        Runners().for_machine("aarch64", "web01")
    assert refused.value.code == "deploy.digest_mismatch"


def test_an_installed_one_of_another_version_is_not_used(installed: Path) -> None:
    put_binary(installed, "x86_64", "9.9.9")
    assert message("x86_64") == (
        "web01: there is no runner binary for x86_64; it comes with cronium-runner-binaries, of which version 9.9.9 is "
        f"installed: pip install cronium-runner-binaries=={__version__}, or name one with --binary or "
        "CRONIUM_RUNNER_BINARY"
    )


def test_an_architecture_without_a_binary_is_told_which_there_are(installed: Path) -> None:
    put_binary(installed, "x86_64")
    assert "no runner binary for aarch64 (there are binaries for x86_64); build it with scripts/build" in message(
        "aarch64"
    )


def test_without_the_distribution_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_sources, "_PROJECT", tmp_path)
    told = message("x86_64")
    assert f"which is not installed: pip install cronium-runner-binaries=={__version__}" in told


def test_a_checkout_without_a_binary_says_how_to_build(checkout: Path) -> None:
    assert "make it with scripts/build" in message("x86_64")


def test_a_folder_of_that_name_is_no_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without __init__.py, as anybody's working directory may have, which `python -m` puts on the path."""
    put_binary(tmp_path / binary_sources.PACKAGE, "x86_64")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(binary_sources, "_PROJECT", tmp_path)
    assert "which is not installed" in message("x86_64")


def test_other_machines_are_told_which_runners_exist() -> None:
    with pytest.raises(ControllerError, match="riscv64; runners exist for aarch64 and x86_64") as refused:
        Runners().for_machine("riscv64", "web01")
    assert refused.value.code == "deploy.unsupported"


def test_macos_names_its_architecture_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    told = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*told[:4], "arm64")))
    assert own_architecture() == "aarch64"
