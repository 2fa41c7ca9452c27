"""The controller without `async`: for scripts and notebooks that have no event loop of their own.

    with BlockingController() as controller:
        for result in controller.run_many(["web01", "web02"], Job(load("backup.sh"))):
            print(result.host, result.state)

The same calls as `dispatch.Controller` in a loop of its own on this thread; nothing is decided here. Between two calls
nothing happens: a host is not heard while the caller does something else.
"""

import asyncio
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from cronium_runner.wire.results import Result

from .dispatch import Controller
from .fanout import Target
from .hosts import Host, parse_host
from .job import Job
from .metrics import Stats

if TYPE_CHECKING:
    from .access import Access
    from .connections import Connections
    from .fanout import Output
    from .runners import Runners
    from .store import Store


class ControllerOptions(TypedDict, total=False):
    """What `Controller` takes."""

    store: "Store | None"
    access: "Access | None"
    runners: "Runners | None"
    allow_tcp_tunnel: bool
    connections: "Connections | None"


class ManyOptions(TypedDict, total=False):
    """What `Controller.run_many` takes besides hosts and a job."""

    forks: int
    serial: int | str | None
    max_failures: int | str | None
    stop_on_failure: bool
    output: "Output | None"
    keep_connections: bool


class BlockingController:
    """Takes what `Controller` takes. For one thread; not inside a running event loop."""

    def __init__(self, **how: Unpack[ControllerOptions]) -> None:
        self._runner = asyncio.Runner()
        self._how = how
        self._controller: Controller | None = None

    def __enter__(self) -> "BlockingController":
        self._runner.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._controller is not None:
                self._runner.run(self._controller.close())
        finally:
            self._runner.close()

    async def _open(self) -> None:
        self._controller = Controller(**self._how)

    @property
    def controller(self) -> Controller:
        """The one behind it."""
        assert self._controller is not None, "use it as `with BlockingController() as controller`"
        return self._controller

    def get_stats(self) -> Stats:
        """What the controller has done since it was made."""
        return self.controller.get_stats()

    def run(self, host: Host | str, job: Job) -> Result:
        """Runs a job on one host, to its end. Raises as `Controller.submit` does."""

        async def run() -> Result:
            where = parse_host(host) if isinstance(host, str) else host
            execution = await self.controller.submit(where, job, follow=False)
            return await execution.result()

        return self._runner.run(run())

    def run_many(
        self, targets: Iterable[Target], job: Job, **options: Unpack[ManyOptions]
    ) -> Generator[Result, None, None]:
        """The results, as hosts end; options as for `Controller.run_many`, and raises as that."""
        many = self.controller.run_many(targets, job, **options)

        async def next_of(results: Any) -> Result | None:
            return await anext(results, None)

        results = aiter(many)
        try:
            while (result := self._runner.run(next_of(results))) is not None:
                yield result
        finally:
            self._runner.run(results.aclose())  # type: ignore[attr-defined]

    def wait(self, execution_id: str, host: Host | str) -> Result:
        """Waits for an execution's end. Raises as `Controller.wait` does."""
        where = parse_host(host) if isinstance(host, str) else host
        return self._runner.run(self.controller.wait(execution_id, where))
