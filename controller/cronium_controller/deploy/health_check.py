"""Whether a host is well with the runner that jobs use there now: doctor's findings, and a job that does nothing."""

import asyncio
from typing import TYPE_CHECKING, Final

from ..doctor import BAD
from ..errors import DeployError
from ..hosts import Host
from ..job import Job
from ..payloads import of_text
from ..schedule import is_success

if TYPE_CHECKING:
    from ..dispatch import Controller

CHECK_SECONDS: Final = 180.0
"""For both together: doctor's questions have 15 s each."""
JOB_SECONDS: Final = 60.0
_SCRIPT: Final = "#!/bin/sh\n:\n"


async def check_health(controller: "Controller", host: Host) -> None:
    """Raises ControllerError for a host that is not well: `deploy.unhealthy`, or what kept it from being asked.

    The agent is left afterwards, so that the next check starts another one.
    """
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            found = [finding async for finding in controller.examine(host) if finding.level == BAD]
            if found:
                raise _unhealthy(host, f"doctor: {found[0].name}: {found[0].seen}")
            execution = await controller.submit(host, Job(of_text("health-check.sh", _SCRIPT, {}), timeout=JOB_SECONDS))
            result = await execution.result()
            await execution.wait_acknowledged()  # until then its agent counts as used
            # A host that runs signed payloads only: its runner has looked at the job, as it has to, and refused it.
            if not is_success(result) and result.error_code != "payload.unsigned":
                raise _unhealthy(host, f"a job that does nothing: {result.error_message or result.state.value}")
    except TimeoutError:
        raise _unhealthy(host, f"it took longer than {CHECK_SECONDS:g} s") from None
    finally:
        await controller.reachable.leave(host)


def _unhealthy(host: Host, why: str) -> DeployError:
    return DeployError("deploy.unhealthy", f"the health check failed: {why}", host=host.name)
