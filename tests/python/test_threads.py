"""The interpreter is free during calls; threads, signals and forks do no harm."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dolly_rs

Pipe = dolly_rs.Pipeline
INSTRUCTIONS = [f"Write {n} words about the number {n}." for n in range(2, 10)]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def progress_meanwhile(call: Callable[[], object]) -> int:
    """How often another thread came round while `call` ran: 0 while the GIL is held."""
    rounds = 0
    done = False

    def count() -> None:
        nonlocal rounds
        while not done:
            rounds += 1

    thread = threading.Thread(target=count)
    thread.start()
    # Long turns: the other thread gets one only where the call lets go.
    before_interval = sys.getswitchinterval()
    sys.setswitchinterval(0.1)
    try:
        before = rounds
        call()
        after = rounds
    finally:
        sys.setswitchinterval(before_interval)
        done = True
        thread.join()
    return after - before


# Long enough for the other thread to wake up meanwhile, on any machine.
LONG: Any = {"max_new_tokens": 700, "ignore_end": True}

CALLS: dict[str, Callable[[Pipe], object]] = {
    "call": lambda pipe: pipe("a", **LONG),
    "generate": lambda pipe: pipe.generate("a", **LONG),
    "generate_batch": lambda pipe: pipe.generate_batch(["a", "b"], **LONG),
    "stream": lambda pipe: list(pipe.stream("a", **LONG)),
    "complete": lambda pipe: pipe.complete("H", **LONG),
    "complete_batch": lambda pipe: pipe.complete(["H", "i"], **LONG),
    "score": lambda pipe: pipe.score("a", "b" * 700),
    "classify": lambda pipe: pipe.classify("a", ["b" * 700, "c" * 700]),
    "logits": lambda pipe: pipe.logits([3] * 1000),
    "encode": lambda pipe: pipe.tokenizer.encode("a word " * 20_000),
    "load": lambda pipe: dolly_rs.pipeline(pipe.id).close(),
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)).close(),
}


@pytest.mark.parametrize("name", CALLS)
def test_gil_is_released(chain: Pipe, name: str) -> None:
    assert progress_meanwhile(lambda: CALLS[name](chain)) > 100


def test_eight_threads_answer_as_alone(nano: Pipe) -> None:
    def answer(n: int) -> list[int]:
        instruction = INSTRUCTIONS[n % len(INSTRUCTIONS)]
        sample = n % 2 == 0
        return nano.generate(
            instruction, seed=n, do_sample=sample, top_p=0.9, max_new_tokens=5 + n % 20
        ).token_ids

    alone = [answer(n) for n in range(48)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(answer, range(48))) == alone


def run(script: str, *arguments: str | Path) -> str:
    """Standard output of a Python script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_fork
def test_forked_child_answers_as_its_parent() -> None:
    out = run(
        """
        import os, dolly_rs
        pipe = dolly_rs.pipeline("dolly-nano", threads=2)
        answer = lambda: pipe.generate("Name a bird.", seed=5, max_new_tokens=16).token_ids
        expected = answer()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, repr(answer()).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as results:
            print(results.read() == repr(expected) and os.waitpid(child, 0)[1] == 0)
        print(answer() == expected)
        """
    )
    assert out.split() == ["True", "True"]


@needs_fork
def test_multiprocessing_fork() -> None:
    out = run(
        """
        import multiprocessing, dolly_rs
        pipe = dolly_rs.pipeline("dolly-nano", threads=2)
        def answer(n):
            return pipe.generate("Name a bird.", seed=n, max_new_tokens=8).text
        expected = [answer(n) for n in range(6)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(answer, range(6)) == expected)
        """
    )
    assert out.split() == ["True"]


INTERRUPTED = {
    "generate": 'pipe.generate("a", max_new_tokens=30000)',
    "batch": 'pipe.generate_batch(["a"] * 4, max_new_tokens=30000)',
    "stream": 'list(pipe.stream("a", max_new_tokens=30000))',
    "complete": 'pipe.complete("\\u20ac", max_new_tokens=30000)',
    "logits": "pipe.logits([3] * 20000)",
    "score": 'pipe.score("a", "b" * 30000)',
    "classify": 'pipe.classify("a", ["b" * 20000, "c" * 20000])',
}

