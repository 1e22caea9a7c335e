"""Low-rank adapters: their options, and merging them into their base."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from . import _native
from .pipelines import BUNDLED

__all__ = ["LoraConfig", "merge_adapter"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside frozen weights: ``W x + alpha / r * B (A x)``.

    Attributes
    ----------
    r : int
        Rank of A and B, 1 or more.
    alpha : float
        The product is scaled by ``alpha / r``.
    dropout : float
        Share of A's inputs that is dropped while training, in [0, 1).
    targets : sequence of str
        Linear layers that get adapters: a name, or the end of one after a dot. A target that
        matches no layer of the model is an error when training starts.

    Raises
    ------
    InvalidArgumentError
        For a value outside its range.

    Examples
    --------
    >>> LoraConfig(r=4).targets
    ('query_key_value', 'dense')
    """

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: Sequence[str] = ("query_key_value", "dense")

    def __post_init__(self) -> None:
        """Check the ranges at once, not hours later."""
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        object.__setattr__(self, "targets", tuple(self.targets))
        _native.check_lora(self)


def merge_adapter(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    dtype: str = "auto",
) -> None:
    """Write a model with a low-rank adapter merged into its weights, as a directory of its own.

    Parameters
    ----------
    base : str or path
        The model the adapter was made for: a hub id, directory, ``.gguf`` file or
        ``"dolly-nano"``.
    adapter : path
        A directory as PEFT writes it.
    output_dir : path
        The directory to write; transformers and `dolly_rs.pipeline` load it.
    dtype : str
        ``"f32"``, ``"f16"`` or ``"bf16"``; ``"auto"`` is the base's type as near as safetensors
        comes.

    Raises
    ------
    ModelFormatError
        For an adapter that is malformed or does not fit the base.
    UnsupportedError
        For a setting that is not computed here, by its name.
    """
    paths = os.fspath(base), os.fspath(adapter), os.fspath(output_dir)
    _native.merge_adapter(*paths, dtype, str(BUNDLED))
