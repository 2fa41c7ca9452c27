"""The tools that scripts/bench/fanout compares: how each is got, set up at its best, and told to do the job.

The job is one short line of output from each host. Nothing is measured here.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SCRIPTS: Final = Path(__file__).resolve().parent / "fanout_scripts"
OUTPUT: Final = "fanout-bench-output"
"""What the job prints on each host."""
_COMMAND: Final = f"echo {OUTPUT}"
_FROM_PYPI: Final = {
    "ansible": "ansible-core",
    "pyinfra": "pyinfra",
    "fabric": "fabric",
    "parallel-ssh": "parallel-ssh",
}
_FROM_DEBIAN: Final = {"pdsh": "pdsh", "clush": "clustershell", "parallel": "parallel"}
PEERS: Final = (*_FROM_PYPI, *_FROM_DEBIAN)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the hosts are, how they are reached, and a folder for files."""

    folder: Path
    hosts: list[str]
    port: int
    identity: Path
    known_hosts: Path
    forks: int
    binary: str
    root: Path
    venv: Path

    @property
    def names(self) -> Path:
        """A file with one host a line."""
        return self.folder / "hosts"

    def write_names(self) -> None:
        """Writes it."""
        self.names.write_text("".join(f"{host}\n" for host in self.hosts))

    @property
    def script_words(self) -> list[str]:
        """What the scripts of fanout_scripts take first."""
        return [*map(str, (self.names, self.port, self.identity, self.known_hosts, self.forks))]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of doing the job. `prepare` is called before each run and is not measured."""

    name: str
    words: list[str]
    is_warm: bool = False
    """It prints as its last line what the second time took."""
    environment: dict[str, str] | None = None
    prepare: Callable[[], object] = lambda: None


def install(tools: list[str], venv: Path) -> dict[str, str]:
    """Gets the peers that are missing; for each that could not be had, why."""
    missing: dict[str, str] = {}
    python_tools = [_FROM_PYPI[name] for name in tools if name in _FROM_PYPI]
    if python_tools:
        if not (venv / "bin" / "pip").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [str(venv / "bin" / "pip"), "--quiet", "--disable-pip-version-check", "install"]
        for name in tools:
            if name in _FROM_PYPI and subprocess.run([*pip, _FROM_PYPI[name]], check=False).returncode != 0:
                missing[name] = f"pip could not install {_FROM_PYPI[name]}"
    wanted = [name for name in tools if name in _FROM_DEBIAN and shutil.which(name) is None]
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        packages = [_FROM_DEBIAN[name] for name in wanted]
        for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            subprocess.run([*apt, *words], env=environment, check=False, stdout=subprocess.DEVNULL)
    for name in wanted:
        if shutil.which(name) is None:
            missing[name] = f"not there; install it with: apt-get install {_FROM_DEBIAN[name]}"
    return missing


def ways(setting: Setting, tool: str) -> list[Way]:
    """How a tool does the job; several ways where which is best is not known before."""
    return _WAYS[tool](setting)


def _asyncssh(setting: Setting) -> list[Way]:
    words = [sys.executable, str(_SCRIPTS / "asyncssh_job.py"), *setting.script_words]
    return [Way("asyncssh", [*words, "1"]), Way("asyncssh, warm", [*words, "2"], is_warm=True)]


def _cronium(setting: Setting) -> list[Way]:
    script = setting.folder / "job.sh"
    script.write_text(f"#!/bin/sh\n{_COMMAND}\n")
    environment = {"CRONIUM_CONTROLLER_STATE": str(setting.folder / "controller")}
    words = [sys.executable, str(_SCRIPTS / "cronium_job.py"), *setting.script_words]
    rest = [str(script), setting.binary, str(setting.root)]
    targets = [word for host in setting.hosts for word in ("--host", f"{host}:{setting.port}")]
    main = "from cronium_controller.cli import main; main()"
    command = [sys.executable, "-c", main, "run", *targets, "--identity", str(setting.identity), "--known-hosts",
               str(setting.known_hosts), "--forks", str(setting.forks), str(script)]  # fmt: skip
    runner = {"CRONIUM_RUNNER_BINARY": setting.binary, "CRONIUM_RUNNER_ROOT": str(setting.root)}

    return [
        Way("cronium", [*words, "1", *rest], environment=environment),
        Way("cronium, warm", [*words, "2", *rest], is_warm=True, environment=environment),
        Way("cronium run", command, environment=environment | runner),
    ]


def _ansible(setting: Setting) -> list[Way]:
    """Pipelining and ControlPersist on, no search for an interpreter; the masters of one run are not the next one's."""
    masters = setting.folder / "cm"
    inventory = setting.folder / "inventory.ini"
    python = shutil.which("python3", path="/usr/bin") or getattr(sys, "_base_executable", sys.executable)
    inventory.write_text(
        "[all]\n" + "\n".join(setting.hosts) + f"\n[all:vars]\nansible_port={setting.port}\n"
        f"ansible_python_interpreter={python}\nansible_ssh_private_key_file={setting.identity}\n"
    )
    (setting.folder / "ansible.cfg").touch()
    environment = {
        "ANSIBLE_CONFIG": str(setting.folder / "ansible.cfg"),
        "ANSIBLE_HOME": str(setting.folder / "ansible"),
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_SSH_ARGS": f"-F {setting.folder}/ssh_config -o ControlMaster=auto -o ControlPersist=60s",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(masters),
    }

    def prepare() -> None:
        shutil.rmtree(masters, ignore_errors=True)

    program = str(setting.venv / "bin" / "ansible")
    words = [program, "all", "-i", str(inventory), "-m", "command", "-a", _COMMAND, "-f"]
    return [
        Way(f"ansible -f {forks}", [*words, str(forks)], environment=environment, prepare=prepare)
        for forks in (50, 100)
    ]


