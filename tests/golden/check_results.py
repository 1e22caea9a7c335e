"""Loads what `cargo test -p dolly-core --test provenance` wrote into transformers, PEFT and CycloneDX's validator.

    python tests/golden/check_results.py target/tmp/results

Needs torch, transformers, peft, safetensors, cyclonedx-python-lib[json-validation]. For every directory with a
`golden.safetensors`: the model must load without a warning about its weights, its tokenizer must read and write
text, and its logits must equal the golden ones. Every manifest's bill of materials (`bom.json`) must be valid
CycloneDX 1.6. What is not installed is skipped, and said.
"""

import argparse
import importlib.util
import json
from pathlib import Path


def check_model(directory):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    golden = load_file(directory / "golden.safetensors")
    stored = json.loads((directory / "config.json").read_text())["dtype"]
    bound = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[stored]
    error = total = 0.0
    for name in sorted(name for name in golden if name.startswith("input_ids")):
        with torch.no_grad():
            logits = model.eval()(golden[name][None]).logits[0]
        expected = golden[name.replace("input_ids", "logits")]
        error, total = error + (logits - expected).square().sum().item(), total + expected.square().sum().item()
    error = (error / total) ** 0.5
    assert error <= bound, (directory, error)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.decode(tokenizer("Hello, world").input_ids) == "Hello, world"
    assert tokenizer.eos_token == "<|endoftext|>"
    assert GenerationConfig.from_pretrained(directory).max_new_tokens == 256
    print(f"{directory.name}: {stored}, logits off by {error:.1e} of their size")


def check_bom(file):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(file.read_text())
    assert error is None, error
    print(f"{file.parent.name}/{file.name}: valid CycloneDX 1.6")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path)
    results = parser.parse_args().results
    for needed, pattern, check in (("transformers", "golden.safetensors", lambda file: check_model(file.parent)),
                                   ("cyclonedx", "bom.json", check_bom)):
        if importlib.util.find_spec(needed) is None:
            print(f"skipped {pattern}: {needed} is not installed")
            continue
        files = sorted(results.rglob(pattern))
        assert files, f"no {pattern} below {results}"
        for file in files:
            check(file)


if __name__ == "__main__":
    main()
