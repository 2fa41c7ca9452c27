"""`cronium deploy --verify`: whether the installed runners on hosts are as they were built, for people and for cron."""

from typing import TYPE_CHECKING, Final

import click

from .schedule import counted

if TYPE_CHECKING:
    from .deploy.verification import Verification
    from .dispatch import Controller
    from .hosts import Host

DIFFERS: Final = 1
"""Exit status of a host with a form that differs, or whose build isn't known."""
_SHOWN: Final = 20
"""Lines about one form; --json has more."""


async def verify(controller: "Controller", host: "Host", *, as_json: bool) -> int:
    """Verifies the forms on one host and tells what was found; what is wrong goes to standard error."""
    from . import show

    found = await controller.verify(host)
    if as_json:
        forms = [form.to_json() for form in found.forms]
        show.print_json({"host": host.name, "agrees": found.agrees, "forms": forms, "others": found.others})
    else:
        _tell(host.name, found)
    return 0 if found.agrees else DIFFERS


def _tell(host: str, found: "Verification") -> None:
    from .deploy.verification import State

    if not found.forms:
        click.echo(f"{host}: no runner is installed")
    for form in found.forms:
        if form.state is State.AGREES:
            click.echo(f"{host}: {form.path} is as it was built ({counted(form.files, 'files')})")
        elif form.state is State.UNKNOWN:
            _complain(
                f"{host}: {form.path}: unknown build; put its binary beside ours once (or name it with --binary), "
                "or remove it",
                "install.unknown",
            )
        elif form.state is State.ADOPTED:
            exchanged = ", ".join(one.path for one in form.differences[:_SHOWN])
            _complain(
                f"{host}: {form.path} is adopted: its owner has exchanged {exchanged}; all else is as it was built",
                "install.adopted",
            )
            continue
        for one in form.differences[:_SHOWN]:
            where = form.path if one.path == "." else f"{form.path}/{one.path}"
            _complain(f"{host}: {where}: {one.what}", "install.damaged")
        if len(form.differences) > _SHOWN:
            _complain(f"{host}: {form.path}: {len(form.differences) - _SHOWN} more differences", "install.damaged")
    for path in found.others:
        _complain(f"{host}: {path}: no installed runner; remove it", "install.unknown")


def _complain(sentence: str, code: str) -> None:
    click.echo(f"cronium: {sentence} [{code}]", err=True)
