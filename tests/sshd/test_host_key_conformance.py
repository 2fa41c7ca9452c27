"""The table of known_hosts files against real servers: `ssh` and we decide alike, and record the same line.

Each case is a block of one configuration, for each of the two with files of its own. Also a command:
`python -m sshd.test_host_key_conformance` in tests/ asks ssh about every case and prints the table.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from cronium_controller.access import Access
from cronium_controller.connection import open_connection
from cronium_controller.errors import HostKeyError
from cronium_controller.hosts import parse_host
from host_key_cases import CASES, SERVERS, Case, Files, Keys
from openssh import OpenSSHServer, sshd_path

pytestmark = pytest.mark.sshd
ASKED = [case for case in CASES if case.is_asked]


@dataclass
class Outcome:
    """What one of the two did about a case."""

    is_refused: bool
    recorded: bytes


class World:
    """The servers, and a configuration with two blocks for each case."""

    def __init__(self, folder: Path, cases: list[Case]) -> None:
        self.cases = cases
        keys = Keys(folder / "keys")
        needed = {case.server for case in cases}
        self._servers = {
            name: OpenSSHServer(folder / name, options=keys.server_options(name)) for name in SERVERS if name in needed
        }
        identity = next(iter(self._servers.values())).identity
        for server in self._servers.values():
            (server.folder / "authorized_keys").write_text(identity.with_suffix(".pub").read_text())
        self.files: dict[str, Files] = {}
        self.configuration = folder / "config"
        blocks = []
        for number, case in enumerate(cases):
            port = self._servers[case.server].port
            for who in ("ssh", "us"):
                name = f"{who}{number}"
                self.files[name] = files = Files(case, keys, folder / "cases" / name, port)
                blocks += [f"Host {name}", f"  Port {port}"]
                blocks.append(f"  UserKnownHostsFile {' '.join(map(str, files.user)) or 'none'}")
                blocks.append(f"  GlobalKnownHostsFile {files.system}")
                if case.revoked is not None:
                    blocks.append(f"  RevokedHostKeys {keys.revoked(case.revoked)}")
                blocks += [f"  {keyword} {value}" for keyword, value in case.options.items()]
        blocks += ["Host *", "  HostName 127.0.0.1", f"  IdentityFile {identity}", "  IdentitiesOnly yes"]
        blocks += ["  StrictHostKeyChecking accept-new", "  HashKnownHosts no", ""]
        self.configuration.write_text("\n".join(blocks))

    def __enter__(self) -> "World":
        self._running = ExitStack()
        for server in self._servers.values():
            self._running.enter_context(server)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def ask_ssh(self, number: int) -> Outcome:
        """What `ssh` does."""
        words = ["ssh", "-F", str(self.configuration), "-o", "BatchMode=yes", f"ssh{number}", "true"]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert done.returncode == 0 or b"Host key verification failed" in done.stderr, done.stderr
        return Outcome(done.returncode != 0, self.files[f"ssh{number}"].recorded())

    async def ask_us(self, number: int) -> Outcome:
        """What we do, with the same configuration as the user's own."""
        try:
            connection = await open_connection(parse_host(f"us{number}"), Access(warn=lambda _: None))
        except HostKeyError:
            is_refused = True
        else:
            await connection.close()
            is_refused = False
        return Outcome(is_refused, self.files[f"us{number}"].recorded())


def ask_ssh_about_all(world: World) -> list[Outcome]:
    """What ssh does about each case, a few at a time."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(world.ask_ssh, range(len(world.cases))))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, list[Outcome]]]:
    if sshd_path() is None:
        pytest.skip("there is no sshd; install openssh-server")
    with World(tmp_path_factory.mktemp("world"), ASKED) as made:
        yield made, ask_ssh_about_all(made)


@pytest.mark.parametrize("number", range(len(ASKED)), ids=[case.what.replace(" ", "_") for case in ASKED])
async def test_ssh_and_we_decide_alike(world: tuple[World, list[Outcome]], number: int) -> None:
    made, by_ssh = world
    case = ASKED[number]
    folder = Path.home() / ".ssh"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "config").symlink_to(made.configuration)
    assert by_ssh[number] == Outcome(case.is_refused, made.files[f"ssh{number}"].expected()), "the table"
    assert await made.ask_us(number) == Outcome(case.is_refused, made.files[f"us{number}"].expected())


def main() -> int:
    """Prints the table of all cases; the exit status is the number of differences."""
    with tempfile.TemporaryDirectory() as folder, World(Path(folder), CASES) as world:
        home = Path(folder) / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        (home / ".ssh" / "config").symlink_to(world.configuration)
        os.environ["HOME"] = str(home)
        by_ssh = ask_ssh_about_all(world)
        differences = 0
        for number, case in enumerate(CASES):
            ours = asyncio.run(world.ask_us(number))
            words = ["refused" if each.is_refused else "connects" for each in (by_ssh[number], ours)]
            expected = [Outcome(case.is_refused, world.files[f"{who}{number}"].expected()) for who in ("ssh", "us")]
            same = [by_ssh[number], ours] == expected
            differences += not same
            print(f"{case.what:55} ssh: {words[0]:9} we: {words[1]:9} {'' if same else 'DIFFERS'}")
        print(f"{len(CASES)} cases, {differences} differences")
    return differences


if __name__ == "__main__":
    sys.exit(main())