# The signal comes from a thread that can run only if the call has let go of the interpreter.
INTERRUPT_SCRIPT = """
    import os, signal, sys, threading, time, dolly_rs
    pipe = dolly_rs.pipeline(sys.argv[1], threads=1)
    sent = []
    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(0.3, interrupt).start()
    try:
        {call}
        print("not interrupted")
    except KeyboardInterrupt:
        print(time.monotonic() - sent[0])
    print(pipe.generate("a", max_new_tokens=3).text)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", INTERRUPTED)
def test_ctrl_c(endless_dir: Path, name: str) -> None:
    script = textwrap.dedent(INTERRUPT_SCRIPT).format(call=INTERRUPTED[name])
    latency, text = run(script, endless_dir).split()
    print(f"{name}: interrupted after {float(latency):.3f} s")
    assert float(latency) < 2
    assert text == "€"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_while_loading() -> None:
    out = run(
        """
        import os, signal, dolly_rs
        seen = []
        def interrupt(loaded, total, tensor):
            seen.append(tensor)
            if len(seen) == 1:
                os.kill(os.getpid(), signal.SIGINT)
                import time
                time.sleep(0.2)  # longer than a slice: the load must not end meanwhile
        try:
            dolly_rs.pipeline("dolly-nano", progress=interrupt)
        except KeyboardInterrupt:
            print("interrupted", len(seen))
        with dolly_rs.pipeline("dolly-nano") as pipe:
            print(len(pipe.generate("a", ignore_end=True, max_new_tokens=3).token_ids))
        """
    )
    assert out.split() == ["interrupted", "1", "3"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_while_converting(chain_dir: Path, tmp_path: Path) -> None:
    out = run(
        """
        import os, signal, sys, dolly_rs
        seen = []
        def interrupt(written, total, tensor):
            seen.append(tensor)
            if len(seen) == 1:
                os.kill(os.getpid(), signal.SIGINT)
                import time
                time.sleep(0.2)  # longer than a slice: the call must not end meanwhile
        for name in ("m.gguf", "m"):
            seen.clear()
            try:
                dolly_rs.convert(sys.argv[1], f"{sys.argv[2]}/{name}", progress=interrupt)
            except KeyboardInterrupt:
                print("interrupted", len(seen))
        """,
        chain_dir,
        tmp_path,
    )
    assert out.split() == ["interrupted", "1"] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signal_handler_may_use_the_stream(endless_dir: Path) -> None:
    out = run(
        """
        import os, signal, sys, dolly_rs
        pipe = dolly_rs.pipeline(sys.argv[1], threads=1)
        stream = pipe.stream("a", max_new_tokens=30000)
        signal.signal(signal.SIGUSR1, lambda *_: stream.close())
        next(stream)
        os.kill(os.getpid(), signal.SIGUSR1)
        list(stream)
        print(stream.generation.finish_reason)
        """,
        endless_dir,
    )
    assert out.split() == ["cancelled"]


def test_interpreter_exits_during_a_request(endless_dir: Path) -> None:
    out = run(
        """
        import sys, dolly_rs
        pipe = dolly_rs.pipeline(sys.argv[1], threads=1)
        stream = pipe.stream("a", max_new_tokens=30000)
        print(next(stream))
        """,
        endless_dir,
    )
    assert out.split() == ["€"]


def test_generation_and_options_pickle(nano: Pipe) -> None:
    answer = nano.generate("Name a bird.", seed=1, max_new_tokens=4, logprobs=1)
    assert pickle.loads(pickle.dumps(answer)) == answer
    options = dolly_rs.GenerateOptions(top_k=5, stop=("a",))
    assert pickle.loads(pickle.dumps(options)) == options
    assert pickle.loads(pickle.dumps(nano.memory)) == nano.memory
    score = nano.score("Name a bird.", "Owl.")
    assert pickle.loads(pickle.dumps(score)) == score
    found = nano.classify("Is it?", ["yes", "no"])
    assert pickle.loads(pickle.dumps(found)) == found


def test_pipeline_pickles_its_settings_only(nano: Pipe) -> None:
    pickled = pickle.dumps(nano)
    assert len(pickled) < 1000
    with pickle.loads(pickled) as copy:
        assert repr(copy) == repr(nano)
        expected = nano.generate("Name a bird.", seed=1, max_new_tokens=8)
        assert copy.generate("Name a bird.", seed=1, max_new_tokens=8).text == expected.text
