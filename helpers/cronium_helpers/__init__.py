"""The helper clients: what a script calls as `cronium.input`, `cronium.output` and so on.

These files are copied to hosts and run inside other people's scripts, so each stands alone and imports nothing
of ours. The protocol they speak is PROTOCOL.md beside this file; the grammar lives in the runner, once.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the client files are, as installed."""
