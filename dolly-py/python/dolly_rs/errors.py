"""Exceptions: one base, and children that are also the built-in a caller would expect.

>>> import dolly_rs
>>> issubclass(dolly_rs.ModelNotFoundError, FileNotFoundError)
True
"""

from __future__ import annotations

__all__ = [
    "CancelledError",
    "ClosedError",
    "ContextOverflowError",
    "DataFormatError",
    "DeadlineError",
    "DeviceError",
    "DivergedError",
    "DollyError",
    "DollyIOError",
    "DollyMemoryError",
    "InternalError",
    "InvalidArgumentError",
    "ModelFormatError",
    "ModelNotFoundError",
    "NetworkError",
    "UnsupportedError",
]


class DollyError(Exception):
    """Base of every error that this library raises of its own."""


class InvalidArgumentError(DollyError, ValueError):
    """An option or input outside its range; the message names it, its value and the range."""


class ContextOverflowError(DollyError, ValueError):
    """The prompt does not fit the context.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the rendered prompt.
    context_length : int
        Tokens that the context holds, prompt and answer together.
    """

    prompt_tokens: int
    context_length: int

    def __init__(self, message: str, *, prompt_tokens: int = 0, context_length: int = 0) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class ModelNotFoundError(DollyError, FileNotFoundError):
    """A model id or path that leads to no model; the message says where was looked."""


class ModelFormatError(DollyError, ValueError):
    """A model file that is malformed; the message names file, field or tensor."""


class DataFormatError(ModelFormatError):
    """A row of a data set that cannot be used.

    Attributes
    ----------
    file : str
        The file, or the name of a set that came from none.
    line : int
        The line the row starts at, counted from 1; in a Parquet file the row itself.
    field : str or None
        The column or key, where the fault lies in one.
    reason : str
        What is wrong.
    """

    file: str
    line: int
    field: str | None
    reason: str

    def __init__(
        self,
        message: str,
        *,
        file: str = "",
        line: int = 0,
        field: str | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.file = file
        self.line = line
        self.field = field
        self.reason = reason


class DollyIOError(DollyError, OSError):
    """The operating system refused to open, read or write a file.

    ``errno``, ``strerror`` and ``filename`` are set as for any ``OSError``.
    """


class DollyMemoryError(DollyError, MemoryError):
    """The plan exceeds the memory limit, or the allocator refused a request of known size."""


class DeviceError(DollyError, RuntimeError):
    """The device is not there, or this build cannot use it."""


class UnsupportedError(DollyError, NotImplementedError):
    """Something the format allows and this library does not do."""


class NetworkError(DollyError, ConnectionError):
    """A download that failed."""


class DivergedError(DollyError, ArithmeticError):
    """Training met a number that is not finite; the last checkpoint before it is kept.

    Attributes
    ----------
    step : int
        The step, from 1, whose numbers failed; nothing of it was applied.
    """

    step: int

    def __init__(self, message: str, *, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class CancelledError(DollyError):
    """The call was cancelled before it could give a result."""


class DeadlineError(DollyError, TimeoutError):
    """The deadline passed before the call could give a result."""


class ClosedError(DollyError, RuntimeError):
    """The pipeline was closed."""


class InternalError(DollyError):
    """A defect of this library, reported instead of a crash."""
