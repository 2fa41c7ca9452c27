"""Root directories for the hosts of host_table: a static busybox alone, and distributions by debootstrap."""

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

APP: Final = 4242
DIRECTORY_USER: Final = 4343
"""The uid and gid of `zoe`, whom /etc/passwd doesn't have and an NSS module knows."""
PACKAGES: Final = "python3,python3-venv,nodejs,sudo,libnss-extrausers"
BROKEN: Final = "/etc/broken.so"
_NAMES: Final = ("passwd:", "group:", "shadow:")
"""What nsswitch.conf(5) has modules for; sudo looks for an account in the last one, too."""

Prepare = Callable[[Path], None]


class UnavailableError(Exception):
    """A host cannot be had on this machine. The text says what is missing."""


def tool(name: str) -> str:
    """The path of a program. Raises UnavailableError."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise UnavailableError(f"{name} is not installed")
    return found


def empty(root: Path) -> None:
    """A static busybox, two devices and accounts; no library, no /tmp."""
    (root / "bin").mkdir()
    shutil.copy(tool("busybox"), root / "bin" / "busybox")
    (root / "usr").mkdir()
    (root / "usr" / "bin").symlink_to("../bin")
    done = subprocess.run(["chroot", root, "/bin/busybox", "--list"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UnavailableError("busybox is not static: busybox-static is not installed")
    fill(root, done.stdout.split())


def fill(root: Path, applets: Iterable[str]) -> None:
    """What the busybox in /bin is called by, two devices and accounts."""
    for name in applets:
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "dev").mkdir()
    for name, minor in (("null", 3), ("urandom", 9)):  # the other: for kernels without getrandom
        os.mknod(root / "dev" / name, 0o020666, os.makedev(1, minor))
        (root / "dev" / name).chmod(0o666)
    add_account(root)


def without_accounts(root: Path) -> None:
    """As an image that holds one program."""
    empty(root)
    shutil.rmtree(root / "etc")


def with_temporary(root: Path) -> None:
    """The busybox with the usual directories for temporary files."""
    empty(root)
    for name in ("tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
        (root / name).chmod(0o1777)


def add_account(root: Path) -> None:
    """Accounts root and app, with homes."""
    (root / "etc").mkdir(exist_ok=True)
    for name, line in (("passwd", f"app:x:{APP}:{APP}::/home/app:/bin/sh"), ("group", f"app:x:{APP}:")):
        there = (root / "etc" / name).read_text() if (root / "etc" / name).exists() else ""
        there = there or ("root:x:0:0::/root:/bin/sh\n" if name == "passwd" else "root:x:0:\n")
        (root / "etc" / name).write_text(f"{there}{line}\n")
    (root / "root").mkdir(exist_ok=True)
    _add_home(root, "app", APP)


def _add_home(root: Path, name: str, uid: int) -> None:
    home = root / "home" / name
    home.mkdir(parents=True)
    os.chown(home, uid, uid)


def with_broken_preload(prepare: Prepare) -> Prepare:
    """`prepare` with an /etc/ld.so.preload that names BROKEN, which is there and is no library."""

    def prepared(root: Path) -> None:
        prepare(root)
        (root / BROKEN.lstrip("/")).write_text("no library\n")
        (root / "etc" / "ld.so.preload").write_text(f"{BROKEN}\n")

    return prepared


# -- distributions -----------------------------------------------------------------------------------------------------


def distribution(name: str) -> Prepare:
    """A Debian release by its code name, with Python, Node, sudo and the NSS module extrausers."""

    def prepare(root: Path) -> None:
        made = _made(name)
        if isinstance(made, str):
            raise UnavailableError(made)
        _copy(made, root)
        add_account(root)

    return prepare


def with_directory_account(prepare: Prepare) -> Prepare:
    """`prepare` with `zoe`, whom only the NSS module knows, and who may use sudo to become `app`."""

    def prepared(root: Path) -> None:
        prepare(root)
        accounts = root / "var" / "lib" / "extrausers"
        accounts.mkdir(parents=True, exist_ok=True)
        uid = DIRECTORY_USER
        (accounts / "passwd").write_text(f"zoe:x:{uid}:{uid}:Zoe:/home/zoe:/bin/sh\n")
        (accounts / "group").write_text(f"zoe:x:{uid}:\n")
        (accounts / "shadow").write_text("zoe:*:20000:0:99999:7:::\n")
        for path in accounts.iterdir():
            path.chmod(0o644)
        switch = root / "etc" / "nsswitch.conf"
        kept = [line for line in switch.read_text().splitlines() if not line.startswith(_NAMES)]
        switch.write_text("\n".join([*kept, *(f"{name} files extrausers" for name in _NAMES), ""]))
        rule = root / "etc" / "sudoers.d" / "zoe"
        rule.write_text("zoe ALL=(app) NOPASSWD: ALL\n")
        rule.chmod(0o440)
        _add_home(root, "zoe", uid)

    return prepared


def mirror() -> str:
    """The address from which this machine's apt takes Debian packages. Raises UnavailableError."""
    words = ["indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    told = subprocess.run([tool("apt-get"), *words], capture_output=True, text=True, check=False).stdout
    for line in told.splitlines():
        origin, _, rest = line.partition(" ")
        release, _, address = rest.partition(" ")
        if origin == "Debian" and "-" not in release and address:  # bookworm-security is another one
            return address
    raise UnavailableError("apt has no mirror of Debian: run apt-get update, or install on Debian")


@functools.cache
def _made(name: str) -> Path | str:
    """A release's root directory as debootstrap makes it, or why it can't: tried once in this process, which takes
    minutes. Kept in CRONIUM_HOST_ROOTS, if that is set, for later processes. Raises UnavailableError."""
    kept = os.environ.get("CRONIUM_HOST_ROOTS")
    folder = Path(kept) if kept else _own_folder()
    root = folder / name
    if root.exists():
        return root
    half = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder))
    half.chmod(0o755)
    words = ["--variant=minbase", f"--include={PACKAGES}", name, str(half), mirror()]
    done = subprocess.run(
        [tool("debootstrap"), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        shutil.rmtree(half)
        said = (done.stderr or done.stdout).strip().splitlines()
        return f"debootstrap cannot make {name}: {said[-1] if said else done.returncode}"
    half.rename(root)
    return root


@functools.cache
def _own_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cronium-roots-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _copy(made: Path, root: Path) -> None:
    """Owners, modes, links and devices as they are."""
    subprocess.run(["cp", "-a", "--reflink=auto", f"{made}/.", root], check=True)
