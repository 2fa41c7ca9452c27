"""The runner binaries that a controller can deploy: which file for which machine, and which version it is.

Only this machine's files. Getting one onto a host is `install`'s and `uploading`'s matter.
"""

import contextlib
import copy
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cronium_runner.wire.names import INSTALL_ROOT

from .deploy import binary_sources
from .deploy.update_policy import UpdatePolicy, parse_policy
from .errors import ControllerError, DeployError
from .hosts import Host
from .own_files import stranger

MACHINES: Final = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
PAUSES: Final = (2.0, 4.0)
"""Seconds before the second and the third attempt of a deployment."""
KEPT_VERSIONS: Final = 3
"""Versions that stay side by side on a host: the one in use, the one before it, and one more."""
STALL_SECONDS: Final = 30.0
"""Without an acknowledged byte for so long a way is dead: by then TCP has sent it again five times."""
GIVE_UP_SECONDS: Final = 90.0
"""Without one for so long, over all attempts, a person is told: that is three stalls, or fewer and their connecting."""


@dataclass(frozen=True, slots=True)
class RunnerBinary:
    """A runner that can be deployed. `sha256` is of the whole file, in hex; `size` in bytes."""

    path: Path
    version: str
    machine: str
    sha256: str
    size: int

    @property
    def folder(self) -> str:
        """The name of its installed form below the install root."""
        return f"{self.version}-{self.sha256[:12]}"


class Runners:
    """The binaries we can deploy, and where on hosts they go."""

    def __init__(
        self,
        binary: str | None = None,
        *,
        root: str | None = None,
        signers: str | None = None,
        pauses: tuple[float, ...] = PAUSES,
        kept: int = KEPT_VERSIONS,
        stall_seconds: float = STALL_SECONDS,
        give_up_seconds: float = GIVE_UP_SECONDS,
        update: str | None = None,
    ) -> None:
        """`binary` is a file; else CRONIUM_RUNNER_BINARY, else a checkout's dist/, else cronium-runner-binaries.

        `signers` is a file of OpenSSH's allowed signers, else CRONIUM_SIGNERS names one, else a host (`for_host`): then
        only binaries that one of them has signed are deployed (`binary_trust`).
        `root` is a folder on the hosts, relative to the home directory; else CRONIUM_RUNNER_ROOT, else the usual one.
        `pauses` are the seconds between attempts to deploy, so there is one attempt more than pauses; `kept` is how
        many versions stay on a host. An attempt ends when no byte of its upload is acknowledged for `stall_seconds`,
        all of them together when none is for `give_up_seconds`. `update` is the policy for all hosts, as of
        `UpdatePolicy`; else CRONIUM_UPDATE, else what each host says, else `always`. Raises ControllerError.
        """
        chosen_by = "--update" if update else "CRONIUM_UPDATE"
        update = update or os.environ.get("CRONIUM_UPDATE")
        self._update = None if not update else parse_policy(update, chosen_by)
        self.stall_seconds = stall_seconds
        self.give_up_seconds = give_up_seconds
        self.pauses = pauses
        self.kept = kept
        self._chosen = binary or os.environ.get("CRONIUM_RUNNER_BINARY")
        self.root = _from_home(root or os.environ.get("CRONIUM_RUNNER_ROOT") or INSTALL_ROOT)
        self._signers = signers or os.environ.get("CRONIUM_SIGNERS") or None
        self._known: dict[str, RunnerBinary] = {}
        self._of_signers: dict[str, Runners] = {}

    def for_host(self, host: Host) -> "Runners":
        """The same, with the host's own signers where neither the program nor the environment has named any."""
        if self._signers is not None or host.signers is None:
            return self
        if host.signers not in self._of_signers:
            own = copy.copy(self)
            own._signers, own._known = host.signers, {}
            self._of_signers[host.signers] = own
        return self._of_signers[host.signers]

    @property
    def demands_signatures(self) -> bool:
        """Whether only what signers have signed is deployed."""
        return self._signers is not None

    def update_policy(self, host: Host) -> UpdatePolicy:
        """What holds for a host."""
        return self._update or UpdatePolicy(host.update or UpdatePolicy.ALWAYS)

    def for_machine(self, machine: str, host: str) -> RunnerBinary:
        """The binary for `uname -m`. Raises ControllerError when there is none."""
        architecture = MACHINES.get(machine)
        if architecture is None:
            known = " and ".join(sorted(set(MACHINES.values())))
            told = f"no runner exists for the architecture {machine}; runners exist for {known}"
            raise DeployError("deploy.unsupported", told, host=host)
        if architecture not in self._known:
            self._known[architecture] = read_binary(self._find(architecture, host), self._signers)
        return self._known[architecture]

    def likely(self) -> list[RunnerBinary]:
        """The binaries that are here, our own architecture's first: where an agent may already be waiting."""
        found = []
        for architecture in sorted(set(MACHINES.values()), key=lambda name: name != own_architecture()):
            with contextlib.suppress(ControllerError):
                found.append(self.for_machine(architecture, ""))
        return found

    def of_version(self, version: str, architecture: str) -> RunnerBinary | None:
        """The newest binary of that version beside the one that is deployed by default; None when there is none.

        Raises ControllerError for one that is not to be trusted.
        """
        name = f"cronium-runner-{version}-linux-{architecture}"
        if os.path.basename(name) != name:  # from a command line; a version leads nowhere else
            return None
        try:
            beside = self._find(architecture, "").with_name(name)
        except ControllerError:
            return None
        return read_binary(beside, self._signers) if beside.is_file() else None

    def all(self) -> list[RunnerBinary]:
        """Every binary that is here: those that are deployed by default, and those of other versions beside them."""
        usual = []
        for architecture in sorted(set(MACHINES.values())):
            with contextlib.suppress(ControllerError):
                usual.append(self._find(architecture, ""))
        beside = {
            path
            for one in usual
            for path in one.parent.glob("cronium-runner-*")
            if binary_sources.NAME.fullmatch(path.name)
        }
        found = []
        for path in dict.fromkeys([*usual, *sorted(beside)]):
            with contextlib.suppress(ControllerError):  # changed, or another user's: then it says nothing
                found.append(read_binary(path, self._signers))
        return found

    def _find(self, architecture: str, host: str) -> Path:
        if self._chosen is not None:
            path = Path(self._chosen)
            matched = binary_sources.NAME.fullmatch(path.name)
            if not path.is_file():
                raise ControllerError("binary.missing", f"no runner binary at {path}", host=host or None)
            if matched and matched["arch"] != architecture:
                raise DeployError("deploy.unsupported", f"{path.name} is not for {architecture}", host=host or None)
            return path
        found = binary_sources.find(architecture)
        if found is None:
            raise ControllerError("binary.missing", binary_sources.missing_message(architecture), host=host or None)
        return found


