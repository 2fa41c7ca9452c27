"""The wheels of a release in a fresh environment outside any checkout: they install, and a job runs on a host."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import emulation
from cronium_controller.cli import cronium
from cronium_runner import __version__
from cronium_runner.cli import cronium_runner
from openssh import OpenSSHServer, sshd_path
from remote_host import RemoteHost
from runner_process import ROOT

pytestmark = [pytest.mark.frozen, pytest.mark.sshd]

PATIENCE = 120.0


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, (done.args, done.stdout, done.stderr)
    return done  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both wheels, as scripts/wheels makes them of the binary that is there."""
    if not (ROOT / "dist" / f"cronium-runner-{__version__}-linux-{os.uname().machine}").exists():
        pytest.skip("there is no runner binary in dist/; scripts/build makes it")
    folder = tmp_path_factory.mktemp("wheels")
    printed = run(sys.executable, ROOT / "build/wheels.py", folder, cwd=ROOT).stdout.splitlines()
    names = [f"{name}-{__version__}-py3-none-any.whl" for name in ("cronium_runner", "cronium_runner_binaries")]
    assert printed == [str(folder / name) for name in names]
    return folder


@pytest.fixture(scope="module")
def environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheels installed in it, by pip, without a network.

    The libraries are links to the files of this environment, so pip finds them there; what is ours it does not.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    (folder / "libraries").mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "cronium" not in entry.name and entry.suffix != ".pth":
            (folder / "libraries" / entry.name).symlink_to(entry)
    python = folder / "venv/bin/python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    (Path(site) / "libraries.pth").write_text(f"{folder}/libraries\n")
    pip = (
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "install",
        "--no-index",
        "--no-compile",
    )
    run(*pip, "--find-links", wheels, "cronium-runner[controller]", cwd=folder)
    return folder / "venv"


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[RemoteHost]:
    if sshd_path() is None:
        pytest.skip("there is no sshd; install openssh-server")
    with RemoteHost(tmp_path / "remote", tmp_path / "none", tmp_path / "root") as made:
        yield made


def test_a_job_runs_from_the_installed_wheels(environment: Path, remote: RemoteHost, tmp_path: Path) -> None:
    script = remote.script('echo "$(cronium.input word)"; cronium.output used 42; cronium.setVariable SEEN yes\n')
    variables = {name: value for name, value in remote.environment.items() if name != "CRONIUM_RUNNER_BINARY"}
    variables = {name: value for name, value in variables.items() if not name.startswith("PYTHON")}
    command = [environment / "bin/cronium", "run", "--host", remote.server.target, "--identity", remote.server.identity]
    done = run(*command, "--json", "--input", '{"word": "words"}', script, cwd=tmp_path, env=variables)
    result = json.loads(done.stdout)
    assert (result["exitCode"], result["stdout"]["text"]) == (0, "words\n")
    assert (result["output"], result["variables"]) == ({"used": "42"}, {"SEEN": "yes"})
    assert result["runnerVersion"] == __version__
    version = run(environment / "bin/python", "-m", "cronium_controller", "version", cwd=tmp_path, env=variables)
    assert version.stdout == f"cronium {__version__}\n"


@pytest.mark.skipif(emulation.missing() is not None, reason=emulation.missing() or "")
def test_the_wheels_serve_a_host_of_the_other_architecture(
    environment: Path, aarch64_root: Path, tmp_path: Path
) -> None:
    """A real sshd, of which every session is in a root directory where the programs of aarch64 run in qemu."""
    options = [f"ChrootDirectory {emulation.BESIDE}"]
    within = emulation.command(aarch64_root, option="--beside")
    server = OpenSSHServer(tmp_path / "sshd", environment={"PATH": "/bin"}, options=options, within=within)
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/sh\necho "$(cronium.input word)"; cronium.output used 42; cronium.setVariable SEEN yes\n')
    variables = {"HOME": str(tmp_path), "PATH": "/bin", "CRONIUM_CONTROLLER_STATE": str(tmp_path / "controller")}
    command = [environment / "bin/cronium", "run", "--host", f"root@{server.target}", "--identity", server.identity]
    command += ["--known-hosts", server.known_hosts, "--json", "--input", '{"word": "words"}']
    server.start()
    try:
        done = run(*command, script, cwd=tmp_path, env=variables)
    finally:
        server.stop()
    result = json.loads(done.stdout)
    assert (result["exitCode"], result["stdout"]["text"]) == (0, "words\n"), result
    assert (result["output"], result["variables"]) == ({"used": "42"}, {"SEEN": "yes"})
    assert [path.parent.name for path in aarch64_root.rglob("ld-linux-aarch64.so.1")] == ["_internal"]


