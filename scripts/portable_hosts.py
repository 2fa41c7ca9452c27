"""Prints the table of hosts (see tests/host_table.py), and the sentences of what is refused on them.

`scripts/portable-hosts` runs it.
"""

import re
import sys
import tempfile
from pathlib import Path

import host_table as hosts
from host_roots import UnavailableError

CODE = re.compile(r"\[([a-z_]+\.[a-z_]+)\]$")


def main(binary: str, *wanted: str) -> int:
    """Status 1 when a cell is not what it is expected to be."""
    is_right = True
    sentences: dict[tuple[str, str], list[str]] = {}
    print("| host |", " | ".join(hosts.COLUMNS), "|")
    print("|---" * (len(hosts.COLUMNS) + 1) + "|")
    for row in (*hosts.BOUNDED, *hosts.DISTRIBUTIONS, *hosts.KERNELS):
        if wanted and not any(word in row.name for word in wanted):
            continue
        with tempfile.TemporaryDirectory(prefix="cronium-hosts-") as folder:
            try:
                seen = dict(hosts.cells(hosts.Machine(row, Path(folder), Path(binary))))
            except UnavailableError as error:
                print(f"| {row.name} |", f"not here: {error} |" + " |" * (len(hosts.COLUMNS) - 1), flush=True)
                continue
        is_right = is_right and all(row.is_as_expected(*cell) for cell in seen.items())
        print(f"| {row.name} |", " | ".join(map(short, seen.values())), "|", flush=True)
        for column, cell in seen.items():
            if short(cell) != cell:
                sentences.setdefault((row.name, cell), []).append(column)
    if sentences:
        print("\n| host | where | what it says |\n|---|---|---|")
        for (host, sentence), columns in sentences.items():
            print(f"| {host} | {', '.join(columns)} | {sentence.replace('|', '&#124;')} |")
    return 0 if is_right else 1


def short(cell: str) -> str:
    """A cell without its sentence."""
    code = CODE.search(cell)
    if code:
        return f"refused (`{code[1]}`)"
    return cell if cell in (hosts.WORKS, hosts.ABSENT) else "bad"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
