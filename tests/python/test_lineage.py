"""Where a result came from: the chain, its warnings, its export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dolly_rs
from dolly_rs.provenance import LineageWarning

MANIFEST = "dolly_provenance.json"
RECORD = {
    "name": "mine",
    "kind": "model",
    "licence": None,
    "created": "2026-01-02T03:04:05Z",
    "tool": {"name": "dolly-core", "version": "0.1.0"},
    "parents": [
        {
            "role": "base",
            "part": {"name": "base", "source": None, "licence": "Apache-2.0", "files": []},
            "manifest": None,
        }
    ],
    "tokenizer": None,
    "data": [
        {
            "name": "rows",
            "source": None,
            "licence": "CC-BY-NC-SA-4.0",
            "sha256": "0" * 64,
            "rows": 3,
            "steps": ["dropped <2> rows"],
        }
    ],
    "options": {"epochs": 2},
    "metrics": {"eval_loss": 1.5},
    "files": [{"path": "model.safetensors", "bytes": 1, "sha256": "0" * 64}],
}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A directory with a manifest whose weights are not there."""
    manifest = {"format": 1, "record": RECORD, "ancestors": []}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    return tmp_path


def test_everything_is_read_back(result: Path) -> None:
    lineage = dolly_rs.lineage(result)
    assert lineage.to_dict()["nodes"] == [{"depth": 0, "role": None, "record": RECORD}]
    assert lineage.nodes[0]["record"] == RECORD
    kinds = {(one.kind, one.subject) for one in lineage.warnings}
    assert kinds == {
        ("missing_file", "model.safetensors"),
        ("restricts_commercial_use", "rows"),
        ("share_alike", "rows"),
    }
    assert all(isinstance(one, LineageWarning) and one.message for one in lineage.warnings)


def test_it_prints_as_a_tree(result: Path) -> None:
    text = repr(dolly_rs.lineage(result))
    assert text.splitlines()[:4] == [
        "mine (no licence stated; dolly-core 0.1.0)",
        "  data rows (CC-BY-NC-SA-4.0; 3 rows)",
        "    dropped <2> rows",
        "  base base (Apache-2.0)",
    ]
    assert "warning: rows: licence CC-BY-NC-SA-4.0 excludes or restricts" in text
    html = dolly_rs.lineage(result)._repr_html_()
    assert "dropped &lt;2&gt; rows" in html


def test_a_changed_copy_leaves_the_lineage_as_it_is(result: Path) -> None:
    lineage = dolly_rs.lineage(result)
    lineage.to_dict()["nodes"].clear()
    assert len(lineage.nodes) == 1


def test_cyclonedx(result: Path) -> None:
    bom = dolly_rs.lineage(result).cyclonedx()
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert bom["metadata"]["timestamp"] == RECORD["created"]
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["pedigree"]["ancestors"][0]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert [one["type"] for one in bom["components"]] == ["data"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(dolly_rs.ModelNotFoundError, match=MANIFEST):
        dolly_rs.lineage(tmp_path)
    with pytest.raises(dolly_rs.DollyIOError):
        dolly_rs.lineage(tmp_path / "none")
    (tmp_path / MANIFEST).write_text('{"format": 9}')
    with pytest.raises(dolly_rs.ModelFormatError, match="format"):
        dolly_rs.lineage(tmp_path)
