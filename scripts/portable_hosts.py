"""Prints the table of hosts (see tests/host_table.py). `scripts/portable-hosts` runs it."""

import subprocess
import sys
import tempfile
from pathlib import Path

import host_table as hosts


def main(binary: str, *wanted: str) -> int:
    """Status 1 when a cell is not what it is expected to be."""
    is_right = True
    print("| host |", " | ".join(hosts.COLUMNS), "|")
    print("|---" * (len(hosts.COLUMNS) + 1) + "|")
    for row in (*hosts.BOUNDED, *hosts.DISTRIBUTIONS, *hosts.KERNELS):
        if wanted and not any(word in row.name for word in wanted):
            continue
        with tempfile.TemporaryDirectory(prefix="cronium-hosts-") as folder:
            try:
                seen = dict(hosts.cells(hosts.Machine(row, Path(folder), Path(binary))))
            except subprocess.SubprocessError as error:
                seen = {"version": f"could not be made: {error}"}
        is_right = is_right and all(row.is_as_expected(*cell) for cell in seen.items())
        print(f"| {row.name} |", " | ".join(seen.values()), "|", flush=True)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
