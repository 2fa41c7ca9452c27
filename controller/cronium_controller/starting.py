"""Starting the runner's agent on a host, and putting the runner there first where that is needed.

The agent is started directly at the path where this very binary would be; only when that fails is the host looked at
and the binary uploaded, verified and installed. So a host that has it pays nothing for the question. The start itself
checks that no other user could have exchanged the runner (`safe_shell`), and once a day hashes its files first, in the
same session.
"""

import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from cronium_runner.wire import codes, safe_shell

from . import remote_shell
from .channel import AgentChannel, AgentNotStartedError
from .deploy.installed_forms import version_of
from .deploy.update_policy import UpdatePolicy, candidates, in_use, may_update
from .deployments import Deployments, Known
from .errors import ControllerError, DeployError, FinalDeployError, RefusedError
from .install import Deployment, Site, look, put_on, tree_command
from .logs import logger
from .runners import MACHINES, RunnerBinary, Runners
from .sessions import Connection
from .uploading import excerpt

HAND_OVER_SECONDS: Final = 180.0
"""For an agent of another account, whose first one also waits for sudo and for a runner to be installed there."""
_NO_PLACE: Final = "state.unusable"
_CHANGED: Final = 93
"""Exit status of a start that found other files than were installed."""

_log = logger("cronium.install")


async def start_agent(
    connection: Connection,
    runners: Runners,
    run_as: str | None = None,
    *,
    ledger: Deployments | None = None,
    reconnect: Callable[[], Awaitable[Connection]] | None = None,
) -> tuple[AgentChannel, Deployment | None]:
    """An agent on the host; the runner is deployed first when it isn't there.

    `run_as` is the account that it becomes the agent of. `reconnect` gives another connection when the first one is
    lost while deploying; the agent's is then that one. Raises DeployError, and RefusedError when it may not.
    """
    site = Site(connection, runners, ledger, reconnect)
    runners = site.runners
    known = site.known()
    policy = runners.update_policy(connection.host)
    chosen = next((one for one in known if one.is_chosen), None)
    usual = _usual_start(runners, known)
    start = usual if chosen is None else (chosen.folder, chosen.version, chosen.architecture)
    if chosen is None and policy is not UpdatePolicy.ALWAYS:
        start = _kept_start(known, usual, policy) or start
    failed: dict[str, str] = {}
    if start is not None:
        try:
            return await _open_known(site, start, known, run_as), None
        except AgentNotStartedError as error:
            _refuse(error, site.host, run_as)
            site.invalidate(start[0])
            failed[start[0]] = excerpt(error.printed, error.exit_status)
    wanted = None
    if chosen is not None:
        if policy is UpdatePolicy.NEVER:
            raise update_refused(site, policy, failed)
        wanted = _binary_of(site, chosen)
    elif policy is not UpdatePolicy.ALWAYS:
        agent = await _open_present(site, policy, None if usual is None else usual[0], run_as, failed)
        if agent is not None:
            return agent, None
    deployment, binary = await put_on(site, wanted)
    try:
        return await _open_agent(site, binary.folder, run_as), deployment
    except AgentNotStartedError as error:
        _refuse(error, site.host, run_as)
        site.invalidate(binary.folder)
        raise DeployError(
            "deploy.failed",
            f"the runner is at {deployment.path} but does not start there: {excerpt(error.printed, error.exit_status)}",
            host=site.host,
        ) from None


def _usual_start(runners: Runners, known: list[Known]) -> tuple[str, str, str] | None:
    """Folder, version and architecture of the controller's own runner for this host; None when it has none to try."""
    likely = runners.likely()
    if known:  # what the host is doesn't have to be guessed
        likely = [binary for binary in likely if binary.machine == known[0].architecture] or likely
    return (likely[0].folder, likely[0].version, likely[0].machine) if likely else None


def _kept_start(
    known: list[Known], usual: tuple[str, str, str] | None, policy: UpdatePolicy
) -> tuple[str, str, str] | None:
    """The runner that was used last, where the policy keeps it in use; None where ours is to be tried."""
    last = next((one for one in known if one.checked_at is not None), None)
    ours = None if usual is None else usual[1]
    if last is None or any(usual is not None and one.folder == usual[0] for one in known):
        return None
    return None if may_update(policy, last.version, ours) else (last.folder, last.version, last.architecture)


