"""An answer as it is written: an iterator, for threads and for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from . import _native
from .results import Generation

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Stream"]


class Stream(Iterator[str], AsyncIterator[str]):
    """Pieces of one answer, whole UTF-8, which join to `Generation.text`.

    Made by `Pipeline.stream`. Dropping or closing it, or leaving its ``with`` block, cancels the
    request within one step. One reader at a time: a second thread that reads meanwhile gets a
    RuntimeError. Works with ``for`` and with ``async for``; a cancelled task cancels the request.

    Examples
    --------
    >>> import dolly_rs
    >>> pipe = dolly_rs.pipeline("dolly-nano")
    >>> with pipe.stream("Name three colours.", seed=7, max_new_tokens=8) as stream:
    ...     text = "".join(stream)
    >>> stream.generation.text == text
    True
    """

    def __init__(self, native: _native.Stream) -> None:
        self._native = native

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        piece = self._native.next()
        if piece is None:
            raise StopIteration
        return piece

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            loop = asyncio.get_running_loop()
            piece = await loop.run_in_executor(None, self._native.next)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    @property
    def generation(self) -> Generation | None:
        """The whole answer once the iterator has ended, else None."""
        parts = self._native.generation()
        return None if parts is None else Generation.of(parts)

    def cancel(self) -> None:
        """Ask the engine to stop; the iterator then ends, and `generation` has the text so far."""
        self._native.cancel()

    def close(self) -> None:
        """Cancel, and wait until the engine has let go of the request (one step)."""
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __repr__(self) -> str:
        state = "open" if self._native.generation() is None else "ended"
        return f"<dolly_rs.Stream {state}>"