def _pyinfra(setting: Setting) -> list[Way]:
    inventory = setting.folder / "pyinfra_hosts.py"
    data = {
        "ssh_port": setting.port,
        "ssh_key": str(setting.identity),
        "ssh_known_hosts_file": str(setting.known_hosts),
        "ssh_strict_host_key_checking": "yes",
    }
    inventory.write_text(f"hosts = ({setting.hosts!r}, {data!r})\n")
    program = str(setting.venv / "bin" / "pyinfra")
    words = [program, "-y", "--parallel", str(setting.forks), str(inventory), "exec", "--", *_COMMAND.split()]
    return [Way("pyinfra", words)]


def _fabric(setting: Setting) -> list[Way]:
    return [Way("fabric", [str(setting.venv / "bin/python"), str(_SCRIPTS / "fabric_job.py"), *setting.script_words])]


def _parallel_ssh(setting: Setting) -> list[Way]:
    python = str(setting.venv / "bin/python")
    return [Way("parallel-ssh", [python, str(_SCRIPTS / "parallel_ssh_job.py"), *setting.script_words])]


def _pdsh(setting: Setting) -> list[Way]:
    environment = {"PDSH_SSH_ARGS": f"-F {setting.folder}/ssh_config %h"}
    words = ["pdsh", "-R", "ssh", "-f", str(setting.forks), "-w", f"^{setting.names}", _COMMAND]
    return [Way("pdsh", words, environment=environment)]


def _clush(setting: Setting) -> list[Way]:
    options = f"-F {setting.folder}/ssh_config"
    return [
        Way("clush", ["clush", "-f", str(setting.forks), "-o", options, "--hostfile", str(setting.names), _COMMAND])
    ]


def _parallel(setting: Setting) -> list[Way]:
    environment = {"PARALLEL_HOME": str(setting.folder / "parallel")}
    words = ["parallel", "--will-cite", "-j", str(setting.forks), "ssh", "-F", f"{setting.folder}/ssh_config", "{}"]
    return [Way("parallel ssh", [*words, _COMMAND, "::::", str(setting.names)], environment=environment)]


_WAYS: Final[dict[str, Callable[[Setting], list[Way]]]] = {
    "cronium": _cronium,
    "asyncssh": _asyncssh,
    "ansible": _ansible,
    "pyinfra": _pyinfra,
    "fabric": _fabric,
    "parallel-ssh": _parallel_ssh,
    "pdsh": _pdsh,
    "clush": _clush,
    "parallel": _parallel,
}
TOOLS: Final = tuple(_WAYS)
