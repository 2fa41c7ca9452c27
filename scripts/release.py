"""Makes a release of the commit that is checked out. `scripts/release` runs it; docs/releasing.md describes it.

In:  a clean checkout, a section of CHANGELOG.md with the version and a date, an SSH key (a file, or the public half of
     one that an agent holds), and the Python that runs this, with the `build` extra installed.
Out: in `dist/release-VERSION`, or the folder of --output: the binaries that are made here, each with `.sha256` and
     `.sig`; wheels and source archive; a CycloneDX list and the licences of the parts of each binary; the section of
     the changelog; SHA256SUMS and its signature. And a tag, here only.

Everything is made in a clone of that commit, with its time as the only time, so a second run gives the same bytes, also
elsewhere and later, by the same tools; signatures too, where the key is Ed25519 or RSA.
"""

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY_NAMESPACE = "binary@cronium-runner"
RELEASE_NAMESPACE = "release@cronium-runner"
SUMS = "SHA256SUMS"
BINARY = re.compile(r"cronium-runner-.+-linux-[a-z0-9_]+")
HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>.*)$", re.MULTILINE)


def main(words: list[str]) -> int:
    """Makes the release that the words ask for."""
    parser = argparse.ArgumentParser(prog="scripts/release", description="Makes a release of the commit checked out.")
    parser.add_argument(
        "--key", required=True, help="the SSH key that signs: a private key, or a public one of an agent's"
    )
    parser.add_argument("--output", type=Path, help="the folder; it must not exist")
    parser.add_argument("--no-tag", action="store_true", help="make no tag")
    options = parser.parse_args(words)
    refuse_changes()
    version = package_version(ROOT)
    notes = section(version)
    output = (options.output or ROOT / "dist" / f"release-{version}").resolve()
    if output.exists():
        raise SystemExit(f"release: {output} exists; remove it, or name another folder with --output")
    refuse_other_tag(version)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".release-", dir=output.parent) as name:
        folder = Path(name) / "files"
        folder.mkdir()
        make(clone(Path(name) / "checkout"), folder, version, options.key)
        (folder / "RELEASE-NOTES.md").write_text(notes)
        put_sums(folder, options.key)
        folder.rename(output)
    if not options.no_tag:
        tag(version, notes)
    print(output)
    return 0


def git(*words: str, folder: Path = ROOT) -> str:
    """What git prints. Stops when it fails."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"release: git {words[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def refuse_changes() -> None:
    """Stops where the checkout is not the commit: what is released must be what can be checked out."""
    changed = git("status", "--porcelain")
    if changed:
        raise SystemExit(f"release: the checkout has changes; commit them, or put them aside:\n{changed}")


def package_version(checkout: Path) -> str:
    """The version of the sources."""
    text = (checkout / "runner/cronium_runner/__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    return str(version)


def section(version: str) -> str:
    """The version's section of CHANGELOG.md. Stops where there is none, or none with a date."""
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = list(HEADING.finditer(text))
    for at, heading in enumerate(headings):
        if heading["version"] != version:
            continue
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", heading["date"]):
            raise SystemExit(f"release: CHANGELOG.md says '{heading['date']}' of {version}; write the date there")
        end = headings[at + 1].start() if at + 1 < len(headings) else len(text)
        content = text[heading.end() : end].strip()
        if not content:
            raise SystemExit(f"release: the section of {version} in CHANGELOG.md is empty")
        return content + "\n"
    raise SystemExit(f"release: CHANGELOG.md has no section '## [{version}] - DATE'")


def refuse_other_tag(version: str) -> None:
    """Stops where the version's tag is on another commit."""
    known = git("tag", "--list", f"v{version}")
    if known and git("rev-list", "-n", "1", f"v{version}") != git("rev-parse", "HEAD"):
        raise SystemExit(f"release: the tag v{version} is on another commit; raise the version")


def clone(folder: Path) -> Path:
    """A checkout of the commit that nothing else is in."""
    git("clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder))
    git("checkout", "--quiet", "--detach", git("rev-parse", "HEAD"), folder=folder)
    for name in ("sources", "packages"):  # which a build checks by their SHA-256
        if (ROOT / ".work" / name).is_dir():
            shutil.copytree(ROOT / ".work" / name, folder / ".work" / name)
    return folder


def make(checkout: Path, folder: Path, version: str, key: str) -> None:
    """Everything but the sums: binaries, their lists and licences, wheels and source archive."""
    sys.path.insert(0, str(checkout / "build"))
    build, sbom = importlib.import_module("binary"), importlib.import_module("sbom")
    run([sys.executable, str(checkout / "build" / "binary.py")], checkout)
    told = json.loads(build.NOTES.read_text())
    if told["notes"]:
        lines = "\n".join(f"  {note}" for note in told["notes"])
        raise SystemExit(f"release: these binaries are not to be released:\n{lines}")
    commit, epoch = build.identity()
    texts = {}
    for architecture in build.ARCHITECTURES:
        binary = build.DIST / f"cronium-runner-{version}-linux-{architecture}"
        sign(binary, BINARY_NAMESPACE, key)
        for path in (binary, *(binary.with_name(binary.name + end) for end in (".sha256", ".sig"))):
            shutil.copy2(path, folder / path.name)
        parts = sbom.components(*build.parts(architecture))
        text = sbom.bill(parts, version=version, commit=commit, made_at=build.build_time(epoch), binary=binary)
        (folder / f"{binary.name}.cdx.json").write_text(text)
        texts.update({part.purl: part for part in parts})
    (folder / "THIRD-PARTY-LICENSES.txt").write_text(sbom.licences(texts.values()))
    environment = os.environ | {
        "SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct"),
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
    }
    run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)], checkout, environment)
    run([sys.executable, str(checkout / "build" / "wheels.py"), str(folder)], checkout, environment)


def sign(path: Path, namespace: str, key: str) -> None:
    """Writes the signature of a file beside it; ssh-keygen asks for what it needs."""
    beside = path.with_name(path.name + ".sig")
    beside.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", os.path.expanduser(key), str(path)], path.parent)
    beside.chmod(0o644)


def put_sums(folder: Path, key: str) -> None:
    """SHA256SUMS of all files, and its signature. Modes and times are not left to the umask and the day."""
    epoch = int(git("log", "-1", "--format=%ct"))
    paths = sorted(folder.iterdir())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / SUMS).write_text("".join(lines))
    sign(folder / SUMS, RELEASE_NAMESPACE, key)
    for path in folder.iterdir():
        path.chmod(0o755 if BINARY.fullmatch(path.name) else 0o644)
        os.utime(path, (epoch, epoch))


def tag(version: str, notes: str) -> None:
    """The tag of the version, in this repository only."""
    if not git("tag", "--list", f"v{version}"):
        git(
            "tag",
            "--annotate",
            "--cleanup=verbatim",
            f"v{version}",
            "--message",
            f"cronium-runner {version}\n\n{notes}",
        )
    print(f"release: tagged v{version} here; git push origin v{version} publishes it", file=sys.stderr)


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    """Runs a command; what it prints goes to standard error. Stops when it fails."""
    done = subprocess.run(command, cwd=folder, env=environment, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise SystemExit(f"release: {' '.join(command[:4])} … failed with status {done.returncode}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
