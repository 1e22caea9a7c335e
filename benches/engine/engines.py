"""Who runs at which weight width, each at its best, and who cannot.

Where two settings of a peer win in different measures, both run, and a measure's best peer is the better of them.
"""

from dataclasses import dataclass, field
from pathlib import Path

MEASURES = {
    "prefill": "prefill 512, tokens/s",
    "first": "first token of 64, ms",
    "decode": "decode 128 after 64, tokens/s",
    "batch8": "batch 8, tokens/s",
    "load": "load to first token, s",
}
# Peak memory is read in the process of `load`: load, a first token, a short answer.
PEAK = "peak memory, MB"
# Waits for memory: a step reads every weight. Where the machine is shared, memory's speed changes by the second.
READS_WEIGHTS = {"decode"}
LOWER_IS_BETTER = {"first", "load", "peak"}
WIDTHS = ("f32", "bf16", "int8", "int4")
OURS = "dolly-rs"
NAMES = {"f32": "f32", "bf16": "bf16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
# Why a family is missing at a width, before anything is tried.
NOT_OFFERED = {
    ("int8", "transformers"): "PyTorch's products have no 8-bit weights without another library",
    ("int4", "transformers"): "PyTorch's products have no 4-bit weights without another library",
    ("int4", "ctranslate2"): "no 4-bit weights on a CPU",
}


@dataclass(frozen=True)
class Variant:
    """A setting of an engine: what runs as one line of the table."""

    engine: str
    label: str
    model: str
    options: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    measures: tuple = tuple(MEASURES)
    # Weights are used where the file is mapped: the peak counts pages that the system may take back.
    mapped: bool = False
    # As held in memory, where a file of another width is converted while it is loaded.
    bits: float | None = None


def cpu_flags():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return set(next((line.split(":")[1] for line in lines if line.startswith(("flags", "Features"))), "").split())


def openvino(kind, note, **options):
    cached = options | {"CACHE_DIR": "{model}/compiled"}
    return [
        Variant("openvino", f"OpenVINO {note}", f"openvino:{kind}", options),
        # The counterpart of a file of packed weights.
        Variant("openvino", f"OpenVINO {note}, compiled model cached", f"openvino:{kind}", cached, measures=("load",)),
    ]


def llama(kind, repacks=False):
    label, model = f"llama.cpp {kind.upper()}", f"gguf:{kind}"
    found = [
        Variant("llama.cpp", label, model, mapped=True),
        Variant("llama.cpp", f"{label}, not mapped", model, {"mmap": False}, measures=("load",)),
    ]
    if repacks:
        found.append(Variant("llama.cpp", f"{label}, not repacked", model, {"repack": False}, mapped=True))
    return found


def ctranslate2(kind, flags):
    found = [Variant("ctranslate2", f"CTranslate2 {kind}", f"ctranslate2:{kind}", {"compute_type": kind})]
    if "avx512f" in flags:
        # It takes AVX2 on CPUs it does not know.
        forced = {"CT2_FORCE_CPU_ISA": "AVX512"}
        found.append(Variant("ctranslate2", f"CTranslate2 {kind}, AVX512 forced", f"ctranslate2:{kind}",
                             {"compute_type": kind}, forced))
    return found


def transformers(dtype, bits):
    return [Variant("transformers", f"transformers {dtype}", "hf", {"dtype": dtype}, bits=bits)]


def ours(kind):
    return [
        Variant(OURS, f"{OURS} {NAMES[kind]}", f"gguf:{kind}", {"format": kind}),
        Variant(OURS, f"{OURS} {NAMES[kind]}, packed weights kept", f"gguf:{kind}", {"format": kind, "packed": True},
                measures=("load",)),
    ]


def variants(width):
    """Everything that runs at a width, ours first."""
    flags = cpu_flags()
    if width == "f32":
        return [*ours("f32"), *openvino("f32", "f32", INFERENCE_PRECISION_HINT="f32"),
                *llama("f32"), *ctranslate2("float32", flags), *transformers("float32", 32.0)]
    if width == "bf16":
        found = [*ours("bf16"), *openvino("f16", "f16 file")]
        if flags & {"avx512_bf16", "amx_bf16"}:
            found += openvino("f16", "f16 file, f32 arithmetic", INFERENCE_PRECISION_HINT="f32")
        return [*found, *llama("bf16"), *llama("f16"), *ctranslate2("bfloat16", flags), *transformers("bfloat16", 16.0)]
    if width == "int8":
        return [*ours("q8_0"), *openvino("int8", "int8"),
                *llama("q8_0", repacks=True), *ctranslate2("int8", flags)]
    return [*ours("q4_0"), *openvino("int4-g128", "int4, groups of 128"), *openvino("int4-g32", "int4, groups of 32"),
            *llama("q4_0", repacks=True), *llama("q4_k_m", repacks=True)]
