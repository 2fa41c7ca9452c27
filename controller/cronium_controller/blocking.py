"""The controller without `async`: for scripts and notebooks.

    with BlockingController() as controller:
        for result in controller.run_many(["web01", "web02"], Job(load("backup.sh"))):
            print(result.host, result.state, result.output_text)

The same calls as `dispatch.Controller`, in an event loop in a thread, so that they can be made where a loop runs
already (Jupyter); nothing is decided here.
"""

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from cronium_runner.wire.results import Result, StreamSummary

from .dispatch import Controller
from .fanout import FanOut, Target
from .hosts import Host
from .job import Job
from .loop_thread import LoopThread
from .metrics import Stats
from .outputs import MOST_FETCHED, OutputStream

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


class BlockingStream(StreamSummary):
    """One stream of a result: how much there is, and the way to it while the controller is open."""

    _stream: OutputStream
    _loop: LoopThread

    @classmethod
    def of(cls, stream: OutputStream, loop: LoopThread) -> "BlockingStream":
        """The same stream, read in that loop."""
        made = cls(*stream)
        made._stream, made._loop = stream, loop
        return made

    def bytes(self, limit: int = MOST_FETCHED) -> bytes:
        """The first `limit` bytes (16 MiB), as the script wrote them. Raises as `Controller.attach` does."""
        return self._loop.run(self._stream.bytes(limit))

    def text(self, limit: int = MOST_FETCHED) -> str:
        """The same as text; bytes that aren't UTF-8 are replaced."""
        return self.bytes(limit).decode("utf-8", "replace")


class BlockingResult(Result):
    """A result whose output is read without `await`."""

    @property
    def output_text(self) -> str:
        """What the script wrote to standard output, its first 16 MiB, fetched from the host."""
        return self.stdout.text() if isinstance(self.stdout, BlockingStream) else ""


class BlockingController:
    """Takes what `Controller` takes. For one thread."""

    def __init__(self, **how: Unpack[ControllerOptions]) -> None:
        self._how = how
        self._loop: LoopThread | None = None
        self._controller: Controller | None = None

    def __enter__(self) -> "BlockingController":
        self._loop = LoopThread("cronium-blocking")
        try:
            self._loop.run(self._open())
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._controller is not None:
                self._thread.run(self._controller.close())
        finally:
            self._thread.close()

    async def _open(self) -> None:
        self._controller = Controller(**self._how)

    @property
    def controller(self) -> Controller:
        """The one behind it, whose calls are made in its own loop."""
        assert self._controller is not None, "use it as `with BlockingController() as controller`"
        return self._controller

    @property
    def _thread(self) -> LoopThread:
        assert self._loop is not None, "use it as `with BlockingController() as controller`"
        return self._loop

    def get_stats(self) -> Stats:
        """What the controller has done since it was made."""
        return self.controller.get_stats()

    def run(self, host: Host | str, job: Job) -> BlockingResult:
        """Runs a job on one host, to its end. Raises as `Controller.submit` does."""

        async def run() -> Result:
            execution = await self.controller.submit(host, job, follow=False)
            return await execution.result()

        return self._read(self._thread.run(run()))

    def run_many(
        self, targets: Iterable[Target], job: Job, **options: Unpack[ManyOptions]
    ) -> Generator[BlockingResult, None, None]:
        """The results, as hosts end; options as for `Controller.run_many`, and raises as that."""
        many = self._thread.run(self._many(targets, job, options))

        async def next_of(results: Any) -> Result | None:
            return await anext(results, None)

        results = aiter(many)
        try:
            while (result := self._thread.run(next_of(results))) is not None:
                yield self._read(result)
        finally:
            self._thread.run(results.aclose())  # type: ignore[attr-defined]

    async def _many(self, targets: Iterable[Target], job: Job, options: ManyOptions) -> FanOut:
        return self.controller.run_many(targets, job, **options)

    def wait(self, execution_id: str, host: Host | str) -> BlockingResult:
        """Waits for an execution's end. Raises as `Controller.wait` does."""
        return self._read(self._thread.run(self.controller.wait(execution_id, host)))

    def _read(self, result: Result) -> BlockingResult:
        return BlockingResult(*result)._replace(stdout=self._stream(result.stdout), stderr=self._stream(result.stderr))

    def _stream(self, stream: StreamSummary) -> StreamSummary:
        return BlockingStream.of(stream, self._thread) if isinstance(stream, OutputStream) else stream
