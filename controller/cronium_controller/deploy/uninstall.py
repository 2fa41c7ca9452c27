"""Removing the runner from a host: what is there is looked for, and our own runner there removes it, itself last.

The runner knows its account's install roots and its records; nothing here removes anything by itself. A host on which
nothing is installed is asked that alone.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from cronium_runner.wire import codes, exactjson, safe_shell
from cronium_runner.wire.names import INSTALL_ROOT

from .. import remote_shell
from ..deployments import Deployments
from ..errors import DeployError, RefusedError
from ..install import Site, deploy
from ..runners import Runners
from ..sessions import Connection
from ..uploading import MARK, excerpt, shell
from .installed_forms import list_forms

UNINSTALL_SECONDS: Final = 180.0
"""Executions that are ended first may take their grace of 5 s each, and large records their time."""
_KEPT: Final = 1
"""Exit status of a runner that has left something there."""


async def uninstall(
    connection: Connection,
    runners: Runners,
    *,
    ledger: Deployments | None = None,
    reconnect: Callable[[], Awaitable[Connection]] | None = None,
    wants_records: bool = False,
    is_forced: bool = False,
    is_dry_run: bool = False,
) -> dict[str, Any]:
    """Removes the account's installed runners from the host, and its records with `wants_records`.

    Returns the runner's report: `removed` (paths), `kept` (reasons by path), `records`, `isDryRun`. Raises
    RefusedError `uninstall.refused` when executions run or were not fetched, and DeployError.
    """
    site = Site(connection, runners, ledger, reconnect)
    if not await _is_anything_there(site, wants_records=wants_records):
        return {"removed": [], "kept": {}, "records": None, "isDryRun": is_dry_run}
    _, binary = await deploy(connection, runners, ledger=ledger, reconnect=reconnect)
    options = {"--records": wants_records, "--force": is_forced, "--dry-run": is_dry_run}
    words = " ".join(option for option, is_given in options.items() if is_given)
    report = await _run(site, binary.folder, f"uninstall --json {words}".rstrip())
    if ledger is not None and not is_dry_run:
        gone = [known.folder for known in site.known() if any(_is_in(path, known.folder) for path in report["removed"])]
        ledger.forget(connection.host, runners.root, gone)
    return report


def _is_in(path: str, folder: str) -> bool:
    return path.rpartition("/")[2] == folder


async def _is_anything_there(site: Site, *, wants_records: bool) -> bool:
    """Whether an install root has a form, or the account has records that are to go. Raises DeployError."""
    if (await list_forms(site.connection, site.runners.root)).forms:
        return True
    if not wants_records:
        return False
    state = '"${CRONIUM_STATE_DIR:-$HOME/.local/state/cronium-runner}"'
    printed = await shell(site.connection, f"echo {MARK}; [ ! -d {state} ] || echo records")
    return bool(printed.partition(f"{MARK}\n")[2].strip())


async def _run(site: Site, folder: str, words: str) -> dict[str, Any]:
    """The report of a command of the installed runner, which is started as an agent is. Raises ControllerError."""
    enter = safe_shell.entering(remote_shell.path(f"{site.runners.root}/{folder}"))
    leave = 'runner=$PWD/cronium-runner; cd "$OLDPWD"; unset OLDPWD; '
    # A root that was chosen stands alone: what is below the usual ones is another controller's.
    chosen = "" if site.runners.root == INSTALL_ROOT else "export CRONIUM_INSTALL_DIR=${runner%/*/*}; "
    script = f'{enter}{safe_shell.CHECK}{leave}{chosen}exec "$runner" {words}'
    done = await site.connection.run(remote_shell.in_sh(script), timeout=UNINSTALL_SECONDS)
    if done.exit_status not in (0, _KEPT):
        told = codes.told(done.stderr.decode("utf-8", "replace"))
        if told is not None:
            raise RefusedError(*told, host=site.host)
        raise DeployError("deploy.failed", excerpt(done.stderr or done.stdout, done.exit_status), host=site.host)
    try:
        return _checked(exactjson.loads(done.stdout.strip().rpartition(b"\n")[2]))
    except ValueError:
        raise DeployError(
            "deploy.failed", f"its report cannot be read: {excerpt(done.stdout, done.exit_status)}", host=site.host
        ) from None


def _checked(report: Any) -> dict[str, Any]:
    """The report, when all of it is of the type that it has to be. Raises ValueError."""
    match report:
        case {"removed": list(removed), "kept": dict(kept), "records": dict() | None as records, "isDryRun": bool()}:
            counts = ("executions", "running", "unfetched")
            is_right = all(isinstance(one, str) for one in (*removed, *kept.values()))
            if records is not None:
                left = records.get("kept")
                is_right = is_right and all(type(records.get(name)) is int for name in counts)
                is_right = is_right and isinstance(records.get("path"), str)
                is_right = is_right and isinstance(left, list) and all(isinstance(name, str) for name in left)
            if is_right:
                return dict(report)
    raise ValueError("no report")
