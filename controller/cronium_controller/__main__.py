"""`python -m cronium_controller` is the `cronium` command, for whoever has it in an environment and not on PATH."""

from .entry import main

main()
