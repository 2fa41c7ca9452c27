"""The job by parallel-ssh: parallel_ssh_job.py HOSTS PORT KEY KNOWN_HOSTS FORKS. It doesn't check host keys."""

import sys
from pathlib import Path

from pssh.clients import ParallelSSHClient

names, port, key, _, forks = sys.argv[1:]
client = ParallelSSHClient(Path(names).read_text().split(), port=int(port), pkey=key, pool_size=int(forks))
for output in client.run_command("echo fanout-bench-output"):
    for line in output.stdout:
        print(f"{output.host}: {line}")
