"""Run Dolly 2.0, Pythia and every other GPT-NeoX model, in your process.

>>> import dolly_rs
>>> pipe = dolly_rs.pipeline("dolly-nano")
>>> answer = pipe.generate("Name three colours.", seed=7, max_new_tokens=16)
>>> answer.usage.completion_tokens <= 16
True
"""

from ._native import __version__
from .data import Dataset, Report, SetInfo, load_dataset
from .errors import (
    CancelledError,
    ClosedError,
    ContextOverflowError,
    DataFormatError,
    DeadlineError,
    DeviceError,
    DivergedError,
    DollyError,
    DollyIOError,
    DollyMemoryError,
    InternalError,
    InvalidArgumentError,
    ModelFormatError,
    ModelNotFoundError,
    NetworkError,
    UnsupportedError,
)
from .files import TensorInfo, convert, tensors
from .lora import LoraConfig, merge_adapter
from .options import GenerateOptions, Settings
from .pipelines import Pipeline, Tokenizer, pipeline
from .provenance import Lineage, LineageWarning, lineage
from .results import Classification, Generation, Record, Score, Timings, TokenLogprob, Usage
from .runs import TrainingRun
from .streaming import Stream
from .training import evaluate, train, train_text, train_tokenizer

__all__ = [
    "CancelledError",
    "Classification",
    "ClosedError",
    "ContextOverflowError",
    "DataFormatError",
    "Dataset",
    "DeadlineError",
    "DeviceError",
    "DivergedError",
    "DollyError",
    "DollyIOError",
    "DollyMemoryError",
    "GenerateOptions",
    "Generation",
    "InternalError",
    "InvalidArgumentError",
    "Lineage",
    "LineageWarning",
    "LoraConfig",
    "ModelFormatError",
    "ModelNotFoundError",
    "NetworkError",
    "Pipeline",
    "Record",
    "Report",
    "Score",
    "SetInfo",
    "Settings",
    "Stream",
    "TensorInfo",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "TrainingRun",
    "UnsupportedError",
    "Usage",
    "__version__",
    "convert",
    "evaluate",
    "lineage",
    "load_dataset",
    "merge_adapter",
    "pipeline",
    "tensors",
    "train",
    "train_text",
    "train_tokenizer",
]
