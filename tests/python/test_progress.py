"""Progress: shown on standard error when asked for, and nowhere else."""

from __future__ import annotations

import sys

import pytest

from dolly_rs.progress import Reports, reporter


def test_nothing_is_shown_unless_asked_for() -> None:
    for progress in (None, False):
        with reporter(progress, "title") as reports:
            assert reports == Reports(None, None)


def test_a_callable_hears_of_tensors() -> None:
    def mine(loaded: int, total: int, tensor: str) -> None: ...

    with reporter(mine, "title") as reports:
        assert reports == Reports(mine, None)


def test_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(True, "Loading m") as reports:
        assert reports.tensor is not None
        assert reports.download is not None
        reports.download(500, 1000, "model.bin")
        reports.download(1000, 1000, "model.bin")
        reports.download(7, None, "config.json")
        reports.tensor(50, 50, "t")
    shown = capsys.readouterr()
    assert "model.bin: 100%" in shown.err
    assert "config.json: 7.00B" in shown.err
    assert "Loading m: 100%" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_without_tqdm(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with reporter(True, "Loading m") as reports:
        assert (reports.download is not None) == terminal
        if reports.download is not None:
            reports.download(1_500_000, 3_000_000, "model.bin")
            reports.download(7, None, "config.json")
    clear = "\r\x1b[K"
    lines = f"{clear}model.bin: 1.5 of 3.0 MB{clear}config.json: 0.0 MB{clear}"
    assert capsys.readouterr().err == (lines if terminal else "")
