"""Every line of docs/migrating.md, run: what it prints is what stands behind it. Many lines to a job."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from runner_process import ROOT, Host

PAGE = (ROOT / "docs/migrating.md").read_text()
LEAST = 60
"""Lines, at least."""
SHELLS = [shell for shell in ("sh", "dash", "busybox", "bash", "zsh") if shutil.which(shell)]

BASH = r"""
run() { # words: a line, in a shell of its own
  code=0
  said=$(eval "$1" 2>&1) || code=$?
  printf '%s\036' "$said$([ $code = 0 ] || echo " ($code)")"
}
"""

PYTHON = """
import asyncio
from cronium import AsyncCronium
def run(line):
    try:
        said = repr(eval(line))
    except cronium.CroniumError as error:
        said = "CroniumError: %s" % error
    print(said, end="\\036")
"""

NODE = """import Cronium, { input } from "cronium";
const show = (value) => {
  if (typeof value === "bigint") return `${value}n`;
  return value === undefined ? "undefined" : JSON.stringify(value);
};
async function run(line) {
  let said;
  try { said = show(await line()); } catch (error) { said = `${error.name}: ${error.message}`; }
  process.stdout.write(`${said}\\x1e`);
}
"""


def lines(language: str) -> list[tuple[str, str]]:
    """The lines of a language's block, each with what it prints."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    mark = "//" if language == "js" else "#"
    found = [re.fullmatch(rf"(.*?)\s+{mark}(?: (.*))?", line) for line in block.splitlines()]
    assert None not in found
    return [(match[1], match[2] or "") for match in found if match is not None]


def handed_over(folder: Path) -> list[str]:
    """The options that hand over what the page says."""
    (block,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    price = re.search(r'"price": ([0-9.]+)', block)
    assert price is not None
    given: dict[str, Any] = json.loads(block)
    text = json.dumps(given["input"]).replace(f'"price": {float(price[1])}', f'"price": {price[1]}')
    words = ["--input", text, "--event", json.dumps(given["event"])]
    return words + [word for name, value in given["variables"].items() for word in ("--var", f"{name}={value}")]


def check(host: Host, name: str, script: str, expected: list[tuple[str, str]]) -> None:
    result = host.run_json(host.script(script, name), *handed_over(host.folder))
    assert result["stderr"]["text"] == ""
    said = result["stdout"]["text"].split("\036")[:-1]
    assert list(zip([line for line, _ in expected], said, strict=True)) == expected


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_there_are_enough() -> None:
    assert sum(len(lines(language)) for language in ("bash", "sh", "python", "js")) >= LEAST


@pytest.mark.skipif(not shutil.which("jq"), reason="one line uses jq")
def test_commands(host: Host) -> None:
    expected = lines("bash")
    check(
        host, "script.sh", "#!/bin/bash\n" + BASH + "".join(f"run {quoted(line)}\n" for line, _ in expected), expected
    )


def test_the_sourced_functions_in_every_shell(host: Host) -> None:
    """One job for all shells; what the last one has left is taken away before the next."""
    expected = lines("sh")
    body = "".join(f"run {quoted(line)}\n" for line, _ in expected)
    words = {"busybox": "busybox sh", "zsh": "zsh -f"}
    script = f"cat >body <<'END OF BODY'\n. cronium.sh\n{BASH}{body}END OF BODY\n"
    script += "".join(f"{words.get(shell, shell)} ./body; cronium.deleteVariable LIST\n" for shell in SHELLS)
    check(host, "script.sh", "#!/bin/bash\n" + script, expected * len(SHELLS))


def test_python(host: Host) -> None:
    expected = lines("python")
    check(host, "script.py", PYTHON + "".join(f"run({line!r})\n" for line, _ in expected), expected)


@pytest.mark.skipif(not shutil.which("node"), reason="no node on this machine")
def test_node(host: Host) -> None:
    expected = lines("js")
    check(host, "script.mjs", NODE + "".join(f"await run(async () => {line});\n" for line, _ in expected), expected)
