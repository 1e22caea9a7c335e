"""From measured values to medians, ratios, a table and a plot."""

import json
import statistics
import subprocess
from pathlib import Path

from engines import LOWER_IS_BETTER, MEASURES, OURS, PEAK
from models import WORK

COLUMNS = MEASURES | {"peak": PEAK}


def summary(values):
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "values": values}


def ratios(lines, mapped_too=True):
    """Per measure, the best of ours over the best peer of the same shape and width, with that peer's label.

    `lines` are those of one shape and width: label, engine, mapped, and per measure a summary.
    """
    found = {}
    for measure in COLUMNS:
        medians = [(line["measures"][measure]["median"], line) for line in lines if measure in line["measures"]]
        ours = [value for value, line in medians if line["engine"] == OURS]
        peers = [(value, line["label"]) for value, line in medians
                 if line["engine"] != OURS and (mapped_too or not line["mapped"])]
        if ours and peers:
            best = min if measure in LOWER_IS_BETTER else max
            value, label = best(peers)
            found[measure] = {"ratio": best(ours) / value, "peer": label}
    return found


def arithmetic(width, limits):
    """The arithmetic a width is multiplied in where the CPU has it."""
    wanted = {"f32": "f32", "bf16": "bf16"}.get(width, "int8")
    return wanted if limits[0].get(wanted) else "f32"


def bandwidth_shares(lines, shape):
    """Per engine that decoded: weights read a second over what memory gave just before and after, median of processes."""
    weights = sum(WORK[shape])
    found = {}
    for line in lines:
        runs = [run for run in line["runs"] if "read_gb_s" in run]
        if runs and line["bits"]:
            read = [statistics.median(run["samples"]) * weights * line["bits"] / 8e9 for run in runs]
            found[line["label"]] = summary([r / statistics.mean(run["read_gb_s"]) for r, run in zip(read, runs, strict=True)])
    return found


def shares(lines, shape, width, limits):
    """Ours as a share of what the machine gave in the same run: bandwidth in decoding, arithmetic in a prompt.

    Bandwidth is that around each process, arithmetic the median of the limits; products of a width whose own instruction the CPU lacks are held against the peak of
    fused multiply-adds in f32.
    """
    ours = next((line for line in lines if line["engine"] == OURS), None)
    layers, _ = WORK[shape]
    found = {}
    decoding = bandwidth_shares([ours] if ours else [], shape)
    if decoding:
        found["decode"] = decoding[ours["label"]]["median"]
    if ours and "prefill" in ours["measures"]:
        done = ours["measures"]["prefill"]["median"] * 2e-9 * layers
        found["prefill"] = done / statistics.median(limit[arithmetic(width, limits)] for limit in limits)
    return found


def shares_line(part):
    """The shares in a sentence."""
    def both(key):
        values = [limit[key] for limit in part["limits"]]
        return f"{min(values):.0f} to {max(values):.0f}"

    what = {"decode": "decoding reads weights at {:.0%} of the bandwidth",
            "prefill": "a prompt's products run at {:.0%} of the peak"}
    told = [what[key].format(share) for key, share in part["shares"].items()]
    peak = arithmetic(part["width"], part["limits"])
    limits = f"Reading {both('read_gb_s')} GB/s, products in {peak} {both(peak)} GOP/s meanwhile"
    return f"{limits}; here {', and '.join(told)}.\n" if told else f"{limits}.\n"


def shown(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cell(line, measure):
    if measure not in line["measures"]:
        return "not run" if measure in line["failed"] else ""
    found = line["measures"][measure]
    if found["low"] == found["high"]:
        return shown(found["median"])
    return f"{shown(found['median'])} ({shown(found['low'])} to {shown(found['high'])})"


def section(part):
    """The table of one shape and width in Markdown."""
    shape, width, lines, unavailable = (part[key] for key in ("shape", "width", "lines", "unavailable"))
    out = [f"### {shape}, {width}", "", f"| | bits/weight | {' | '.join(COLUMNS.values())} |",
           "|" + "---|" * (len(COLUMNS) + 2)]
    for line in lines:
        bits = "" if line["bits"] is None else f"{line['bits']:.2f}"
        out.append(f"| {line['label']} | {bits} | " + " | ".join(cell(line, measure) for measure in COLUMNS) + " |")
    best = ratios(lines)
    cells = [f"**{best[m]['ratio']:.2f}** ({best[m]['peer']})" if m in best else "" for m in COLUMNS]
    out += [f"| ratio to the best peer | | {' | '.join(cells)} |", ""]
    unmapped = ratios(lines, mapped_too=False).get("peak")
    if unmapped and unmapped["peer"] != best["peak"]["peer"]:
        out += [f"Peak memory beside the best peer that does not map its weights ({unmapped['peer']}): "
                f"{unmapped['ratio']:.2f}.", ""]
    if part["limits"]:
        out.append(shares_line(part))
    if part["bandwidth_shares"]:
        told = [f"{label} {found['median']:.0%} ({found['low']:.0%} to {found['high']:.0%})"
                for label, found in part["bandwidth_shares"].items()]
        out.append(f"Decoding's weights a second as a share of the bandwidth around each process: {', '.join(told)}.\n")
    out += [f"- {what}: {why}" for what, why in sorted(unavailable.items())]
    return "\n".join(out) + "\n"


def markdown(results):
    machine, quiet = results["machine"], results["quiet"]
    head = [
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags'])}), {machine['memory_gb']:.0f} GB, "
        f"{results['threads']} threads, {results['rounds']} rounds; medians (lowest to highest round).",
        "",
        f"Load average before the processes: {quiet['load']['median']:.1f} ({quiet['load']['low']:.1f} to "
        f"{quiet['load']['high']:.1f}), this bench's own threads included; cores that others took while they ran: "
        f"{quiet['others']['median']:.2f} ({quiet['others']['low']:.2f} to {quiet['others']['high']:.2f}).",
        "",
    ]
    return "\n".join(head) + "\n" + "\n".join(
        section(part) for part in results["parts"])


def write(results, out, environments):
    """`engine.json`, `engine.md`, and `engine.svg` where matplotlib is to be had."""
    from environments import Unavailable

    out.mkdir(parents=True, exist_ok=True)
    (out / "engine.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / "engine.md").write_text(markdown(results), encoding="utf-8")
    try:
        python = environments.python("plot")
    except Unavailable as error:
        print(f"no plot: {error}", flush=True)
        return
    plot = Path(__file__).with_name("plot.py")
    subprocess.run([python, plot, out / "engine.json", out / "engine.svg"], check=True)
