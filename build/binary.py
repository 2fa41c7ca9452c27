"""Makes the runner binary: wheel, helper clients, launcher, PyInstaller, checksum. `scripts/build` runs it.

In:  this checkout, and the Python that runs this (with the `build` extra installed).
Out: `dist/cronium-runner-<version>-linux-<arch>` with a `.sha256` beside it, `dist/client-<arch>` for each
     architecture that has a compiled helper client; the binary's path on standard output.

Nothing is done when no input has changed. Two builds of the same commit give the same bytes: the inputs are sorted,
every time stamp is the commit's, and hashing of strings is fixed.
"""

import _imp
import ast
import hashlib
import marshal
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version as installed_version
from pathlib import Path

import portable

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".work" / "build"
DIST = ROOT / "dist"
INPUTS = ("pyproject.toml", "LICENSE", "build", "runner", "helpers")
CLIENTS = ("x86_64", "aarch64")
SOURCES = ROOT / ".work" / "sources"
ZSTD_SHA256 = "7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b"
"""Of the source distribution of `zstandard` in the version that pyproject.toml asks for."""
ZSTD_FILES = ("zstd.c", "zstd.h", "zstd_errors.h", "LICENSE")
SMALL_DECODER = (
    "ZSTD_DISABLE_ASM=1",
    "ZSTD_LEGACY_SUPPORT=0",
    "ZSTD_STRIP_ERROR_STRINGS=1",
    "HUF_FORCE_DECOMPRESS_X1",
    "ZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT",
    "ZSTD_NO_INLINE=1",
    "NDEBUG",
)
"""zstd's own names for leaving out what makes it quicker and larger."""
FROZEN = {name for name in sys.stdlib_module_names if _imp.is_frozen(name)} | {"importlib.machinery", "importlib.util"}
"""Modules that are in the Python library itself."""
EPOCH = "1735689600"
"""2025-01-01, the build time of a tree without a commit. Any fixed number would do."""


def main() -> int:
    architecture = platform.machine()
    commit, epoch = identity()
    stamp = fingerprint(commit)
    version = package_version()
    binary = DIST / f"cronium-runner-{version}-linux-{architecture}"
    stamp_file = DIST / f".{binary.name}.inputs"
    wanted = [binary, *(DIST / f"client-{name}" for name in CLIENTS)]
    if all(path.exists() for path in wanted) and stamp_file.exists() and stamp_file.read_text() == stamp:
        print(binary)
        return 0
    stamp_file.unlink(missing_ok=True)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    DIST.mkdir(exist_ok=True)
    environment = os.environ | {"SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": "0", "TZ": "UTC"}
    target = unpacked_wheel(environment)
    clients = {name: compiled_client(target, name, environment) for name in CLIENTS}
    launcher = compiled_launcher(architecture, zstd_source(environment), environment)
    form = freeze(target, environment)
    helpers = {f"helpers/{path}": source for path, source in helper_files(target).items()}
    helpers["helpers/client"] = clients[architecture]
    portable.assemble(form, launcher, helpers, architecture, library_folders(architecture))
    check_imports(target)
    carrier = WORK / binary.name
    identity_line = f"{version} {commit} {build_time(epoch)}"
    portable.carry(form, helper_links(), identity_line, launcher, carrier, bundle_magic())
    for name, client in clients.items():
        put(client, DIST / f"client-{name}")
    put(carrier, binary)
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    (DIST / f"{binary.name}.sha256").write_text(f"{digest}  {binary.name}\n")
    stamp_file.write_text(stamp)
    print(binary)
    return 0


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
    """A digest of everything that the binary is made of."""
    digest = hashlib.sha256(f"{sys.version} {commit}".encode())
    for tool in ("pyinstaller", "ziglang", "zstandard", "pyyaml", "click", "httpx", "httpcore", "h11", "idna"):
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
    from datetime import UTC, datetime

    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unpacked_wheel(environment: dict[str, str]) -> Path:
    """The distribution as a host would get it, so that a file missing from the wheel is missing here too."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, target = WORK / "wheel", WORK / "target"
    run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)],
        environment,
    )
    (wheel,) = wheels.glob("*.whl")
    run([*pip, "install", "--no-deps", "--no-compile", "--target", str(target), str(wheel)], environment)
    return target


def compiled_client(target: Path, architecture: str, environment: dict[str, str]) -> Path:
    """The helper client, static and against musl, so that it runs on any Linux of that architecture."""
    client = WORK / f"client-{architecture}"
    source = target / "cronium_helpers" / "client.c"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl"]
    run([*compiler, "-Os", "-static", "-s", "-o", str(client), str(source)], environment)
    return client


def compiled_launcher(architecture: str, zstd: Path, environment: dict[str, str]) -> Path:
    """The launcher, static and against musl as well: what stands in front of the runner can need nothing."""
    launcher = WORK / f"launcher-{architecture}"
    sources = [*sorted(map(str, (ROOT / "build" / "launcher").glob("*.c"))), str(zstd / "zstd.c")]
    options = [
        "-target",
        f"{architecture}-linux-musl",
        "-std=gnu11",
        "-Os",
        "-static",
        "-s",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    sections = ["-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"]
    decoder = [f"-I{zstd}", *(f"-D{name}" for name in SMALL_DECODER)]
    run(
        [sys.executable, "-m", "ziglang", "cc", *options, *sections, *decoder, "-o", str(launcher), *sources],
        environment,
    )
    return launcher


def zstd_source(environment: dict[str, str]) -> Path:
    """The folder of zstd's source in one file, as the source distribution of `zstandard` has it. Fetched once."""
    archive = SOURCES / f"zstandard-{installed_version('zstandard')}.tar.gz"
    if not archive.exists():
        SOURCES.mkdir(parents=True, exist_ok=True)
        fetch = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
        wanted = ["--no-binary", "zstandard", "--dest", str(SOURCES), f"zstandard=={installed_version('zstandard')}"]
        run([*fetch, *wanted], environment)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != ZSTD_SHA256:
        raise SystemExit(f"{archive} has the SHA-256 {digest}, not {ZSTD_SHA256}: remove it, and build again")
    folder = WORK / archive.name.removesuffix(".tar.gz") / "zstd"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as members:
        for name in ZSTD_FILES:
            content = members.extractfile(f"{folder.parent.name}/zstd/{name}")
            if content is None:
                raise SystemExit(f"{archive} has no file zstd/{name}")
            (folder / name).write_bytes(content.read())
    return folder


