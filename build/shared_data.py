"""Writes what the wheel has beside modules: completion for three shells, and a man page for each command.

In:  a folder, and the version. `cronium_controller` and `cronium_runner` have to be importable, with click alone.
Out: `share/bash-completion/completions/cronium`, `share/zsh/site-functions/_cronium`,
     `share/fish/vendor_completions.d/cronium.fish`, `share/man/man1/*.1`.

Everything comes from the commands themselves, so it is what `--help` and `cronium completion` say.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import ShellComplete, get_completion_class

from cronium_controller.cli import cronium
from cronium_runner.cli import cronium_runner

COMPLETION = {
    "bash": "share/bash-completion/completions/cronium",
    "zsh": "share/zsh/site-functions/_cronium",
    "fish": "share/fish/vendor_completions.d/cronium.fish",
}


def main(folder: str, version: str) -> None:
    """Writes all of it below `folder`."""
    for shell, path in COMPLETION.items():
        write(Path(folder) / path, completion(shell))
    for program, command in (("cronium", cronium), ("cronium-runner", cronium_runner)):
        for context in contexts(program, command):
            name = page_name(context)
            write(Path(folder) / "share/man/man1" / f"{name}.1", man_page(name, context, version))


def write(path: Path, text: str) -> None:
    """A file, in folders that are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)


def completion(shell: str) -> str:
    """What `cronium completion SHELL` prints."""
    found = get_completion_class(shell)
    assert found is not None
    # ShellComplete's own, because that of bash looks for the bash of the machine on which this is built.
    return ShellComplete.source(found(cronium, {}, "cronium", "_CRONIUM_COMPLETE")).strip() + "\n"


def contexts(name: str, command: click.Command, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context for the command and each below it that is not hidden."""
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None and not found.hidden:
                yield from contexts(below, found, context)


def page_name(context: click.Context) -> str:
    """`cronium-api-serve` for `cronium api serve`."""
    return context.command_path.replace(" ", "-")


def man_page(name: str, context: click.Context, version: str) -> str:
    """The page in the macros of man(7)."""
    command = context.command
    lines = [
        f'.TH "{escaped(name.upper())}" "1" "" "cronium\\-runner {escaped(version)}" "cronium"',
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(command.get_short_help_str(limit=200).rstrip('.'))}",
        ".SH SYNOPSIS",
        f"\\fB{escaped(context.command_path)}\\fR {escaped(' '.join(command.collect_usage_pieces(context)))}",
        ".SH DESCRIPTION",
        *description(command.help or ""),
    ]
    found = (each.get_help_record(context) for each in command.get_params(context))
    records = [record for record in found if record and record[1]]
    if records:
        lines.append(".SH OPTIONS")
    for option, told in records:
        lines += [".TP", f"\\fB{escaped(option)}\\fR", protected(escaped(told))]
    below = [each for each in contexts(name, command) if each.parent is not None and each.parent.parent is None]
    if below:
        lines.append(".SH COMMANDS")
    for each in below:
        told = each.command.get_short_help_str(limit=200)
        lines += [".TP", f"\\fB{escaped(name)}\\-{escaped(str(each.info_name))}\\fR(1)", protected(escaped(told))]
    if context.parent is not None:
        lines += [".SH SEE ALSO", f"\\fB{escaped(page_name(context.parent))}\\fR(1)"]
    return "\n".join(lines) + "\n"


def description(text: str) -> Iterator[str]:
    """A docstring as click reads it: paragraphs, of which one that begins with backspace stays as it is."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text).partition("\f")[0].strip())):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield ".nf"
            yield from (protected(escaped(line)) for line in paragraph.splitlines()[1:])
            yield ".fi"
        else:
            yield protected(escaped(" ".join(paragraph.split())))


def escaped(text: str) -> str:
    """Text in which roff finds nothing to obey but what begins a line. A hyphen stays one that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "".join(letter if letter.isascii() else f"\\[u{ord(letter):04X}]" for letter in text)


def protected(line: str) -> str:
    """A line that no request begins."""
    return f"\\&{line}" if line.startswith((".", "'")) else line


if __name__ == "__main__":
    main(*sys.argv[1:])