def read_binary(path: Path, signers: str | None = None) -> RunnerBinary:
    """The runner in a file, checked against the `.sha256` beside it, and its signature where `signers` are named.

    Raises ControllerError.
    """
    digest = hashlib.sha256()
    signed_digest = hashlib.sha512()
    sidecar = path.with_name(path.name + ".sha256")
    try:
        with path.open("rb") as file:
            if (why := stranger(os.fstat(file.fileno()))) is not None:
                raise DeployError(
                    "binary.unsafe",
                    f"the runner binary {path} {why}, so it is not deployed; if you trust it, make it yours alone: "
                    f"chown {os.getuid()} {path} && chmod g-w,o-w {path}",
                )
            while piece := file.read(1024 * 1024):
                digest.update(piece)
                if signers is not None:
                    signed_digest.update(piece)
            size = file.tell()
        stated = sidecar.read_text("utf-8", "replace").split()[:1] if sidecar.exists() else None
    except OSError as error:
        raise ControllerError("binary.missing", f"the runner binary {path} cannot be read: {error.strerror}") from None
    if stated is None:
        raise DeployError(
            "binary.no_digest",
            f"the runner binary {path} has no {sidecar.name} beside it, so it is not deployed; copy both files, or "
            f"make one for a binary that you trust: sha256sum {path.name} >{sidecar.name}",
        )
    if stated != [digest.hexdigest()]:
        raise DeployError(
            "deploy.digest_mismatch",
            f"{path} has SHA-256 {digest.hexdigest()}, which is not what {sidecar.name} says; build it again",
        )
    if signers is not None:
        from . import binary_trust  # and with it asyncssh, which not every connection needs

        binary_trust.check(path, {"sha256": digest.digest(), "sha512": signed_digest.digest()}, signers)
    matched = binary_sources.NAME.fullmatch(path.name)
    return RunnerBinary(
        path=path,
        version=matched["version"] if matched else "custom",
        machine=matched["arch"] if matched else own_architecture(),
        sha256=digest.hexdigest(),
        size=size,
    )


def own_architecture() -> str:
    """This machine's, by the name that binaries have: macOS says arm64 for aarch64."""
    machine = os.uname().machine
    return MACHINES.get(machine, machine)


def _from_home(root: str) -> str:
    """The one spelling of an install root, for sh and SFTP alike: sessions begin in the home directory, and a leading
    `~/` would be read by some of them only."""
    if root == "~":
        return "."
    if root.startswith("~/"):
        root = root[2:].lstrip("/") or "."
    return f"./{root}" if root.startswith("-") else root
