"""Models of the tests: the bundled one, and tiny ones with known answers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import dolly_rs
import tiny

ANSWER = "Hi, you!"
EURO = "€"


def pytest_configure() -> None:
    """Hear Ctrl-C, and let child processes hear it, where the shell made this one deaf to it.

    A command started in the background inherits an ignored SIGINT, and so do its children.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def nano() -> Iterator[dolly_rs.Pipeline]:
    """The bundled model, with two threads."""
    with dolly_rs.pipeline("dolly-nano", threads=2) as pipe:
        yield pipe


@pytest.fixture(scope="session")
def chain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers ANSWER to everything."""
    return tiny.chain_model(tmp_path_factory.mktemp("chain"), tiny.answer_chain(ANSWER))


@pytest.fixture(scope="session")
def chain(chain_dir: Path) -> Iterator[dolly_rs.Pipeline]:
    """The model of `chain_dir`."""
    with dolly_rs.pipeline(chain_dir, threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="session")
def euro(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dolly_rs.Pipeline]:
    """A model that answers with euro signs without end, three tokens each."""
    path = tiny.chain_model(tmp_path_factory.mktemp("euro"), tiny.loop_chain(EURO))
    with dolly_rs.pipeline(path, threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="session")
def endless_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `euro`, with a context that takes minutes to fill."""
    chain = tiny.loop_chain(EURO)
    path = tmp_path_factory.mktemp("endless")
    return tiny.chain_model(path, chain, max_position_embeddings=40_000)


@pytest.fixture
def endless(endless_dir: Path) -> Iterator[dolly_rs.Pipeline]:
    """The model of `endless_dir`, fresh for each test."""
    with dolly_rs.pipeline(endless_dir, threads=1) as pipe:
        yield pipe
