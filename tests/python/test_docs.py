"""The examples in the docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import dolly_rs

MODULES = [one.name for one in pkgutil.iter_modules(dolly_rs.__path__) if one.name != "__main__"]


@pytest.mark.parametrize("name", ["", *(name for name in MODULES if not name.startswith("_"))])
def test_examples(name: str) -> None:
    module = importlib.import_module(f"dolly_rs.{name}".rstrip("."))
    failed, tried = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert failed == 0
    if name in ("", "pipelines", "streaming", "options", "results", "errors", "files", "training"):
        assert tried > 0
