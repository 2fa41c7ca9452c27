"""Makes the two wheels of a release. `scripts/wheels` runs it.

In:  this checkout, the binaries of its version in `dist/` (`scripts/build` makes them), and the Python that runs this,
     with the `build` extra installed.
Out: `cronium_runner-VERSION-py3-none-any.whl`, which depends on exactly this version of cronium-runner-binaries, and
     `cronium_runner_binaries-VERSION-py3-none-any.whl`; in the folder that is the only argument, else in `dist/`. Their
     paths on standard output; on standard error, the architectures that have no binary.

Status 1 when there is no binary at all. Two runs on the same commit and the same binaries give the same bytes.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import binary

ARCHITECTURES = ("x86_64", "aarch64")
PACKAGE = "cronium_runner_binaries"


def main(words: list[str]) -> int:
    """Makes both wheels in the folder that `words` names."""
    target = Path(words[0]).resolve() if words else binary.DIST
    version = binary.package_version()
    files = binaries(version)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cronium-wheels-") as name:
        made = [
            wheel(binary.ROOT, Path(name) / "runner", CRONIUM_PIN_BINARIES="1"),
            wheel(data_project(Path(name) / "project", version, files), Path(name) / "binaries"),
        ]
        for path in made:
            print(shutil.move(path, target / path.name))
    return 0


def binaries(version: str) -> list[Path]:
    """The binaries of this version in `dist/`, each as its checksum says. Names those that are missing."""
    wanted = {name: binary.DIST / f"cronium-runner-{version}-linux-{name}" for name in ARCHITECTURES}
    missing = [name for name, path in wanted.items() if not path.is_file()]
    if len(missing) == len(wanted):
        raise SystemExit(
            f"wheels: there is no binary of version {version} in {binary.DIST}; make it with scripts/build"
        )
    if missing:
        print(f"wheels: {PACKAGE} is made without a binary for {', '.join(missing)}", file=sys.stderr)
    found = [path for path in wanted.values() if path.is_file()]
    for path in found:
        stated = sidecar(path).read_text().split()[:1] if sidecar(path).is_file() else []
        if stated != [hashlib.sha256(path.read_bytes()).hexdigest()]:
            raise SystemExit(f"wheels: {path} is not what {sidecar(path).name} says; make it again with scripts/build")
    return found


def sidecar(path: Path) -> Path:
    """The file with a binary's SHA-256."""
    return path.with_name(f"{path.name}.sha256")


def data_project(folder: Path, version: str, files: list[Path]) -> Path:
    """The project of the data-only distribution, with its package filled in."""
    shutil.copytree(binary.ROOT / "build" / "binaries", folder)
    shutil.copyfile(binary.ROOT / "LICENSE", folder / "LICENSE")
    package = folder / PACKAGE
    package.mkdir()
    text = f'"""Runner binaries, one for each architecture of hosts. No code."""\n\n__version__ = "{version}"\n'
    (package / "__init__.py").write_text(text)
    for path in files:
        shutil.copyfile(path, package / path.name)
        (package / path.name).chmod(0o755)
        for beside in path.parent.glob(f"{path.name}.*"):  # its checksum, and a signature where there is one
            shutil.copyfile(beside, package / beside.name)
    return folder


def wheel(project: Path, folder: Path, **variables: str) -> Path:
    """The wheel of a project, made in an empty folder."""
    settings = {"SOURCE_DATE_EPOCH": commit_time(), "PYTHONHASHSEED": "0", "TZ": "UTC"}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=project, env=os.environ | settings | variables, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise SystemExit(f"wheels: the wheel of {project} could not be made (status {done.returncode})")
    (made,) = folder.glob("*.whl")
    return made


def commit_time() -> str:
    """The time of the commit in seconds, which every file in the wheels gets."""
    return binary.git("log", "-1", "--format=%ct") or binary.EPOCH


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
