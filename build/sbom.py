"""What a runner binary consists of: a CycloneDX list of its parts, and the texts of their licences.

In:  the form that the binary carries, the modules in it, the distributions of this environment that they come from, and
     the Debian packages that it has Python and shared libraries of.
Out: `components`, from which `bill` makes the document and `licences` one text. Equal inputs give equal bytes.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from archive import Package

OURS = ("cronium_runner", "cronium_helpers", "cronium_controller")
BUILD_TOOLS = {
    "pyinstaller": "its bootloader starts the runner",
    "ziglang": "compiled programs are linked with its musl",
    "zstandard": "the launcher is compiled with the zstd source that its archive has",
}
"""Distributions that no module comes from, and of which parts are in the binary all the same."""
ZIG_TEXTS = ("LICENSE", "lib/libc/musl/COPYRIGHT")
LICENCE_NAMES = re.compile(r"(licen[cs]e|copying|copyright|notice|authors)", re.IGNORECASE)
NAMESPACE = uuid.UUID("6f8df1c1-8a0e-4c53-9d63-0c6a6f1a4b1e")
"""Of serial numbers, which are made of the content. Any fixed number would do."""


@dataclass(frozen=True)
class Component:
    """A part that comes from another project. `files` are those of it in the binary, with their SHA-256.

    `sha256` is a Debian package's, or over the names and digests of a distribution's files, of which the binary has
    compiled forms.
    """

    name: str
    version: str
    purl: str
    kind: str = "library"
    why: str = ""
    files: tuple[tuple[str, str], ...] = ()
    licence: str = ""
    sha256: str = ""
    texts: tuple[Path, ...] = field(default=(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """As CycloneDX writes it."""
        told: dict[str, Any] = {"type": self.kind, "bom-ref": self.purl, "name": self.name, "version": self.version}
        if self.why:
            told["description"] = self.why
        if self.licence:
            told["licenses"] = [{"license": {"name": self.licence}}]
        told["purl"] = self.purl
        if self.sha256:
            of = "package" if self.purl.startswith("pkg:deb/") else "files"
            told["properties"] = [{"name": f"cronium:sha256-of-{of}", "value": self.sha256}]
        if self.files:
            told["components"] = [
                {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
                for name, digest in self.files
            ]
        return told


def components(form: Path, modules: Collection[str], unpacked: Path, owners: Mapping[str, Package]) -> list[Component]:
    """The parts of the binary that carries `form`. Stops for one whose licence text is not here.

    `unpacked` is the directory of the Debian packages, `owners` the package of each file in it.
    """
    found = [*distributions(modules, form.parents[1]), *of_packages(form, unpacked, owners)]
    found.sort(key=lambda one: one.purl)
    for one in found:
        if not one.texts:
            raise SystemExit(f"release: no licence text of {one.name} {one.version} is on this machine")
    return found


def distributions(modules: Collection[str], work: Path) -> Iterator[Component]:
    """The distributions that the modules come from, and the tools that put something of their own into the binary.

    `work` is the folder of the build, where the sources are that were compiled.
    """
    owners = importlib.metadata.packages_distributions()
    names = {owner for module in modules for owner in owners.get(module.partition(".")[0], ())}
    names = {name for name in names if name.replace("-", "_") not in OURS}
    for name in sorted(names | set(BUILD_TOOLS), key=str.lower):
        found = importlib.metadata.distribution(name)
        normal = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        yield Component(
            found.metadata["Name"],
            found.version,
            f"pkg:pypi/{normal}@{quote(found.version)}",
            why=BUILD_TOOLS.get(normal, ""),
            licence=_licence(found),
            sha256=_digest_of_files(found),
            texts=tuple(_texts(found, normal, work)),
        )


def _licence(found: importlib.metadata.Distribution) -> str:
    """What the distribution says in a word; nothing where it says a whole text, which is in `licences`."""
    said = [text for name in ("License-Expression", "License") for text in found.metadata.get_all(name) or ()]
    return next((text for text in said if text and len(text) <= 60 and "\n" not in text), "")


def _digest_of_files(found: importlib.metadata.Distribution) -> str:
    """Over what its wheel has said of its files, without those about the installation, which may differ."""
    lines = [
        f"{file} {file.hash.value}\n"
        for file in found.files or ()
        if file.hash is not None and ".." not in file.parts and not file.parts[0].endswith(".dist-info")
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _texts(found: importlib.metadata.Distribution, normal: str, work: Path) -> Iterator[Path]:
    for file in sorted(found.files or (), key=str):
        if file.parts[0].endswith(".dist-info") and LICENCE_NAMES.match(file.name):
            yield Path(str(file.locate()))
    if normal == "ziglang":
        folder = Path(str(found.locate_file("ziglang")))
        yield from (folder / name for name in ZIG_TEXTS)
    elif normal == "zstandard":
        yield from work.glob(f"zstandard-{found.version}/zstd/LICENSE")


def of_packages(form: Path, unpacked: Path, owners: Mapping[str, Package]) -> Iterator[Component]:
    """The Debian packages of Python and the shared libraries. Stops for a library that none has."""
    packages = {os.path.basename(path): package for path, package in owners.items()}
    files: dict[Package, list[Path]] = {package: [] for package in owners.values()}
    for path in sorted(form.rglob("*.so*")):
        if path.name not in packages:
            raise SystemExit(f"release: {path.name} comes from no package of packages.lock")
        files[packages[path.name]].append(path)
    for package in sorted(files):
        text = unpacked / "usr" / "share" / "doc" / package.name / "copyright"
        yield Component(
            package.name,
            package.version,
            f"pkg:deb/debian/{quote(package.name)}@{quote(package.version)}?arch={package.architecture}",
            "platform" if package.name.startswith("libpython") else "library",
            why=f"of the source package {package.source}",
            files=digests(form, files[package]),
            sha256=package.sha256,
            texts=(text,) if text.is_file() else (),
        )


def digests(form: Path, files: Iterable[Path]) -> tuple[tuple[str, str], ...]:
    """Names below the frozen folder, and SHA-256."""
    return tuple((str(path.relative_to(form)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)


def bill(parts: Iterable[Component], *, version: str, commit: str, made_at: str, binary: Path) -> str:
    """The CycloneDX document of one binary. `made_at` is the commit's time, in UTC and ISO 8601."""
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    own = {
        "type": "application",
        "bom-ref": f"pkg:pypi/cronium-runner@{version}",
        "name": binary.name,
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
        "purl": f"pkg:pypi/cronium-runner@{version}",
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "properties": [{"name": "cronium:commit", "value": commit}],
    }
    told = [part.to_json() for part in parts]
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": made_at, "component": own},
        "components": told,
        "dependencies": [{"ref": own["bom-ref"], "dependsOn": [part["bom-ref"] for part in told]}],
    }
    serial = uuid.uuid5(NAMESPACE, json.dumps(body, sort_keys=True))
    return json.dumps({**body, "serialNumber": f"urn:uuid:{serial}"}, indent=2, ensure_ascii=False) + "\n"


def licences(parts: Iterable[Component]) -> str:
    """The licence texts of all parts, each once."""
    shown: dict[str, list[str]] = {}
    for part in parts:
        for path in part.texts:
            text = path.read_text("utf-8", "replace").strip()
            shown.setdefault(text, []).append(f"{part.name} {part.version}")
    blocks = [f"{'=' * 80}\n{', '.join(names)}\n{'=' * 80}\n\n{text}\n" for text, names in shown.items()]
    head = "The runner binary contains parts that others have made. These are their licences.\n"
    return os.linesep.join([head, *blocks])