def freeze(target: Path, environment: dict[str, str]) -> Path:
    """PyInstaller's folder: the bootloader, the archive that it reads beside it, and `_internal/`."""
    handed_over = {
        "CRONIUM_BUILD_TARGET": str(target),
        "PYINSTALLER_CONFIG_DIR": str(WORK / "cache"),
        "PYTHONPATH": str(target),  # before the checkout, which an editable install puts on the path
    }
    pyinstaller = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR"]
    places = ["--workpath", str(WORK / "pyinstaller"), "--distpath", str(WORK / "frozen")]
    run([*pyinstaller, *places, str(ROOT / "build" / "cronium-runner.spec")], environment | handed_over)
    return WORK / "frozen" / "installed"


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


def library_folders(architecture: str) -> list[Path]:
    """Where this machine has the C library."""
    own = [f"/lib/{architecture}-linux-gnu", f"/usr/lib/{architecture}-linux-gnu"]
    return [Path(name) for name in (*own, "/lib64", "/usr/lib64", "/lib", "/usr/lib")]


def check_imports(target: Path) -> None:
    """Stop when one of our modules needs what the spec leaves out: on a host that would fail late, and rarely.

    Every import statement of ours must name a carried module, also those inside functions; and all our modules
    must import in a Python that can find nothing else, which tells about click, yaml and the standard library too.
    """
    carried = carried_modules()
    missing = set()
    modules = []
    for path in sorted((target / "cronium_runner").rglob("*.py")):
        modules.append(".".join(path.relative_to(target).with_suffix("").parts).removesuffix(".__init__"))
        missing |= {f"{path.name}: {name}" for name in imported(path) if name not in carried}
    if missing:
        raise SystemExit(f"the binary lacks modules that the runner imports: {', '.join(sorted(missing))}")
    program = """
import sys
carried, modules, target = eval(sys.stdin.read())
class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in carried:
            raise ModuleNotFoundError(f"No module named {name!r} in the binary", name=name)
sys.meta_path.insert(0, Missing)
sys.path.insert(0, target)
for name in modules:
    __import__(name)
"""
    handed_over = repr((carried, modules, str(target)))
    done = subprocess.run([sys.executable, "-c", program], input=handed_over, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit("a module of the binary cannot be imported there, see above: look at UNUSED in the spec")


def carried_modules() -> set[str]:
    content = (WORK / "frozen" / "installed" / "_internal" / "runner.modules").read_bytes()
    index = marshal.loads(content[4 : 4 + int.from_bytes(content[:4], "big")])  # noqa: S302 - made a moment ago
    return set(index) | set(sys.builtin_module_names) | FROZEN


def imported(path: Path) -> Iterator[str]:
    """The absolute module names in the import statements of one source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module)


def put(source: Path, destination: Path) -> None:
    """Renamed into place, so that nobody ever executes half a file, or is kept from replacing a running one."""
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.chmod(0o755)
    temporary.replace(destination)


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} … failed with status {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
