"""Where `cronium` begins: the rest takes a moment to load, and Ctrl-C in that moment is no defect either."""

import sys


def main() -> None:
    """The `cronium` command."""
    try:
        from .cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("cronium: interrupted\n")
        sys.exit(130)
    command()
