"""Streams: order, cancellation by every route, one reader, asyncio."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable

import pytest

import dolly_rs
from conftest import ANSWER, EURO

Pipe = dolly_rs.Pipeline
LONG = 30_000


def engine_let_go(pipe: Pipe) -> bool:
    """Whether no sequence holds a cache any more, after some turns of the engine at most."""
    for _ in range(100):
        if pipe.memory.cache == 0:
            return True
        pipe.logits([1])
    return False


def test_pieces_join_to_the_text(nano: Pipe) -> None:
    stream = nano.stream("Name three colours.", seed=3, max_new_tokens=32)
    assert stream.generation is None
    text = "".join(stream)
    assert stream.generation is not None
    assert stream.generation.text == text
    alone = nano.generate("Name three colours.", seed=3, max_new_tokens=32)
    assert alone.token_ids == stream.generation.token_ids
    assert list(stream) == []


def test_context(chain: Pipe) -> None:
    stream = chain.stream("a", "passage")
    assert "".join(stream) == ANSWER
    assert stream.generation is not None
    again = chain.generate("a", "passage").usage
    assert stream.generation.usage.total_tokens == again.total_tokens
    assert again.cached_tokens == again.prompt_tokens - 1


def leave(stream: dolly_rs.Stream) -> None:
    with stream:
        pass


def test_an_unread_stream_holds_a_cache(endless: Pipe) -> None:
    stream = endless.stream("a", max_new_tokens=LONG)
    next(stream)
    assert endless.memory.cache > 0
    stream.close()


def test_dropping_cancels(endless: Pipe) -> None:
    stream = endless.stream("a", max_new_tokens=LONG)
    next(stream)
    del stream
    gc.collect()
    assert engine_let_go(endless)


@pytest.mark.parametrize("end", [leave, dolly_rs.Stream.close])
def test_closing_cancels(endless: Pipe, end: Callable[[dolly_rs.Stream], None]) -> None:
    stream = endless.stream("a", max_new_tokens=LONG)
    first = next(stream)
    end(stream)
    assert stream.generation is not None
    assert stream.generation.finish_reason == "cancelled"
    assert stream.generation.text.startswith(first)
    assert list(stream) == []
    assert engine_let_go(endless)
    stream.close()


def test_cancel_ends_the_iteration(endless: Pipe) -> None:
    stream = endless.stream("a", max_new_tokens=LONG)
    pieces = [next(stream)]
    stream.cancel()
    pieces.extend(stream)
    assert stream.generation is not None
    assert stream.generation.finish_reason == "cancelled"
    assert "".join(pieces) == stream.generation.text


def test_breaking_out_of_a_loop(endless: Pipe) -> None:
    for piece in endless.stream("a", max_new_tokens=LONG):
        assert piece == EURO
        break
    gc.collect()
    assert engine_let_go(endless)


def test_second_reader_is_refused(endless: Pipe) -> None:
    stream = endless.stream("a", max_new_tokens=LONG)
    refused = threading.Event()
    barrier = threading.Barrier(2)
    errors: list[str] = []

    def read() -> None:
        barrier.wait()
        try:
            for _ in stream:
                if refused.is_set():
                    return
        except RuntimeError as error:
            errors.append(str(error))
            refused.set()

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(errors) == 1
    assert "read by another thread" in errors[0]
    assert next(stream) == EURO
    stream.close()


def test_another_thread_cancels(endless: Pipe) -> None:
    stream = endless.stream("a", max_new_tokens=LONG)
    next(stream)
    canceller = threading.Thread(target=stream.close)
    canceller.start()
    text = "".join(stream)
    canceller.join()
    # A cancel may fall within a character: what is left of it is one replacement character.
    assert set(text.removesuffix("\ufffd")) <= {EURO}
    assert stream.generation is not None
    assert stream.generation.finish_reason == "cancelled"


def test_async_for(euro: Pipe) -> None:
    async def collect(tokens: int) -> str:
        return "".join([piece async for piece in euro.stream("a", max_new_tokens=tokens)])

    async def both() -> list[str]:
        return await asyncio.gather(collect(12), collect(30))

    assert asyncio.run(both()) == [EURO * 4, EURO * 10]


def test_event_loop_runs_meanwhile(endless: Pipe) -> None:
    async def main() -> int:
        ticks = 0
        done = False

        async def tick() -> None:
            nonlocal ticks
            while not done:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        async with endless.stream("a", max_new_tokens=LONG) as stream:
            count = 0
            async for _ in stream:
                count += 1
                if count == 20:
                    break
        done = True
        await ticking
        return ticks

    assert asyncio.run(main()) > 20
    assert engine_let_go(endless)


def test_cancelled_task_cancels_the_request(endless: Pipe) -> None:
    streams = []

    async def consume(started: asyncio.Event) -> None:
        stream = endless.stream("a", max_new_tokens=LONG)
        streams.append(stream)
        async for _ in stream:
            started.set()

    async def main() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(consume(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert engine_let_go(endless)
    streams[0].close()
    assert streams[0].generation is not None
    assert streams[0].generation.finish_reason == "cancelled"
