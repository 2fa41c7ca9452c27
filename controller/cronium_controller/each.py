"""One question to many, so many at once: the answers as they come, and an error is the answer of whom it is about.

Knows neither hosts nor jobs. A run on many hosts, with batches and failures that end it, is `fanout`'s.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from .errors import ControllerError
from .schedule import FORKS

T = TypeVar("T")
A = TypeVar("A")


async def answers(
    asked: Iterable[T], ask: Callable[[T], Awaitable[A]], *, forks: int = FORKS
) -> AsyncIterator[tuple[T, A | ControllerError]]:
    """Each of `asked` with what `ask` returned or raised for it. Whoever stops listening ends the questions."""
    waiting = iter(asked)
    running: dict[asyncio.Future[A], T] = {}
    try:
        while True:
            while len(running) < forks and (one := next(waiting, _NOBODY)) is not _NOBODY:
                running[asyncio.ensure_future(ask(one))] = one  # type: ignore[arg-type, assignment]
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for answer in done:
                one = running.pop(answer)
                found: A | ControllerError = _answer(answer)
                yield one, found
    finally:
        for left in running:
            left.cancel()
        await asyncio.gather(*running, return_exceptions=True)


_NOBODY = object()


def _answer(future: "asyncio.Future[A]") -> A | ControllerError:
    try:
        return future.result()
    except ControllerError as error:
        return error
