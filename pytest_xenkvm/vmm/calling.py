"""Calling a VMM behaviour, whose methods may be missing and may be coroutines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from attrs import define, field

from pytest_xenkvm.vmm.behaviour import Vmm, VmmBehaviour

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


@define(eq=False)
class Calls:
    """Calls the methods of a behaviour during one replay; `close` ends it.

    All awaitables of a replay run in one event loop, so that what a coroutine opened serves the next one.
    """

    behaviour: VmmBehaviour
    _loop: AbstractEventLoop | None = field(default=None, init=False)

    def find(self, name: str) -> Callable[..., Any] | None:
        """The behaviour's method of that name; None if there is none."""
        method: Callable[..., Any] | None = getattr(self.behaviour, name, None)
        return method

    def find_own(self, name: str) -> Callable[..., Any] | None:
        """As `find`, but the methods that `Vmm` brings along don't count."""
        method = self.find(name)
        return None if getattr(method, "__func__", None) is getattr(Vmm, name) else method

    def call(self, method: Callable[..., Any], *args: object) -> Any:
        """What the method returns; an awaitable is run to its end."""
        result = method(*args)
        return self._run(result) if not isinstance(result, int) and isawaitable(result) else result

    def close(self) -> None:
        """Let the behaviour close, and end what it left running."""
        try:
            close = self.find_own("close")
            if close is not None:
                self.call(close)
        finally:
            if self._loop is not None:
                self._run(_end_tasks())
                self._loop.close()
                self._loop = None

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        import asyncio  # noqa: PLC0415 - slow to import, and rarely needed

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._loop.run_until_complete(_as_coroutine(awaitable))
        return _in_a_thread(self._loop, awaitable)


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _in_a_thread(loop: AbstractEventLoop, awaitable: Awaitable[Any]) -> Any:
    """Run it although this thread's own event loop runs: the replay was started by a coroutine."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - as above

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(loop.run_until_complete, _as_coroutine(awaitable)).result()


async def _end_tasks() -> None:
    """Cancel what is left running in the loop."""
    import asyncio  # noqa: PLC0415 - as above

    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
