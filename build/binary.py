"""Makes the runner binaries. `scripts/build` runs it.

In:  this checkout; the Python that runs this, with the `build` extra installed; the Debian packages of packages.lock,
     from Debian's archive or the folder that CRONIUM_BUILD_PACKAGES names.
Out: for each architecture `dist/cronium-runner-VERSION-linux-ARCH` with a `.sha256` beside it, and `dist/client-ARCH`,
     the compiled helper client; on standard output, the path of this machine's binary.

What could not be had is said on standard error. Without the packages, this machine's binary is made of its own Python
and libraries, and others are left out; with newer ones than the lock's, or with this machine's, the commit that
a binary names ends in `-unlocked`. `--relock` renews the lock first.

Nothing is done when no input has changed. Two builds of the same commit give the same bytes: the inputs are sorted,
every time stamp is the commit's, and hashing of strings is fixed.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final

import compiled
import imports
import interpreter
import modules
import packages
import portable
import sources
from archive import Archive, Folder, Mirror, Package, UnavailableError

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".work" / "build"
DIST = ROOT / "dist"
NOTES: Final = DIST / ".binaries"
"""JSON: `inputs`, a digest of all that went into the binaries, and `notes`, what could not be had for them."""
PACKAGES: Final = "CRONIUM_BUILD_PACKAGES"
"""The variable that names a folder of Debian packages, in place of the archive."""
INPUTS = ("pyproject.toml", "LICENSE", "build", "runner", "helpers")
TOOLS: Final = ("pyinstaller", "ziglang", "zstandard", "pyyaml", "click", "httpx", "httpcore", "h11", "idna")
ARCHITECTURES: Final = ("x86_64", "aarch64")
UNLOCKED: Final = "-unlocked"
EPOCH = "1735689600"
"""2025-01-01, the build time of a tree without a commit. Any fixed number would do."""


@dataclass(frozen=True)
class Build:
    """What the binaries of all architectures have in common."""

    version: str
    commit: str
    built_at: str
    target: Path
    """The folder of the unpacked wheel."""
    found: dict[str, Any]
    """What PyInstaller has found: see cronium-runner.spec."""
    zstd: Path
    clients: dict[str, Path]


def main(words: list[str]) -> int:
    """Makes what is not there yet."""
    if words not in ([], ["--relock"]):
        raise SystemExit("usage: scripts/build [--relock]")
    if words:
        packages.relock(archive())
    commit, epoch = identity()
    stamp = fingerprint(commit)
    binaries = {name: DIST / f"cronium-runner-{package_version()}-linux-{name}" for name in ARCHITECTURES}
    said = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    wanted = [*(DIST / f"client-{name}" for name in ARCHITECTURES), binaries[platform.machine()]]
    if said.get("inputs") != stamp or not all(path.exists() for path in wanted):
        NOTES.unlink(missing_ok=True)
        said = {"inputs": stamp, "notes": made(binaries, commit, epoch)}
        NOTES.write_text(json.dumps(said))
    for note in said["notes"]:
        print(f"build: {note}", file=sys.stderr)
    print(binaries[platform.machine()])
    return 0


def made(binaries: dict[str, Path], commit: str, epoch: str) -> list[str]:
    """Makes the binaries anew; what could not be had for them, in sentences."""
    os.environ.update(SOURCE_DATE_EPOCH=epoch, PYTHONHASHSEED="0", TZ="UTC")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    DIST.mkdir(exist_ok=True)
    target = unpacked_wheel()
    source = target / "cronium_helpers" / "client.c"
    clients = {name: compiled.client(source, name, WORK / f"client-{name}") for name in ARCHITECTURES}
    try:
        zstd = sources.zstd(WORK)
    except UnavailableError as error:
        raise SystemExit(f"build: {error}") from None
    build = Build(package_version(), commit, build_time(epoch), target, analysed(target), zstd, clients)
    notes: list[str] = []
    for architecture, binary in binaries.items():
        put(clients[architecture], DIST / f"client-{architecture}")
        try:
            python, is_locked = chosen(architecture, build, notes)
            carrier = assembled(build, python, is_locked)
        except UnavailableError as error:
            notes.append(f"there is no binary for {architecture}: {error}; remove dist to try again")
            binary.unlink(missing_ok=True)  # one of other sources
            continue
        put(carrier, binary)
        digest = hashlib.sha256(binary.read_bytes()).hexdigest()
        (DIST / f"{binary.name}.sha256").write_text(f"{digest}  {binary.name}\n")
    return notes


def chosen(architecture: str, build: Build, notes: list[str]) -> tuple[interpreter.Interpreter, bool]:
    """The Python for an architecture, and whether it is exactly the lock's. Raises UnavailableError."""
    root = WORK / "packages" / architecture
    try:
        if sys.version_info[:2] != packages.PYTHON:
            minor = ".".join(map(str, packages.PYTHON))
            raise UnavailableError(f"the packages are of Python {minor}, and this is {platform.python_version()}")
        unpacked = packages.unpack(architecture, archive(), root)
    except UnavailableError as error:
        if architecture != platform.machine():
            raise
        notes.append(f"the binary for {architecture} is made of this machine's Python and libraries: {error}")
        return interpreter.of_this_machine(architecture, build.found["libraries"]), False
    for sentence in unpacked.unlocked:
        notes.append(f"{sentence}, which the archive has no more; scripts/build --relock renews the lock")
    owners = {path: package._asdict() for path, package in unpacked.owners.items()}
    (WORK / "packages" / f"{architecture}.json").write_text(json.dumps(owners))
    return interpreter.of_packages(root, architecture), not unpacked.unlocked


