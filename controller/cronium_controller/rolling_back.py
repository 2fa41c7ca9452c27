"""Having jobs use another runner on a host than the controller's own: an earlier one, or one of a chosen version."""

import time

from .deploy.installed_forms import version_of
from .deployments import CHOSEN, PRESENT, ROLLED_BACK, Deployments, Made
from .errors import DeployError
from .install import Deployment, Site, installed, look, put_on
from .runners import MACHINES, RunnerBinary, Runners
from .sessions import Connection


async def roll_back(
    connection: Connection, runners: Runners, ledger: Deployments, version: str | None, *, outcome: str | None = None
) -> Deployment:
    """Has jobs use another runner on the host: one of `version`, else the one before the present one.

    `version` may be the whole name of a folder. It holds until the next `deploy` that asks for the controller's own.
    `outcome` is what is written down, unless `version` decides that. Raises DeployError when there is none.
    """
    began, now = time.monotonic(), time.time()
    site = Site(connection, runners, ledger)
    runners = site.runners
    machine, listing = await look(site)
    usual = runners.for_machine(machine, site.host)
    folder, binary = _other_runner(site, listing, usual, MACHINES[machine], version)
    said = ""
    if binary is None:
        try:
            said = (await installed(site, folder)).version
        except DeployError as error:
            binary = runners.of_version(version_of(folder), MACHINES[machine])
            if error.code != "install.damaged" or binary is None or binary.folder != folder:
                raise
    if binary is not None:
        deployment, _ = await put_on(site, binary)
    else:
        ledger.note_checked(connection.host, runners.root, folder, version_of(folder), MACHINES[machine], said)
        deployment = Deployment(site.path(folder), 0, PRESENT, version_of(folder))
    ledger.choose(connection.host, runners.root, None if folder == usual.folder else folder)
    took = (time.monotonic() - began) * 1000
    sha256 = next((one.sha256 for one in site.known() if one.folder == folder), None)
    ledger.record(
        connection.host,
        Made(
            site.host, deployment.version, sha256, MACHINES[machine], now, took, deployment.uploaded_bytes,
            deployment.method, deployment.attempts, outcome or (ROLLED_BACK if version is None else CHOSEN),
        ),
    )  # fmt: skip
    return deployment


def _other_runner(
    site: Site, listing: list[str], usual: RunnerBinary, architecture: str, version: str | None
) -> tuple[str, RunnerBinary | None]:
    """The folder of the runner to change to; with its binary when it is not on the host. Raises DeployError."""
    if version is None:
        chosen = next((one for one in site.known() if one.is_chosen), None)
        folder = _earlier(listing, usual.folder if chosen is None else chosen.folder)
    else:
        folder = next((one for one in listing if version in (one, version_of(one))), None)
    if folder is not None:
        return folder, None
    binary = None
    if version is not None:
        binary = usual if usual.version == version else site.runners.of_version(version, architecture)
    if binary is None:
        raise _no_version(site, version, listing)
    return binary.folder, binary


def _no_version(site: Site, version: str | None, listing: list[str]) -> DeployError:
    there = ", ".join(listing) or "none"
    wanted = "earlier runner" if version is None else f"runner {version!r:.80}, nor is one beside our own"
    return DeployError("deploy.no_version", f"the host has no {wanted}; it has {there}", host=site.host)


def _earlier(listing: list[str], current: str) -> str | None:
    """The one that was installed before `current`; `listing` is newest first."""
    following = listing[listing.index(current) + 1 :] if current in listing else listing
    return following[0] if following else None
