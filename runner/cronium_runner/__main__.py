"""Where the process starts: as `cronium-runner`, or as a helper when called by a helper's name.

The binary is frozen from this file. On a machine that has no compiled helper client, every helper name is a link to
the binary, and the name it was called by decides.
"""

import os
import sys


def main() -> int:
    name = os.path.basename(sys.argv[0])
    if name.startswith(("cronium.", "cronium_")):
        from cronium_runner import client

        return client.main([name, *sys.argv[1:]])
    from cronium_runner import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
