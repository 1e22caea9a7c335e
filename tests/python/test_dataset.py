"""Instruction data: reading, bad rows, splits, reports, the command line."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dolly_rs

ROWS = [
    {"instruction": "Name a colour.", "context": "", "response": "Blue.", "category": "open_qa"},
    {"instruction": "Add.", "context": "1 [2] 3", "response": "4 ", "category": "maths"},
    {"instruction": "é\u2028\n\"", "context": "", "response": "r", "category": None},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_reads_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", ROWS)
    data = dolly_rs.load_dataset(path, licence="MIT", source="here")
    assert list(data) == ROWS
    assert (len(data), data[-1], data.origin(2)) == (3, ROWS[2], ("mine", 3))
    (info,) = data.sources
    assert (info.name, info.source, info.licence, info.rows, info.steps) == (
        "mine", "here", "MIT", 3, [],
    )  # fmt: skip
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert data.categories() == {None: 1, "maths": 1, "open_qa": 1}
    assert repr(data) == "<dolly_rs.Dataset of 3 rows: mine (MIT)>"
    with pytest.raises(IndexError):
        data[3]
    with pytest.raises(IndexError):
        data[-4]
    with pytest.raises(IndexError):
        data.origin(-1)


def test_reads_csv_and_lists(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    with table.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["category", "response", "instruction", "context"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert list(dolly_rs.load_dataset(table)) == ROWS
    whole = tmp_path / "rows.json"
    whole.write_text(json.dumps(ROWS, indent=2))
    both = dolly_rs.load_dataset([table, str(whole)])
    assert list(both) == ROWS * 2
    assert [one.name for one in both.sources] == ["rows", "rows"]


def test_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"instruction": "i", "input": "c", "output": "o"}])
    columns = {"context": "input", "response": "output", "category": None}
    data = dolly_rs.load_dataset(path, columns=columns)
    assert data[0] == {"instruction": "i", "context": "c", "response": "o", "category": None}
    with pytest.raises(dolly_rs.DataFormatError, match='there are "input", "output": map'):
        dolly_rs.load_dataset(path)
    for bad in ({"respons": "x"}, {"response": None}, {"response": "instruction"}):
        with pytest.raises(dolly_rs.InvalidArgumentError, match="columns"):
            dolly_rs.load_dataset(path, columns=bad)
    with pytest.raises(TypeError):
        dolly_rs.load_dataset(path, column={})  # type: ignore[call-arg]


def test_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(
        b'{"instruction": "i", "response": "r"}\r\n\r\n'
        b'{"instruction": "i", "response": ""}\n'
        b'{"instruction": "\xff"}\n'
        b'{"instruction": "i", "instruction": "i"}\n'
    )
    with pytest.raises(dolly_rs.DataFormatError) as caught:
        dolly_rs.load_dataset(path)
    error = caught.value
    assert (error.file, error.line, error.field) == (str(path), 3, "response")
    assert error.reason == "is empty"
    assert str(error) == f'{path}:3: field "response": is empty'
    assert isinstance(error, ValueError | dolly_rs.ModelFormatError)
    data = dolly_rs.load_dataset(path, on_bad_row="skip")
    assert (len(data), data.skipped) == (1, 3)
    (file,) = data.report()["files"]
    assert (file["blank_lines"], [one["line"] for one in file["first_skipped"]]) == (1, [3, 4, 5])
    assert data.sources[0].steps == ["left out 3 rows that could not be used"]
    with pytest.raises(dolly_rs.InvalidArgumentError, match="on_bad_row"):
        dolly_rs.load_dataset(path, on_bad_row="ignore")  # type: ignore[arg-type]
    with pytest.raises(dolly_rs.DataFormatError, match="at most 20 are allowed"):
        dolly_rs.load_dataset(path, max_line_bytes=20)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(dolly_rs.DollyIOError) as caught:
        dolly_rs.load_dataset(tmp_path / "no.jsonl")
    assert isinstance(caught.value, FileNotFoundError | OSError)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(dolly_rs.ModelFormatError, match="holds no rows"):
        dolly_rs.load_dataset(tmp_path / "empty.jsonl")
    with pytest.raises(dolly_rs.ModelFormatError, match="does not end in"):
        dolly_rs.load_dataset(tmp_path / "rows.xlsx")


class Frame:
    """A pandas frame as far as it is used."""

    columns = ("instruction", "response")

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{"instruction": "i", "response": "r", "category": float("nan"), "n": 1}]


def test_rows_made_in_python() -> None:
    data = dolly_rs.Dataset.from_records(ROWS, name="made", licence="CC0-1.0")
    assert list(data) == ROWS
    assert (data.sources[0].name, data.sources[0].licence) == ("made", "CC0-1.0")
    assert list(dolly_rs.load_dataset(row for row in ROWS)) == ROWS
    assert dolly_rs.load_dataset(Frame())[0]["category"] is None  # type: ignore[arg-type]
    table = SimpleNamespace(to_pylist=lambda: ROWS)
    assert list(dolly_rs.load_dataset(table)) == ROWS  # type: ignore[arg-type]
    for row, words in [
        ({"instruction": "i", "response": 3}, 'rows:2: field "response": is a number'),
        ({"instruction": "i", "response": b"r"}, "is an object"),
        ({"instruction": "i", "response": "\ud800"}, "not valid JSON"),
        ({"instruction": "", "response": "r"}, 'field "instruction": is empty'),
        (["i", "r"], "is a list"),
    ]:
        with pytest.raises(dolly_rs.DataFormatError, match=words):
            dolly_rs.load_dataset([ROWS[0], row])


def test_sets_are_split_filtered_and_joined() -> None:
    rows = [{"instruction": str(n), "response": "r"} for n in range(100)]
    data = dolly_rs.load_dataset(rows)
    train, test = data.split(20, seed=3)
    numbers = [[int(row["instruction"]) for row in part] for part in (train, test)]
    assert sorted(numbers[0] + numbers[1]) == list(range(100))
    assert len(numbers[1]) == 20
    assert numbers == [[int(r["instruction"]) for r in p] for p in data.split(0.2, seed=3)]
    shuffled = [int(row["instruction"]) for row in data.shuffle(1)]
    assert shuffled != list(range(100))
    assert sorted(shuffled) == list(range(100))
    assert list(data[5:1:-2]) == [data[5], data[3]]
    assert list(data.select([7, 7])) == [data[7]] * 2
    late = data.filter(lambda row: int(row["instruction"]) >= 90, "late")
    assert late.sources[0].steps == ["filter: late; kept 10 of 100 rows"]
    assert len(late + test) == len(late.concat(test)) == 30
    assert len((data + data).without_duplicates()) == 100
    for bad in (0, 100, 1.5, -1, float("nan")):
        with pytest.raises(dolly_rs.InvalidArgumentError):
            data.split(bad)
    with pytest.raises(dolly_rs.InvalidArgumentError, match="seed"):
        data.shuffle(-1)
    with pytest.raises(TypeError):
        data.split("half")  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        data.filter(lambda row: 1 / 0)


def test_clean_is_logged() -> None:
    data = dolly_rs.load_dataset(ROWS).clean()
    assert data[1]["context"] == "1  3"
    assert data[1]["response"] == "4"
    assert data.sources[0].steps == [
        "clean: 1 rows changed; 1 fields trimmed, 1 footnote marks removed, "
        "0 rows left out as empty"
    ]


def test_report(nano: dolly_rs.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dolly_rs.load_dataset([*ROWS, ROWS[0]])
    report = data.report(max_length=15)
    values = report.to_dict()
    assert values["lengths"]["unit"] == "characters"
    assert values["lengths"]["response"]["max"] == 5
    assert values["too_long"]["first"] == [0, 3]
    assert values["duplicates"] == {"questions": 1, "rows": 1}
    assert json.loads(json.dumps(values)) == values
    assert str(report).startswith("4 rows\n")
    assert repr(report) == "<dolly_rs.Report of 4 rows>"
    tokens = data.report(nano)
    assert tokens["lengths"]["unit"] == "tokens"
    assert tokens["lengths"] == data.report(nano.tokenizer)["lengths"]
    plain = nano.tokenizer.encode("Blue.\n\n")
    assert tokens["lengths"]["response"]["max"] == len(plain) + 1
    hostile = dolly_rs.load_dataset([{**ROWS[0], "category": "<script>"}])
    page = hostile.report()._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        report.plot()


def test_plot() -> None:
    pytest.importorskip("matplotlib")
    figure = dolly_rs.load_dataset([{**ROWS[0], "category": "a $ b $"}]).report().plot()
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes][1] == "categories"


def test_written_files_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    dolly_rs.load_dataset(ROWS).to_jsonl(path)
    assert list(dolly_rs.load_dataset(path)) == ROWS
    assert len(path.read_text(encoding="utf-8").splitlines()) >= 3
    with pytest.raises(dolly_rs.DollyIOError):
        dolly_rs.load_dataset(ROWS).to_jsonl(tmp_path / "no" / "out.jsonl")
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]


def test_reading_leaves_the_interpreter_free(tmp_path: Path) -> None:
    path = write(tmp_path / "big.jsonl", ROWS * 30_000)
    counted, done = 0, threading.Event()
    thread = threading.Thread(target=lambda: (dolly_rs.load_dataset(path), done.set()))
    thread.start()
    while not done.is_set():
        counted += 1
        done.wait(0.001)
    thread.join()
    assert counted > 1


def dolly(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "dolly_rs", "data", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def test_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [*ROWS, {}])
    failed = dolly(path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == f'dolly: {path}:4: field "instruction": is missing\n'
    done = dolly(path, "--on-bad-row", "skip", "--clean")
    assert done.returncode == 0
    assert done.stdout.startswith("3 rows\n")
    assert "1 footnote marks removed" in done.stdout
    assert "1 rows skipped" in done.stdout
    out = tmp_path / "parts"
    done = dolly(
        path, "--on-bad-row", "skip", "--report", "json", "--split", "1", "--seed", "3",
        "--out", out, "--model", "dolly-nano", "--max-length", "1",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert (report["lengths"]["unit"], report["too_long"]["rows"]) == ("tokens", 3)
    train = dolly_rs.load_dataset(out / "train.jsonl")
    test = dolly_rs.load_dataset(out / "test.jsonl")
    expected = dolly_rs.load_dataset(ROWS).split(1, seed=3)
    assert (list(train), list(test)) == (list(expected[0]), list(expected[1]))
    assert dolly(path, "--split", "1").returncode == 1
    assert dolly(path, "--column", "response").returncode == 2
    assert dolly(path, "--column", "answer=x").returncode == 1
