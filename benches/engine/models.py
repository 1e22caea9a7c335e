"""The models each engine loads: one random checkpoint a shape, converted by each engine's own means."""

import os
import shutil
import subprocess
import sys

from environments import Unavailable, reason

# Parameters, for the room a model needs on disk before it is made.
SHAPES = {"tiny": 13e6, "160m": 162e6, "410m": 405e6, "3b": 2776e6}
# Weights of the layers' products and of the output layer: what a step of decoding reads and what a prompt multiplies.
WORK = {"tiny": (2 * 12 * 128**2, 50280 * 128), "160m": (12 * 12 * 768**2, 50280 * 768),
        "410m": (24 * 12 * 1024**2, 50280 * 1024), "3b": (32 * 12 * 2560**2, 50280 * 2560)}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

OPENVINO = {
    "f32": ("--weight-format", "fp32"),
    "f16": ("--weight-format", "fp16"),
    # NNCF's defaults: a scale and a zero point for each output channel.
    "int8": ("--weight-format", "int8"),
    # Groups of 128 are the exporter's default, groups of 32 what Q4_0 has; embedding and head are int8 with both.
    "int4-g128": ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"),
    "int4-g32": ("--weight-format", "int4", "--sym", "--group-size", "32", "--ratio", "1.0"),
}
# transformers 5 moved `rotary_pct` and renamed `embed_out`; the converter still reads them where they were.
CTRANSLATE2 = """
import sys, transformers
from ctranslate2.converters import TransformersConverter
transformers.GPTNeoXConfig.rotary_pct = 0.25
if not hasattr(transformers.GPTNeoXForCausalLM, "embed_out"):
    transformers.GPTNeoXForCausalLM.embed_out = property(lambda model: model._modules.get("embed_out") or model.lm_head)
TransformersConverter(sys.argv[1], low_cpu_mem_usage=True).convert(sys.argv[3], quantization=sys.argv[2], force=True)
"""
LLAMA_QUANTIZE = """
import ctypes, sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.nthread, params.ftype = int(sys.argv[3]), llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""
# Bytes a weight, above what any of these has with its scales.
BYTES = {"f32": 4.0, "float32": 4.0, "f16": 2.0, "bf16": 2.0, "bfloat16": 2.0, "q8_0": 1.1, "int8": 1.3}


class Models:
    """The models of one shape under a folder, made when first asked for."""

    def __init__(self, folder, shape, ours, environments, threads):
        self.folder, self.shape, self.ours = folder / shape, shape, ours
        self.environments, self.threads, self.failed = environments, threads, {}
        self.base = self.folder / "hf"

    def get(self, key):
        """The model `key`, such as `gguf:q8_0`; `Unavailable` with the reason where it cannot be made."""
        if key in self.failed:
            raise Unavailable(self.failed[key])
        try:
            return self.make(key)
        except Unavailable as error:
            self.failed[key] = str(error)
            raise

    def make(self, key):
        family, _, kind = key.partition(":")
        if family == "hf":
            self.produce(self.base, 2.0, lambda out: [self.ours, "make", self.shape, out])
            return self.base
        base = self.get("hf")
        name = f"{kind}.gguf" if family == "gguf" else f"{family}-{kind}"
        command = {"gguf": self.gguf, "openvino": self.openvino, "ctranslate2": self.ctranslate2}[family](base, kind)
        return self.produce(self.folder / name, BYTES.get(kind, 0.8), command)

    def gguf(self, base, kind):
        """Ours and llama.cpp's: one file for both, written by this library; Q4_K_M by llama.cpp from ours."""
        if kind != "q4_k_m":
            return lambda out: [self.ours, "convert", base, out, kind]
        python, source = self.environments.python("llama.cpp"), self.get("gguf:f16")
        return lambda out: [python, "-c", LLAMA_QUANTIZE, source, out, str(self.threads)]

    def openvino(self, base, kind):
        python = self.environments.python("openvino")
        return lambda out: [python, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", base,
                            "--task", "text-generation-with-past", "--library", "transformers", *OPENVINO[kind], out]

    def ctranslate2(self, base, kind):
        python = self.environments.python("transformers")
        return lambda out: [python, "-c", CTRANSLATE2, base, kind, out]

    def produce(self, path, bytes_a_weight, command):
        """Runs a converter towards a hidden name, so that what stands under `path` is whole."""
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        needed, free = SHAPES[self.shape] * bytes_a_weight, shutil.disk_usage(path.parent).free
        if free < 1.05 * needed:
            raise Unavailable(f"{path.name} needs {needed / 1e9:.1f} GB on disk, {free / 1e9:.1f} GB are free")
        out = path.with_name(f".making-{path.name}")
        self.discard(out)
        print(f"making {self.shape} {path.name}", flush=True)
        done = subprocess.run(command(out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                              env=os.environ | OFFLINE)
        if done.returncode or not out.exists():
            print(done.stdout[-3000:], file=sys.stderr)
            self.discard(out)
            raise Unavailable(f"{path.name} not made: {reason(done.returncode, done.stdout)}")
        out.rename(path)
        return path

    def discard_all(self, also_base):
        """Frees the disk for the next width or shape."""
        for path in self.folder.glob("*"):
            if also_base or path != self.base:
                self.discard(path)

    @staticmethod
    def discard(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def files(path):
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def warm(path):
    """Reads a model once, so that the next reader finds it in memory."""
    for file in files(path):
        with open(file, "rb") as opened:
            while opened.read(16 << 20):
                pass


def weight_bits(path, parameters):
    """Bits a weight as stored: the size of the weight files (GGUF: vocabulary included) over the parameters."""
    names = ("model.safetensors", "model.bin", "openvino_model.bin")
    sizes = [file.stat().st_size for file in files(path) if file.suffix == ".gguf" or file.name in names]
    return 8 * sum(sizes) / parameters
