"""What is in a set of instruction data, as text, dict, HTML and picture."""

from __future__ import annotations

import html
import importlib
import json
from typing import Any

__all__ = ["Report"]


class Report:
    """Description of a set; made by `Dataset.report`.

    Examples
    --------
    >>> import dolly_rs
    >>> rows = [{"instruction": "Name a colour.", "response": "Blue."}] * 2
    >>> report = dolly_rs.load_dataset(rows).report()
    >>> report.to_dict()["duplicates"]
    {'questions': 1, 'rows': 1}
    >>> print(str(report).splitlines()[0])
    2 rows
    """

    def __init__(self, as_json: str, text: str) -> None:
        self._values: dict[str, Any] = json.loads(as_json)
        self._text = text

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts and lists, ready for JSON."""
        copy: dict[str, Any] = json.loads(json.dumps(self._values))
        return copy

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<dolly_rs.Report of {self._values['rows']} rows>"

    def _repr_html_(self) -> str:
        """Tables of lengths and categories; texts from the data are escaped."""
        lengths = self._values["lengths"]
        names = ("min", "p50", "p90", "p99", "max")
        rows = [
            [part, *(lengths[part][name] for name in names)]
            for part in ("prompt", "response", "total")
        ]
        empty, same = self._values["empty"], self._values["duplicates"]
        findings = [
            ["rows", self._values["rows"]],
            ["without context", empty["context"]],
            ["duplicates (question)", same["questions"]],
            ["duplicates (whole row)", same["rows"]],
            ["rows with footnote marks", self._values["footnotes"]["rows"]],
            ["rows skipped while reading", sum(one["skipped"] for one in self._values["files"])],
        ]
        if self._values["too_long"] is not None:
            long = self._values["too_long"]
            findings.append([f"rows of {long['max_length']} or more", long["rows"]])
        categories = [
            [one["category"] or "(none)", one["rows"]] for one in self._values["categories"]
        ]
        sources = [
            [one["name"], one["rows"], one["licence"] or "", "; ".join(one["steps"])]
            for one in self._values["sources"]
        ]
        return "".join(
            (
                _table(["set", "rows", "licence", "steps"], sources),
                _table([f"length in {lengths['unit']}", *names], rows),
                _table(["category", "rows"], categories),
                _table(["found", "rows"], findings),
            )
        )

    def plot(self) -> Any:
        """A matplotlib figure: rows by length, and by category.

        Raises
        ------
        ImportError
            Where matplotlib is not installed.
        """
        try:
            figures = importlib.import_module("matplotlib.figure")
        except ImportError as error:
            raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
        figure = figures.Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        lengths = self._values["lengths"]
        bins = lengths["histogram"]
        left.bar([f"{one['from']}-{one['to']}" for one in bins], [one["rows"] for one in bins])
        left.tick_params(axis="x", rotation=45)
        left.set(xlabel=lengths["unit"], ylabel="rows", title="prompt and response together")
        categories = self._values["categories"][:20]
        names = [one["category"] or "(none)" for one in categories]
        right.barh(range(len(names)), [one["rows"] for one in categories])
        # A category is text from the data: dollar signs in it start no formula.
        right.set_yticks(range(len(names)), names, parse_math=False)
        right.invert_yaxis()
        right.set(xlabel="rows", title="categories")
        return figure


def _table(header: list[str], rows: list[list[Any]]) -> str:
    def cells(tag: str, row: list[Any]) -> str:
        return "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in row)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"
