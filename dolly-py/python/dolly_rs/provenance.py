"""Where a model came from: `lineage` reads the chain of manifests back."""

from __future__ import annotations

import html
import json
import os
from typing import Any, NamedTuple

from . import _native

__all__ = ["Lineage", "LineageWarning", "lineage"]


class LineageWarning(NamedTuple):
    """Something to know before a model is passed on.

    ``kind`` is one of ``changed_file missing_file broken_chain restricts_commercial_use
    share_alike no_derivatives unknown_licence no_licence``; ``subject`` the file, model or data
    set; ``message`` the whole of it in words.
    """

    kind: str
    subject: str
    message: str


class Lineage:
    """A result and everything it was made from; made by `dolly_rs.lineage`.

    Its text is a tree, the result first, warnings last.
    """

    def __init__(self, text: str, content: str, bom: str) -> None:
        self._text = text.rstrip("\n")
        self._content: dict[str, Any] = json.loads(content)
        self._bom = bom

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The result and its ancestors: ``depth``, ``role``, ``record``."""
        nodes: list[dict[str, Any]] = self._content["nodes"]
        return nodes

    @property
    def warnings(self) -> list[LineageWarning]:
        """Changed files, and what the licences ask."""
        return [LineageWarning(**one) for one in self._content["warnings"]]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        copy: dict[str, Any] = json.loads(json.dumps(self._content))
        return copy

    def cyclonedx(self) -> dict[str, Any]:
        """The chain as a CycloneDX 1.6 bill of materials for machine learning (ML-BOM)."""
        bom: dict[str, Any] = json.loads(self._bom)
        return bom

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self._text)}</pre>"


def lineage(directory: str | os.PathLike[str]) -> Lineage:
    """Read where a trained or merged model came from, and hold its files against their hashes.

    Parameters
    ----------
    directory : path
        A directory that holds ``dolly_provenance.json``, as every result of this library does.

    Raises
    ------
    ModelNotFoundError
        Where there is no manifest.
    ModelFormatError
        For a manifest that is malformed.

    Examples
    --------
    >>> import dolly_rs
    >>> dolly_rs.lineage("no-such-directory")
    Traceback (most recent call last):
    dolly_rs.errors.DollyIOError: no such directory
    """
    return Lineage(*_native.lineage(os.fspath(directory)))
