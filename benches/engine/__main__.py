"""The whole engine beside its peers, in turn on this machine.

    python benches/engine --scratch FOLDER --out FOLDER [--shapes 160m 410m 3b] [--widths f32 bf16 int8 int4]

Makes random checkpoints of the shapes, an environment for each peer (OpenVINO GenAI, llama.cpp built for this CPU,
CTranslate2, transformers) and each peer's own conversions under `--scratch`, builds the Rust bench `engine`, runs
every measure of every engine `--rounds` times in turn, each in a process of its own, and writes medians, spreads and
ratios to the best peer of the same width as `engine.json`, `engine.md` and `engine.svg` under `--out`. What cannot be
installed, converted or run here is listed with the reason.

Fair by construction: the same prompt ids, never met before, so that no cache of prefixes helps; greedy; end tokens
ignored and counts checked; threads set by each engine's own option; the wall clock around each engine's own call; one
uncounted run in each process, and for `load` one uncounted process. What a number includes stands at each engine in
`peers.py`. Linux only: memory and other programs' share of the CPU are read from /proc.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import time
from pathlib import Path

import report
from engines import MEASURES, NOT_OFFERED, OURS, READS_WEIGHTS, WIDTHS, cpu_flags, variants
from environments import ENVIRONMENTS, Environments, Unavailable, reason
from models import OFFLINE, SHAPES, Models, warm, weight_bits

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp")


def bench_binary():
    """Builds the Rust bench; the path of its executable."""
    command = ["cargo", "bench", "-p", "dolly-core", "--bench", "engine", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [json.loads(line) for line in lines if '"executable"' in line]
    return next(m["executable"] for m in found if m.get("executable") and m["target"]["name"] == "engine")


def machine():
    cpu = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu[0].split(":")[1].strip() if cpu else platform.machine(), "cores": os.cpu_count(),
            "flags": [flag for flag in FLAGS if flag in cpu_flags()], "memory_gb": memory / 1e9,
            "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}


def busy_seconds():
    """CPU time of everything on the machine, and what a hypervisor took."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def child_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(args):
    """What repeats the run elsewhere."""
    asked = {key: value for key, value in vars(args).items() if key not in ("scratch", "out", "keep", "limit")}
    words = [[f"--{key}", *map(str, value if isinstance(value, list | tuple) else [value])] for key, value in asked.items()]
    return shlex.join(["python", "benches/engine", "--scratch", "FOLDER", "--out", "FOLDER", *sum(words, [])])


