"""What a shell offers after TAB: names of hosts and groups, SSH aliases, executions, files; and `cronium completion`.

It is asked at every TAB, so it loads little and asks no host. Whatever goes wrong offers nothing: there is nobody to
tell.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Final

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

_OFFERED: Final = 50
"""Executions, the newest: more than a person chooses from."""
_JOINTS: Final = re.compile(r"(.*[,!&^@])?(.*)", re.DOTALL)
"""What stands before the last name of an expression of ClusterShell's, and the beginning of that name."""


def host_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Hosts and groups of the hosts file, also behind a comma."""
    with contextlib.suppress(Exception):
        from . import inventory

        known = inventory.load(context.params.get("hosts_file"), keeps_bad_rows=True)
        names = {name: known.entries[name].config.host for name in known.entries}
        names |= {group: f"group of {len(members)}" for group, members in known.groups.items()}
        before, begun = _split(incomplete)
        return [
            CompletionItem(f"{before}{name}", help=None if told == name else told)
            for name, told in names.items()
            if name.startswith(begun)
        ]
    return []


def ssh_aliases(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of ~/.ssh/config, also behind `user@`."""
    with contextlib.suppress(Exception):
        from .inventory import ssh_aliases as aliases

        user, at, begun = incomplete.rpartition("@")
        return [CompletionItem(f"{user}{at}{name}") for name in sorted(aliases()) if name.startswith(begun)]
    return []


def execution_ids(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Executions submitted from here, the newest first; a run on many hosts by its own id."""
    with contextlib.suppress(Exception):
        return [CompletionItem(name, help=told) for name, told in _executions(incomplete)]
    return []


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Whatever files the shell itself finds."""
    return [CompletionItem(incomplete, type="file")]


def _split(incomplete: str) -> tuple[str, str]:
    matched = _JOINTS.fullmatch(incomplete)
    return ("", incomplete) if matched is None else (matched[1] or "", matched[2])


def _executions(begun: str) -> Iterator[tuple[str, str]]:
    """Read without SQLAlchemy, which takes longer to load than a person waits for TAB, and without making anything."""
    import sqlite3

    from .state_path import default_path

    wanted = begun.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%"
    database = sqlite3.connect(f"{default_path().absolute().as_uri()}?mode=ro", uri=True)
    with contextlib.closing(database):
        rows = database.execute(
            "SELECT id, host, state FROM executions WHERE id LIKE ? ESCAPE '\\' ORDER BY submitted_at DESC LIMIT ?",
            (wanted, _OFFERED),
        ).fetchall()
    runs: dict[str, int] = {}
    for name, _, _ in rows:
        if run := re.fullmatch(r"(.+)\.[0-9a-f]{12}", name):
            runs[run[1]] = runs.get(run[1], 0) + 1
    for name, host, state in rows:
        run = re.fullmatch(r"(.+)\.[0-9a-f]{12}", name)
        if run and run[1].startswith(begun) and (hosts := runs.pop(run[1], 0)):
            yield run[1], f"on {hosts} host{'' if hosts == 1 else 's'}"
        yield name, f"{state} on {host}"


class _Bash(BashComplete):
    """Words end at spaces: bash itself also ends them at `@`, `:` and `=`, and puts in what comes after those only.

    After an `@` it puts that in again.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" last="${COMP_WORDS[COMP_CWORD]}" completion type value
    local word="${line##*[[:space:]]}"
    [[ -n $last && $COMP_WORDBREAKS == *"$last"* ]] && last=
    local before="${word%%"$last"}"
    before="${before%%@}"
    COMPREPLY=()
    for completion in $(env COMP_WORDS="$line" %(complete_var)s=bash_complete "$1"); do
        IFS=, read -r type value <<< "$completion"
        if [[ $type == dir ]]; then
            compopt -o dirnames
        elif [[ $type == file ]]; then
            compopt -o default
        elif [[ $type == plain ]]; then
            COMPREPLY+=("${value#"$before"}")
        fi
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that TAB is to finish, and that one."""
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)[1:]
        return (words, "") if line[-1:].isspace() or not words else (words[:-1], words[-1])


class _Fish(FishComplete):
    """click's splits what is offered at every comma, which would cut `--on web01,web02` off."""

    source_template = FishComplete.source_template.replace('string split "," ', 'string split --max 1 "," ')


add_completion_class(_Bash)
add_completion_class(_Fish)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options, hosts and executions.

    \b
    Examples:
      eval "$(cronium completion bash)"          in ~/.bashrc
      eval "$(cronium completion zsh)"           in ~/.zshrc, behind compinit
      cronium completion fish | source           in ~/.config/fish/config.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    program = click.get_current_context().find_root().command
    click.echo(found(program, {}, "cronium", "_CRONIUM_COMPLETE").source().strip())