def archive() -> Archive:
    """Where Debian packages come from."""
    named = os.environ.get(PACKAGES)
    kept = ROOT / ".work" / "packages"
    return Folder(Path(named)) if named else Mirror(kept, packages.SUITES, packages.ARCHITECTURES.values())


def assembled(build: Build, python: interpreter.Interpreter, is_locked: bool) -> Path:
    """The binary of one architecture. Raises SystemExit and UnavailableError."""
    architecture = python.architecture
    launcher = compiled.launcher(build.zstd, architecture, WORK / f"launcher-{architecture}")
    bootloader = sources.bootloader(architecture, WORK)
    form = installed_form(architecture)
    (form / "_internal").mkdir(parents=True)
    modules.write_modules(form / "_internal", build.found["modules"], build.found["extensions"], python)
    modules.write_library(form / "_internal", python)
    modules.write_archive(form / "cronium-runner.pkg", build.target / "cronium_runner" / "__main__.py", WORK)
    imports.check(build.target, modules.carried(form / "_internal", python))
    helpers = {f"helpers/{path}": source for path, source in helper_files(build.target).items()}
    helpers["helpers/client"] = build.clients[architecture]
    portable.assemble(form, launcher, bootloader, helpers, python)
    identity_line = f"{build.version} {build.commit}{'' if is_locked else UNLOCKED} {build.built_at}"
    carrier = WORK / f"carrier-{architecture}"
    portable.carry(form, helper_links(), identity_line, launcher, carrier, bundle_magic())
    return carrier


def installed_form(architecture: str) -> Path:
    """The folder of the form that a binary carries."""
    return WORK / "forms" / architecture


def parts(architecture: str) -> tuple[Path, set[str], Path, dict[str, Package]]:
    """What a list of the binary's parts is made of, once it is built from packages: its form, the modules in it, the
    directory of the packages, and the package of each file in that."""
    form, root = installed_form(architecture), WORK / "packages" / architecture
    owners = json.loads((WORK / "packages" / f"{architecture}.json").read_text())
    carried = modules.carried(form / "_internal", interpreter.of_packages(root, architecture))
    return form, carried, root, {path: Package(**package) for path, package in owners.items()}


def identity() -> tuple[str, str]:
    """The commit that last changed an input, and its time in seconds. `+` marks a tree with changes on top."""
    shown = git("log", "-1", "--format=%h %ct", "--", *INPUTS)
    if not shown:
        return "uncommitted", EPOCH
    commit, epoch = shown.split()
    changed = git("status", "--porcelain", "--", *INPUTS)
    return commit + ("+" if changed else ""), epoch


def git(*words: str) -> str:
    """What git says; nothing where there is no git, no repository or no commit yet (a source archive, for one)."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def fingerprint(commit: str) -> str:
    """A digest of everything that the binaries are made of."""
    digest = hashlib.sha256(f"{sys.version} {commit} {os.environ.get(PACKAGES, '')}".encode())
    for tool in TOOLS:
        digest.update(f"{tool} {installed_version(tool)}\n".encode())
    for path in sorted(path for name in INPUTS for path in (ROOT / name, *(ROOT / name).rglob("*"))):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def package_version() -> str:
    scope: dict[str, str] = {}
    exec((ROOT / "runner/cronium_runner/__init__.py").read_text(), scope)  # noqa: S102 - our own file, one assignment
    return scope["__version__"]


def build_time(epoch: str) -> str:
    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unpacked_wheel() -> Path:
    """The distribution as a host would get it, so that a file missing from the wheel is missing here too."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, target = WORK / "wheel", WORK / "target"
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)])
    (wheel,) = wheels.glob("*.whl")
    run([*pip, "install", "--no-deps", "--no-compile", "--target", str(target), str(wheel)])
    return target


def analysed(target: Path) -> dict[str, Any]:
    """What PyInstaller finds that the runner needs."""
    found = WORK / "found.json"
    handed_over = {
        "CRONIUM_BUILD_TARGET": str(target),
        "CRONIUM_BUILD_FOUND": str(found),
        "PYINSTALLER_CONFIG_DIR": str(WORK / "cache"),
        "PYTHONPATH": str(target),  # before the checkout, which an editable install puts on the path
    }
    pyinstaller = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR"]
    places = ["--workpath", str(WORK / "pyinstaller"), "--distpath", str(WORK / "frozen")]
    run([*pyinstaller, *places, str(ROOT / "build" / "cronium-runner.spec")], handed_over)
    return dict(json.loads(found.read_text()))


def helper_files(target: Path) -> dict[str, Path]:
    """The files of the helper folder by their paths in it, without the client."""
    from cronium_runner.install import HELPER_FILES

    files = ((folder, name) for folder, names in HELPER_FILES.items() for name in names)
    return {f"{folder}/{name}": target / "cronium_helpers" / name for folder, name in files}


def helper_links() -> dict[str, str]:
    """What the links of the installed form lead to, by their paths."""
    from cronium_runner.helpers import HELPER_NAMES
    from cronium_runner.install import MODULE_LINK

    return {f"helpers/bin/{name}": "../client" for name in HELPER_NAMES} | {f"helpers/{MODULE_LINK[0]}": MODULE_LINK[1]}


def bundle_magic() -> str:
    from cronium_runner.bundle import MAGIC

    return MAGIC


def put(source: Path, destination: Path) -> None:
    """Renamed into place, so that nobody ever executes half a file, or is kept from replacing a running one."""
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.chmod(0o755)
    temporary.replace(destination)


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=os.environ | (environment or {}), stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} … failed with status {done.returncode}")


if __name__ == "__main__":
    if "no_debug_ranges" not in sys._xoptions:  # columns for tracebacks, which have no lines of source on a host
        os.execv(sys.executable, [sys.executable, "-X", "no_debug_ranges", *sys.argv])
    sys.exit(main(sys.argv[1:]))
