"""The peers' environments: one for each family, so that none is held back, or fed, by what another needs."""

import json
import os
import shutil
import subprocess
import venv

# What each is made of, options of pip included. A converter that needs PyTorch never shares an environment with an
# engine that would import it without need: the import alone is a third of a gigabyte of peak memory.
ENVIRONMENTS = {
    "openvino": ("openvino-genai", "optimum-intel[openvino]"),
    # From source: the published builds are for a CPU of no particular kind. Pinned: its functions are C structures,
    # where a field that a newer version lacks is set without a word.
    "llama.cpp": ("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),
    "ctranslate2": ("ctranslate2", "numpy"),
    # CTranslate2's own converter runs here.
    "transformers": ("torch", "transformers", "ctranslate2"),
    "plot": ("matplotlib",),
}
BUILD = {"llama.cpp": {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release -DLLAVA_BUILD=OFF"}}


class Unavailable(Exception):
    """Why something cannot be had here; it stands in the results."""


def reason(code, output):
    """What a failed program's exit code and the last telling line of its output say."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
    return f"{f'signal {-code}' if code < 0 else f'exit {code}'}: {told[-1][:300]}"


class Environments:
    """Environments under one folder, made when first asked for."""

    def __init__(self, folder):
        self.folder, self.failed = folder, {}

    def python(self, name):
        """The Python of an environment; `Unavailable` where it cannot be made, told once and remembered."""
        if name in self.failed:
            raise Unavailable(self.failed[name])
        home = self.folder / name
        python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        wanted, made = " ".join(ENVIRONMENTS[name]), home / "made-of.txt"
        if made.exists() and made.read_text() == wanted:
            return python
        try:
            self.make(name, home, python)
        except Unavailable as error:
            self.failed[name] = str(error)
            raise
        made.write_text(wanted)
        return python

    def make(self, name, home, python):
        print(f"installing {name}: {' '.join(ENVIRONMENTS[name])}", flush=True)
        if name == "llama.cpp" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise Unavailable("no C++ compiler, which llama.cpp is built with")
        try:
            # One that is there is of an installation that was stopped: pip goes on with it.
            if not python.exists():
                venv.create(home, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"no environment: {error}") from None
        log = home / "install.log"
        environment = os.environ | BUILD.get(name, {})
        with open(log, "w", encoding="utf-8") as out:
            command = [python, "-m", "pip", "install", *ENVIRONMENTS[name]]
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode:
            raise Unavailable(f"not installed: {reason(done.returncode, log.read_text(encoding='utf-8'))}")

    def versions(self):
        """Every package of every environment there is: `{environment: {package: version}}`."""
        found = {}
        for name in ENVIRONMENTS:
            if (self.folder / name / "made-of.txt").exists():
                command = [self.python(name), "-m", "pip", "list", "--format", "json"]
                listed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                found[name] = {package["name"]: package["version"] for package in listed}
        return found
