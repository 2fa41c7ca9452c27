"""A stand-in for curl where it is not installed: the requests that docs/api.md shows, over httpx."""

import argparse
import sys

import httpx

parser = argparse.ArgumentParser()
parser.add_argument("-H", dest="headers", action="append", default=[])
parser.add_argument("-X", dest="method")
parser.add_argument("-d", dest="data")
parser.add_argument("url")
given = parser.parse_args()
lines = [open(line[1:]).read().strip() if line.startswith("@") else line for line in given.headers]  # noqa: SIM115
sent = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
if given.data is not None:
    sent.setdefault("Content-Type", "application/x-www-form-urlencoded")  # as curl does
method = given.method or ("GET" if given.data is None else "POST")
with httpx.Client(trust_env=False) as client:
    sys.stdout.write(client.request(method, given.url, headers=sent, content=given.data).text)