def test_the_release_pins_the_binaries_and_a_checkout_does_not(wheels: Path, tmp_path: Path) -> None:
    def requirements(folder: Path) -> list[str]:
        with zipfile.ZipFile(folder / f"cronium_runner-{__version__}-py3-none-any.whl") as wheel:
            metadata = wheel.read(f"cronium_runner-{__version__}.dist-info/METADATA").decode()
        return [line for line in metadata.splitlines() if line.startswith("Requires-Dist: cronium")]

    assert requirements(wheels) == [f"Requires-Dist: cronium-runner-binaries=={__version__}"]
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path, cwd=ROOT)
    assert requirements(tmp_path) == []


def test_the_binaries_travel_with_their_checksums(wheels: Path) -> None:
    with zipfile.ZipFile(wheels / f"cronium_runner_binaries-{__version__}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if name.startswith("cronium_runner_binaries/")}
    here = {path.name for path in (ROOT / "dist").glob(f"cronium-runner-{__version__}-linux-*")}
    assert names == {f"cronium_runner_binaries/{name}" for name in (*here, "__init__.py")}


def test_man_pages_completion_and_the_schema_are_installed(environment: Path, tmp_path: Path) -> None:
    share = environment / "share"
    schema = share / "cronium-runner/manifest.schema.json"
    assert schema.read_bytes() == (ROOT / "manifest.schema.json").read_bytes()
    for shell, path in (
        ("bash", "bash-completion/completions/cronium"),
        ("zsh", "zsh/site-functions/_cronium"),
        ("fish", "fish/vendor_completions.d/cronium.fish"),
    ):
        assert (share / path).read_text() == run(environment / "bin/cronium", "completion", shell, cwd=tmp_path).stdout
    pages = {path.name.removesuffix(".1") for path in (share / "man/man1").iterdir()}
    assert pages >= {f"cronium-{name}" for name in cronium.commands} | {"cronium", "cronium-api-variables-set"}
    assert pages >= {f"cronium-runner-{name}" for name in cronium_runner.commands} | {"cronium-runner"}
    page = (share / "man/man1/cronium-run.1").read_text()
    for parameter in cronium.commands["run"].params:
        for option in parameter.opts if isinstance(parameter, click.Option) else ():
            assert option.replace("-", "\\-") in page
    for written in (share / "man/man1").iterdir() if shutil.which("groff") else ():
        assert run("groff", "-man", "-ww", "-Tutf8", "-z", written).stderr == "", written.name


def test_two_runs_make_the_same_wheels(wheels: Path, tmp_path: Path) -> None:
    run(sys.executable, ROOT / "build/wheels.py", tmp_path, cwd=tmp_path)
    for path in wheels.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_damaged_binary_goes_into_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    for path in (ROOT / "build").glob("*.py"):
        shutil.copy(path, tmp_path / "build")
    for path in (ROOT / "runner/cronium_runner/__init__.py",):
        (tmp_path / "runner/cronium_runner").mkdir(parents=True)
        shutil.copy(path, tmp_path / "runner/cronium_runner")
    command = [sys.executable, str(tmp_path / "build/wheels.py"), str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "there is no binary of version" in done.stderr
    (tmp_path / "dist").mkdir()
    binary = tmp_path / "dist" / f"cronium-runner-{__version__}-linux-x86_64"
    binary.write_bytes(b"half")
    binary.with_name(f"{binary.name}.sha256").write_text(f"{'0' * 64}  {binary.name}\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "is not what" in done.stderr
    assert not list(tmp_path.glob("made/*"))
