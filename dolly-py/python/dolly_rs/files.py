"""Model files without a pipeline: what they hold, and in other formats."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from . import _native
from .pipelines import BUNDLED, Progress
from .progress import reporter

__all__ = ["TensorInfo", "convert", "tensors"]


class TensorInfo(NamedTuple):
    """One tensor of a model's files: its name, shape, stored type and bytes."""

    name: str
    shape: list[int]
    dtype: str
    bytes: int


def tensors(model: str | os.PathLike[str]) -> list[TensorInfo]:
    """The tensors of a model, by name; reads headers only.

    Examples
    --------
    >>> import dolly_rs
    >>> dolly_rs.tensors("dolly-nano")[0].name
    'embed_out.weight'
    """
    return [TensorInfo(*one) for one in _native.tensors(os.fspath(model), str(BUNDLED))]


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    format: Literal["gguf", "safetensors"] | None = None,
    dtype: str = "auto",
    adapter: str | os.PathLike[str] | None = None,
    progress: bool | Progress | None = None,
) -> None:
    """Write a model in another file format, or with weights of another type.

    Each file appears whole or not at all. Ctrl-C stops it and leaves no part of a file.

    Parameters
    ----------
    source : str or path
        A hub id, directory, ``.gguf`` file or ``"dolly-nano"``.
    destination : str or path
        The ``.gguf`` file, or the directory of a safetensors model.
    format : {"gguf", "safetensors"}, optional
        By the name of the destination unless given.
    dtype : str
        Type of the matrices; ``"auto"`` keeps the stored one as near as the format comes.
    adapter : path, optional
        A low-rank adapter, as PEFT writes it, to merge into the weights that are written.
    progress : bool or callable, optional
        As of `pipeline`: a callable gets ``(written, total, tensor)`` after every tensor.

    Examples
    --------
    >>> import dolly_rs, tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     dolly_rs.convert("dolly-nano", f"{directory}/nano.gguf", dtype="q8_0")
    ...     dolly_rs.pipeline(f"{directory}/nano.gguf").weight_format
    'q8_0'
    """
    path = os.fspath(destination)
    chosen = format or ("gguf" if path.endswith(".gguf") else "safetensors")
    merged = None if adapter is None else os.fspath(adapter)
    with reporter(progress, f"Writing {path}") as reports:
        report = reports.tensor
        _native.convert(os.fspath(source), path, (chosen, dtype), str(BUNDLED), merged, report)
