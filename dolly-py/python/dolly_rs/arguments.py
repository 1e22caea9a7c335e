"""Arguments of more than one command of the command line."""

from __future__ import annotations

import argparse

__all__ = ["column", "size"]


def column(text: str) -> tuple[str, str]:
    """FIELD=NAME: the column that holds a field."""
    field, found, name = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected FIELD=NAME")
    return field, name


def size(text: str) -> float:
    """A number of rows, or a fraction of them."""
    try:
        return int(text)
    except ValueError:
        return float(text)