class Bench:
    """Runs processes; remembers what was found and what could not be."""

    def __init__(self, args, ours, environments):
        self.args, self.ours, self.environments = args, ours, environments
        self.load, self.others = [], []

    def command(self, variant, model, measure):
        numbers = [str(self.args.threads), str(self.args.repeats)]
        if variant.engine == OURS:
            measure = "load_packed" if variant.options.get("packed") else measure
            return [self.ours, model, variant.options["format"], measure, *numbers]
        options = {k: v.format(model=model) if isinstance(v, str) else v for k, v in variant.options.items()}
        peers = Path(__file__).with_name("peers.py")
        python = self.environments.python(variant.engine)
        return [python, peers, variant.engine, model, measure, *numbers, json.dumps(options)]

    def process(self, variant, model, measure):
        """One process: its result with the load average before it and the cores others took during it."""
        command = self.command(variant, model, measure)
        average, busy, mine, start = os.getloadavg()[0], busy_seconds(), child_seconds(), time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=self.args.limit,
                                  env=os.environ | OFFLINE | variant.environment)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"stopped after {self.args.limit} s") from None
        elapsed = time.perf_counter() - start
        if done.returncode:
            raise Unavailable(reason(done.returncode, done.stderr or done.stdout))
        others = max(0.0, busy_seconds() - busy - (child_seconds() - mine)) / elapsed
        self.load.append(average)
        self.others.append(others)
        result = json.loads(done.stdout.splitlines()[-1])
        return result | {"load_average": average, "others_cores": others}

    def limits(self, what="limits"):
        """What the machine gives now: bandwidth, and with `limits` each kind of arithmetic."""
        done = subprocess.run([self.ours, what, str(self.args.threads)], check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    def quiet(self):
        return {"load": report.summary(self.load or [0.0]), "others": report.summary(self.others or [0.0])}


class Part:
    """One shape at one width: its lines as they fill."""

    def __init__(self, bench, models, width):
        self.bench, self.models, self.width = bench, models, width
        chosen = {OURS, *bench.args.engines}
        missing = [(family, why) for (at, family), why in NOT_OFFERED.items() if at == width]
        self.unavailable = {family: why for family, why in missing if family in chosen}
        self.lines, self.found_limits = [], []
        for variant in variants(width):
            if variant.engine in chosen:
                self.add(variant)

    def add(self, variant):
        try:
            if variant.engine != OURS:
                self.bench.environments.python(variant.engine)
            model = self.models.get(variant.model)
        except Unavailable as error:
            self.unavailable[variant.label] = str(error)
            return
        bits = variant.bits or weight_bits(model, weight_bits(self.models.base, 1) / 16)
        self.lines.append({"label": variant.label, "engine": variant.engine, "mapped": variant.mapped, "bits": bits,
                           "measures": {}, "failed": {}, "runs": [], "variant": variant, "model": model})

    def run(self):
        self.found_limits.append(self.bench.limits())
        measures = [measure for measure in MEASURES if measure in self.bench.args.measures]
        for number in range(self.bench.args.rounds):
            for measure in measures:
                for line in self.lines:
                    if measure in line["variant"].measures and measure not in line["failed"]:
                        self.one(line, measure, number)
            self.found_limits.append(self.bench.limits())

    def measured(self, line, measure):
        """One process; around one that waits for memory, what memory gave just before and after it."""
        if measure not in READS_WEIGHTS:
            return self.bench.process(line["variant"], line["model"], measure)
        before = self.bench.limits("bandwidth")["read_gb_s"]
        result = self.bench.process(line["variant"], line["model"], measure)
        return result | {"read_gb_s": [before, self.bench.limits("bandwidth")["read_gb_s"]]}

    def one(self, line, measure, number):
        try:
            if measure == "load":
                warm(line["model"])
            if measure == "load" and number == 0:
                # Uncounted: what an engine keeps from an earlier start is there afterwards.
                self.bench.process(line["variant"], line["model"], measure)
            result = self.measured(line, measure)
        except Unavailable as error:
            line["failed"][measure] = str(error)
            self.unavailable[f"{line['label']}, {measure}"] = str(error)
            print(f"{self.models.shape} {self.width} {line['label']}, {measure}: {error}", flush=True)
            return
        line["runs"].append({"measure": measure, "round": number, **result})
        value = statistics.median(result["samples"])
        print(f"{self.models.shape:5} {self.width:5} {measure:8} {line['label']:45} {report.shown(value):>8}  "
              f"peak {result['peak_mb']:7,.0f} MB  load average {result['load_average']:.1f}, "
              f"others {result['others_cores']:.2f} cores", flush=True)

    def results(self):
        """Medians over rounds of each process's median."""
        for line in self.lines:
            for measure in MEASURES:
                runs = [run for run in line["runs"] if run["measure"] == measure]
                if runs:
                    line["measures"][measure] = report.summary([statistics.median(run["samples"]) for run in runs])
                if runs and measure == "load":
                    line["measures"]["peak"] = report.summary([run["peak_mb"] for run in runs])
        lines = [{k: v for k, v in line.items() if k not in ("variant", "model")} for line in self.lines]
        return {"shape": self.models.shape, "width": self.width, "lines": lines, "unavailable": self.unavailable,
                "limits": self.found_limits, "shares": report.shares(lines, self.models.shape, self.width, self.found_limits),
                "bandwidth_shares": report.bandwidth_shares(lines, self.models.shape),
                "ratios": report.ratios(lines), "ratios_unmapped": report.ratios(lines, mapped_too=False)}


def arguments():
    parser = argparse.ArgumentParser(prog="python benches/engine", description=__doc__.split("\n")[0])
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for models and environments, kept")
    parser.add_argument("--out", type=Path, required=True, help="a folder for engine.json, engine.md and engine.svg")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["160m", "410m", "3b"])
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    peers = [name for name in ENVIRONMENTS if name != "plot"]
    parser.add_argument("--engines", nargs="*", choices=peers, default=peers, help="the peers; ours always runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="samples of one process")
    parser.add_argument("--limit", type=int, default=1800, help="seconds until a process is given up")
    parser.add_argument("--keep", action="store_true", help="keep converted models (3b: about 90 GB)")
    return parser.parse_args()


def main():
    args = arguments()
    args.scratch, args.out = args.scratch.resolve(), args.out.resolve()
    environments = Environments(args.scratch / "env")
    bench = Bench(args, bench_binary(), environments)
    revision = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True,
                              check=False).stdout.strip()
    results = {"command": command(args), "revision": revision, "machine": machine(),
               "threads": args.threads, "rounds": args.rounds, "repeats": args.repeats, "parts": []}
    for shape in args.shapes:
        models = Models(args.scratch / "models", shape, bench.ours, environments, args.threads)
        for width in args.widths:
            part = Part(bench, models, width)
            part.run()
            results["parts"].append(part.results())
            results |= {"quiet": bench.quiet(), "packages": environments.versions()}
            # After every part: a run that is stopped leaves what it has.
            report.write(results, args.out, environments)
            if not args.keep:
                models.discard_all(also_base=False)
        if not args.keep:
            models.discard_all(also_base=True)
    print(report.markdown(results))


if __name__ == "__main__":
    main()
