"""Converting: what is written is the same model, for this library and for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import dolly_rs
import tiny
from conftest import ANSWER

IDS = [tiny.RESPONSE, *tiny.ids_of("Hi, you")]


def test_safetensors_of_the_same_type_is_the_same(chain_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    dolly_rs.convert(chain_dir, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    written = load_file(out / "model.safetensors")
    expected = load_file(chain_dir / "model.safetensors")
    assert set(written) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array)
    assert (out / "tokenizer.json").read_bytes() == (chain_dir / "tokenizer.json").read_bytes()
    assert json.loads((out / "config.json").read_text()) == tiny.CONFIG


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_through_gguf_and_back(chain_dir: Path, tmp_path: Path, dtype: str) -> None:
    gguf, back = tmp_path / "model.gguf", tmp_path / "back"
    dolly_rs.convert(chain_dir, gguf, dtype=dtype)
    dolly_rs.convert(gguf, back, format="safetensors")
    with dolly_rs.pipeline(gguf) as pipe:
        assert pipe.weight_format == dtype
        assert pipe.generate("Say hi.").text == ANSWER
        from_gguf = pipe.logits(IDS)
    with dolly_rs.pipeline(back) as pipe:
        assert pipe.generate("Say hi.").text == ANSWER
        assert pipe.tokenizer.encode("é ### End", special=True)[-1] == tiny.END
        config = dict(pipe.config)
        # Kernels of quantized weights round the activations as well: to 1/127 of the largest.
        np.testing.assert_allclose(pipe.logits(IDS), from_gguf, rtol=0.02, atol=200 / 127)
    with dolly_rs.pipeline(chain_dir) as pipe:
        same = {**dict(pipe.config), "stored_format": config["stored_format"]}
    assert config == same


def test_dtype_of_the_files(chain_dir: Path, tmp_path: Path) -> None:
    dolly_rs.convert(chain_dir, tmp_path, dtype="f16")
    assert load_file(tmp_path / "model.safetensors")["embed_out.weight"].dtype == np.float16
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float16"
    stored = {one.name: one.dtype for one in dolly_rs.tensors(tmp_path)}
    assert stored["embed_out.weight"] == "f16"


def test_refusals(chain_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(dolly_rs.InvalidArgumentError, match="is the source"):
        dolly_rs.convert(chain_dir, chain_dir)
    with pytest.raises(dolly_rs.ModelNotFoundError):
        dolly_rs.convert(tmp_path / "nothing", tmp_path / "out")
    wrong: Any = "onnx"
    with pytest.raises(dolly_rs.InvalidArgumentError, match="gguf or safetensors"):
        dolly_rs.convert(chain_dir, tmp_path / "out", format=wrong)
    with pytest.raises(dolly_rs.DollyIOError) as caught:
        dolly_rs.convert(chain_dir, tmp_path / "no" / "such" / "directory.gguf")
    assert caught.value.errno == 2
    assert "directory.gguf" in str(caught.value.filename)
    assert not (tmp_path / "no").exists()


def test_progress(chain_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    out = tmp_path / "model.gguf"
    dolly_rs.convert(chain_dir, out, progress=lambda *report: seen.append(report))
    weights = sum(a.size for a in tiny.chain_tensors({}).values())
    assert [report[0] for report in seen] == sorted(report[0] for report in seen)
    assert seen[-1][:2] == (weights, weights)


def test_progress_that_raises_stops_the_conversion(chain_dir: Path, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        dolly_rs.convert(chain_dir, tmp_path / "model.gguf", progress=stop)
    assert list(tmp_path.iterdir()) == []
