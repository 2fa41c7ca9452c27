"""Real keys and signatures, made and judged by the real `ssh-keygen`, and hosts whose /etc says who may sign."""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from cronium_runner.wire.sshsig import NAMESPACE

needs_ssh_keygen: Final = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="needs ssh-keygen: apt-get install openssh-client"
)
_KEPT_OF_ETC: Final = ("passwd", "group", "shells", "nsswitch.conf", "ld.so.cache", "localtime", "alternatives")
_IN_ETC: Final = 'mount --bind "$0" /etc && exec "$@"'


def key(folder: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A new private key, its public half beside it. `kind` is ssh-keygen's, with a size behind a colon."""
    name, _, bits = kind.partition(":")
    path = folder / f"key-{len(list(folder.glob('key-*')))}"
    words = [
        "ssh-keygen",
        "-q",
        "-t",
        name,
        *(["-b", bits] if bits else []),
        "-N",
        passphrase,
        "-C",
        "",
        "-f",
        str(path),
    ]
    subprocess.run(words, check=True)
    return path


def keys(folder: Path) -> Callable[[str], Path]:
    """`key` by its kind, each made once."""
    return functools.cache(functools.partial(key, folder))


def public(path: Path) -> str:
    """The public half of a key: kind and base64."""
    return path.with_name(path.name + ".pub").read_text().strip()


def signature(path: Path, content: bytes, namespace: str = NAMESPACE, hash_name: str = "sha512") -> str:
    """What `ssh-keygen -Y sign` makes of the content."""
    words = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-O", f"hashalg={hash_name}", "-f", str(path)]
    return subprocess.run(words, input=content, stdout=subprocess.PIPE, check=True).stdout.decode()


def accepts(
    folder: Path, allowed: str | bytes, identity: str, armored: str, content: bytes, revoked: str | None = None
) -> bool:
    """What `ssh-keygen -Y verify` says of a signature."""
    files = {"allowed": allowed, "signature": armored, "revoked": revoked or ""}
    for name, text in files.items():
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    words = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-f", "allowed", "-I", identity, "-s", "signature"]
    if revoked is not None:
        words += ["-r", "revoked"]
    return subprocess.run(words, cwd=folder, input=content, capture_output=True).returncode == 0


@functools.cache
def why_no_own_etc() -> str | None:
    """Why no process of ours can have an /etc of its own; None when one can."""
    if os.geteuid() != 0:
        return "needs root, for an /etc of the test's own"
    tried = subprocess.run(["unshare", "-m", "mount", "--bind", "/etc", "/etc"], capture_output=True)
    return None if tried.returncode == 0 else f"no mount namespaces here: {tried.stderr.decode().strip()}"


class Etc:
    """An /etc whose `cronium-runner` folder is ours to fill, for processes that are started by `within`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        folder.mkdir(mode=0o755)
        for name in _KEPT_OF_ETC:
            source = Path("/etc", name)
            if source.is_dir():
                shutil.copytree(source, folder / name, symlinks=True)
            elif source.exists():
                shutil.copy2(source, folder / name)
        (folder / "shadow").write_text("root:*:1::::::\n")  # else sshd takes the account for one that is locked
        self.own = folder / "cronium-runner"
        self.own.mkdir(mode=0o755)
        self.allowed = self.own / "allowed_signers"
        self.revoked = self.own / "revoked_keys"

    def allow(self, *lines: str) -> None:
        """Makes the host one that runs payloads of these signers only."""
        self.allowed.write_text("".join(f"{line}\n" for line in lines))
        self.allowed.chmod(0o644)

    def within(self, command: Sequence[str]) -> tuple[str, ...]:
        """The command in a mount namespace where this is /etc."""
        return ("unshare", "-m", "sh", "-c", _IN_ETC, str(self.path), *command)
