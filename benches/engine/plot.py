"""The plot of a run: `PYTHON plot.py engine.json engine.svg`, PYTHON one that has matplotlib."""

import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

PANELS = {"prefill": "prefill, 512 tokens", "decode": "decode", "batch8": "decode, batch 8"}
ENGINES = {"dolly-rs": "#d1495b", "openvino": "#00798c", "llama.cpp": "#edae49", "ctranslate2": "#66a182",
           "transformers": "#8d96a3"}


def best(part, engine, measure):
    """The best of an engine's settings: median, lowest and highest round."""
    found = [line["measures"][measure] for line in part["lines"]
             if line["engine"] == engine and measure in line["measures"]]
    return max(found, key=lambda it: it["median"], default=None)


def panel(axes, parts, measure):
    ticks = []
    for i, part in enumerate(parts):
        here = [(engine, best(part, engine, measure)) for engine in ENGINES]
        here = [(engine, it) for engine, it in here if it]
        width = 0.8 / max(len(here), 1)
        for n, (engine, it) in enumerate(here):
            errors = [[it["median"] - it["low"]], [it["high"] - it["median"]]]
            axes.bar(i - 0.4 + (n + 0.5) * width, it["median"], width, color=ENGINES[engine], label=engine,
                     yerr=errors, error_kw={"linewidth": 0.8})
        ticks.append(part["width"])
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_title(f"{parts[0]['shape']}: {PANELS[measure]}", fontsize=9)
    axes.set_ylabel("tokens/s", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def main(source, target):
    with open(source, encoding="utf-8") as file:
        results = json.load(file)
    plt.rcParams["svg.hashsalt"] = "engine"
    shapes = list(dict.fromkeys(part["shape"] for part in results["parts"]))
    figure, grid = plt.subplots(len(shapes), len(PANELS), figsize=(9, 2.4 * len(shapes) + 0.6), squeeze=False)
    for row, shape in zip(grid, shapes):
        for axes, measure in zip(row, PANELS):
            panel(axes, [part for part in results["parts"] if part["shape"] == shape], measure)
    handles = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(ENGINES), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
