"""Adapters: their options, loading a model with one, and merging."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file
from test_cli import dolly

import dolly_rs
import tiny

IDS = [tiny.RESPONSE, *tiny.ids_of("Hi, you")]
#: After "H" comes "o" instead of "i", and on from there.
CHANGED = "Hou!"
RANK, ALPHA = 2, 5.0


def halves() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A and B that make "o" follow "H"."""
    a = np.zeros((RANK, tiny.VOCAB), np.float32)
    b = np.zeros((tiny.VOCAB, RANK), np.float32)
    a[1, tiny.byte_id(ord("H"))] = 1.0
    b[tiny.byte_id(ord("o")), 1] = 3 * tiny.SHARPNESS / (ALPHA / RANK)
    return a, b


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of the chain model's output layer, in PEFT's layout."""
    directory = tmp_path / "adapter"
    directory.mkdir()
    a, b = halves()
    name = "base_model.model.embed_out.lora_"
    tensors = {f"{name}A.weight": a, f"{name}B.weight": b}
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "target_modules": ["embed_out"],
        "base_model_name_or_path": "chain",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def merged_weights() -> npt.NDArray[np.float64]:
    """What the output layer must be, in float64."""
    a, b = halves()
    plain = tiny.chain_tensors(tiny.answer_chain("Hi, you!"))["embed_out.weight"]
    return plain.astype(np.float64) + ALPHA / RANK * (b.astype(np.float64) @ a)


def test_lora_config() -> None:
    parameters = inspect.signature(dolly_rs.LoraConfig).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "r": 8,
        "alpha": 16,
        "dropout": 0.0,
        "targets": ("query_key_value", "dense"),
    }
    assert dolly_rs.LoraConfig(targets="dense").targets == ("dense",)
    assert dolly_rs.LoraConfig(targets=["a", "b"]) == dolly_rs.LoraConfig(targets=("a", "b"))
    assert pickle.loads(pickle.dumps(dolly_rs.LoraConfig(r=3))).r == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", -1),
        ("alpha", 0),
        ("alpha", float("nan")),
        ("alpha", float("inf")),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", float("nan")),
        ("targets", ()),
        ("targets", ("dense", "")),
    ],
)
def test_values_out_of_range_name_the_field(field: str, value: Any) -> None:
    settings: dict[str, Any] = {field: value}
    name = "rank" if (field, value) == ("r", 0) else field
    with pytest.raises(dolly_rs.InvalidArgumentError, match=name):
        dolly_rs.LoraConfig(**settings)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_pipeline_with_an_adapter(chain_dir: Path, adapter: Path, dtype: str) -> None:
    with dolly_rs.pipeline(chain_dir, adapter=adapter, dtype=dtype, threads=1) as pipe:
        assert pipe.generate("Say hi.").text == CHANGED
        if dtype == "f32":
            hidden = np.eye(tiny.VOCAB)[IDS]
            centred = hidden - hidden.mean(axis=1, keepdims=True)
            normed = centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-5)
            np.testing.assert_allclose(
                pipe.logits(IDS), normed @ merged_weights().T, rtol=1e-5, atol=1e-4
            )


def test_pickling_carries_the_adapter(chain_dir: Path, adapter: Path) -> None:
    with dolly_rs.pipeline(chain_dir, adapter=adapter, threads=1) as pipe:
        copy = pickle.dumps(pipe)
    with pickle.loads(copy) as again:
        assert again.generate("Say hi.").text == CHANGED


def test_merge(chain_dir: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    dolly_rs.merge_adapter(chain_dir, adapter, out)
    written = load_file(out / "model.safetensors")
    np.testing.assert_allclose(written["embed_out.weight"], merged_weights(), rtol=1e-6)
    with dolly_rs.pipeline(out) as pipe:
        assert pipe.generate("Say hi.").text == CHANGED
    parents = dolly_rs.lineage(out).nodes[0]["record"]["parents"]
    assert [one["role"] for one in parents] == ["base", "adapter"]


@pytest.mark.parametrize("name", ["model.gguf", "directory"])
def test_convert_with_an_adapter(chain_dir: Path, adapter: Path, tmp_path: Path, name: str) -> None:
    done = dolly("convert", chain_dir, tmp_path / name, "--adapter", adapter)
    assert done.returncode == 0, done.stderr
    with dolly_rs.pipeline(tmp_path / name) as pipe:
        assert pipe.generate("Say hi.").text == CHANGED


def test_command_line(chain_dir: Path, adapter: Path, tmp_path: Path) -> None:
    done = dolly("generate", "a", "--model", chain_dir, "--adapter", adapter)
    assert (done.returncode, done.stdout) == (0, CHANGED + "\n")
    done = dolly("generate", "a", "--model", chain_dir, "--adapter", tmp_path)
    assert done.returncode == 1
    assert "adapter_config.json" in done.stderr


def test_refusals(chain_dir: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(dolly_rs.ModelNotFoundError):
        dolly_rs.pipeline(chain_dir, adapter=tmp_path / "none")
    with pytest.raises(dolly_rs.ModelFormatError, match="embed_out"):
        dolly_rs.pipeline("dolly-nano", adapter=adapter)
    with pytest.raises(dolly_rs.InvalidArgumentError, match="is the source"):
        dolly_rs.merge_adapter(chain_dir, adapter, chain_dir)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(dolly_rs.UnsupportedError, match="use_dora"):
        dolly_rs.pipeline(chain_dir, adapter=adapter)
