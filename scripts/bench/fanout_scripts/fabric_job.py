"""The job by Fabric: fabric_job.py HOSTS PORT KEY KNOWN_HOSTS FORKS. Its group has a thread for each host at once."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
from fabric import Config, Connection

names, port, key, known_hosts, forks = sys.argv[1:]
config = Config(overrides={"load_ssh_configs": False})


def run(host: str) -> str:
    connection = Connection(host, port=int(port), config=config, connect_kwargs={"key_filename": key})
    connection.client.load_host_keys(known_hosts)
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    with connection:
        return f"{host}: {connection.run('echo fanout-bench-output', hide=True, in_stream=False).stdout}"


with ThreadPoolExecutor(int(forks)) as pool:
    for line in pool.map(run, Path(names).read_text().split()):
        sys.stdout.write(line)