async def _open_present(
    site: Site, policy: UpdatePolicy, ours: str | None, run_as: str | None, failed: dict[str, str]
) -> AgentChannel | None:
    """The agent of a runner that the host has, where the policy keeps ours from it; None where ours may be put there.

    `failed` has the folders that did not start, with the reasons. Raises DeployError when none can be used, and
    RefusedError.
    """
    machine, listing = await look(site)
    known = [one.folder for one in site.known() if one.checked_at is not None]
    if may_update(policy, in_use(listing, known, ours), None if ours is None else version_of(ours)):
        return None
    for folder in candidates(listing, known, ours):
        if folder in failed:
            continue
        try:
            start = (folder, version_of(folder), MACHINES.get(machine, machine))
            return await _open_known(site, start, site.known(), run_as)
        except AgentNotStartedError as error:
            _refuse(error, site.host, run_as)
            site.invalidate(folder)
            failed[folder] = excerpt(error.printed, error.exit_status)
        except ControllerError as error:
            if error.code != "channel.version":
                raise
            failed[folder] = error.message.removeprefix(f"{site.host}: ")
    raise update_refused(site, policy, {folder: why for folder, why in failed.items() if folder in listing})


def update_refused(site: Site, policy: UpdatePolicy, failed: Mapping[str, str]) -> FinalDeployError:
    """What to say of a host whose runners can't be used and where none may be installed."""
    why = "".join(f"; {folder} does not start: {said}" for folder, said in list(failed.items())[:1])
    return FinalDeployError(
        "deploy.update_refused",
        f"the host has no runner that can be used, and the update policy '{policy}' keeps jobs from installing one"
        f"{why}; install it with: cronium deploy",
        host=site.host,
    )


def _binary_of(site: Site, chosen: Known) -> RunnerBinary:
    """The binary of a chosen runner that is gone from the host. Raises DeployError when it isn't here either."""
    binary = site.runners.of_version(chosen.version, chosen.architecture)
    if binary is None or binary.folder != chosen.folder:
        raise DeployError(
            "deploy.no_version",
            f"the chosen runner {chosen.folder} does not start on the host, and its binary is not here; "
            "go back to the controller's own with: cronium deploy",
            host=site.host,
        )
    return binary


async def _open_known(site: Site, start: tuple[str, str, str], known: list[Known], run_as: str | None) -> AgentChannel:
    """Starts the agent where it should be, and writes down what that showed. Raises AgentNotStartedError."""
    folder, version, architecture = start
    entry = next((one for one in known if one.folder == folder), None)
    now = time.time()
    is_hashed = entry is not None and entry.tree_sha256 is not None and not entry.is_valid(now)
    agent = await _open_agent(site, folder, run_as, tree=entry.tree_sha256 if entry and is_hashed else None)
    if site.ledger is None:
        return agent
    if entry is not None and is_hashed:
        site.ledger.note_rehashed(site.connection.host, site.runners.root, entry)
    elif entry is None or entry.is_check_due(now) or entry is not known[0]:
        told = str(agent.agent.get("runner", ""))
        if entry is not None and entry.said_version and told and told != entry.said_version:
            _log.warning("runner_version_changed", extra={"host": site.host, "was": entry.said_version, "is": told})
            agent.close()
            raise AgentNotStartedError(None, f"it says that it is {told}, and was {entry.said_version}".encode())
        site.ledger.note_checked(site.connection.host, site.runners.root, folder, version, architecture, told)
    return agent


async def _open_agent(site: Site, folder: str, run_as: str | None, *, tree: str | None = None) -> AgentChannel:
    command = remote_shell.in_sh(_start_script(site, folder, run_as, tree))
    if run_as is None:
        return await AgentChannel.open(site.connection, command)
    return await AgentChannel.open(site.connection, command, HAND_OVER_SECONDS)


def _start_script(site: Site, folder: str, run_as: str | None, tree: str | None) -> str:
    """sh that becomes the agent, once it has seen that no other user can have exchanged it.

    The runner is executed by its real path, which is the one that was checked, in the home directory, where sshd starts
    us.
    """
    enter = safe_shell.entering(remote_shell.path(f"{site.runners.root}/{folder}"))
    leave = 'runner=$PWD/cronium-runner; cd "$OLDPWD"; unset OLDPWD; '
    command = 'exec "$runner" agent'
    if run_as is not None:
        command = f"{command} --run-as {shlex.quote(run_as)}"
    if tree is not None:
        changed = f"echo the installed files were changed >&2; exit {_CHANGED}"
        command = f'if [ "$({tree_command(site, folder)})" = {tree} ]; then {command}; fi; {changed}'
    return f"{enter}{safe_shell.CHECK}{leave}{command}"


def _refuse(error: AgentNotStartedError, host: str, run_as: str | None) -> None:
    """Raises RefusedError when the runner is there and said why it serves nobody: another one would say the same.

    The account has no place for executions (no home directory, say), or the runner may not become another's agent.
    """
    told = codes.told(error.printed.decode("utf-8", "replace"))
    if told is not None and (run_as is not None or told[0] == _NO_PLACE):
        raise RefusedError(*told, host=host) from None
