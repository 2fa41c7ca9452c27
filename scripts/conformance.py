"""Prints what `ssh` and we make of each SSH configuration of the conformance tests; ends with 1 when one differs."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import ssh_configurations
import ssh_connections
from openssh import OpenSSHServer


def main() -> int:
    """Both tables."""
    os.environ.pop("SSH_AUTH_SOCK", None)
    os.environ["OTHER_AGENT"] = "/agents/other"
    with tempfile.TemporaryDirectory() as folder:
        rows = [*settings(Path(folder)), *connections(Path(folder))]
    for number, (what, theirs, ours) in enumerate(rows, 1):
        print(f"| {number} | {what} | {theirs} | {'the same' if ours == theirs else ours} |")
    differing = sum(ours != theirs for _, theirs, ours in rows)
    print(f"\n{len(rows)} configurations, {differing} with another answer than ssh")
    return int(differing > 0)


def settings(folder: Path) -> Iterator[tuple[str, str, str]]:
    """What is asked for, what `ssh -G` says and what our reader says."""
    for number, row in enumerate(ssh_configurations.ROWS):
        place = folder / f"settings{number}"
        os.environ["HOME"] = str(place / "home")
        ssh_configurations.write(row, place)
        theirs, ours = ssh_configurations.theirs(row, place), ssh_configurations.ours(row, place)
        both = [
            "refused" if found is None else f"{found.user}@{found.host_name}:{found.port}" for found in (theirs, ours)
        ]
        yield row.what, both[0], both[0] if ours == theirs else f"{both[1]}: {ours} instead of {theirs}"


def connections(folder: Path) -> Iterator[tuple[str, str, str]]:
    """What is connected to, what becomes of it with `ssh`, and with us."""
    with OpenSSHServer(folder / "sshd", options=ssh_connections.OPTIONS) as server:
        network = ssh_connections.Network.made(server, folder)
        for number, name in enumerate(ssh_connections.ROWS):
            place = folder / f"connection{number}"
            place.mkdir()
            os.environ["HOME"] = str(place)
            network.configure(name, place)
            theirs = network.theirs(place)
            ours, _ = asyncio.run(network.ours())
            yield name, told(theirs), told(ours)


def told(outcome: ssh_connections.Outcome) -> str:
    """An outcome in a few words; keys by letters in the order in which they are offered."""
    letters: dict[str, str] = {}
    keys = [
        f"{how.lower()} key {letters.setdefault(key, 'ABC'[len(letters)])} from {where}"
        for how, _, where, key in outcome.decisions
    ]
    shown = f" ({', '.join(keys)})" if keys else ""
    return f"{'connected' if outcome.is_connected else 'not connected'}{shown}"


if __name__ == "__main__":
    sys.exit(main())
