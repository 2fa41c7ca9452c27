"""`python -m cronium_controller` runs the `cronium` command where its script is not on PATH."""

from .entry import main

main()
