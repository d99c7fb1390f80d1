"""Costs that grow with use: CPU per request, and memory, against the number of connections and of streams.

`python tests/benchmarks/growth.py` measures trigi, and draws what it finds: `docs/explanation/growth.svg`. It needs
what `run.py` needs, and matplotlib (`pip install -e '.[benchmark]'`).
"""

# ruff: noqa: T201 (a command says what it does)

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from run import TRIGI, Load, exchanges, h2load, idle_memory
from servers import CHECKOUT, VENV, Environment, Server, allow_open_files, require

PICTURE = CHECKOUT / "docs" / "explanation" / "growth.svg"
CONNECTIONS = (1, 10, 32, 100, 320, 1000, 2000, 5000)
STREAMS = (1, 3, 10, 32, 100)
IDLE = (100, 320, 1000, 2000, 5000)


def measure(environment: Environment, load: Load, rounds: int, seconds: int) -> float:
    """The median of some rounds, each of a server that is started for it."""
    figures = []
    for _ in range(rounds):
        with Server(environment, f"{TRIGI} --keep-alive-timeout 75 applications:hello") as server:
            figures.append(load(server, seconds))
    return statistics.median(figures)


def draw(panels: list[tuple[str, str, dict[int, float]]], picture: Path):
    """One panel for each curve: what is counted, in what, and the figures."""
    mpl.rcParams.update({"svg.hashsalt": "trigi", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.2), layout="constrained")
    for axis, (counted, unit, figures) in zip(axes, panels, strict=True):
        axis.plot(figures.keys(), figures.values(), marker="o", color="#2a6f97")
        axis.set(xscale="log", xlabel=counted, title=unit, ylim=(0, max(figures.values()) * 1.2))
        axis.set_xticks(list(figures), [f"{number:,}" for number in figures], rotation=45)
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
    figure.savefig(picture, metadata={"Date": None})


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure how trigi's costs grow with use, and draw it.")
    parser.add_argument("--rounds", type=int, default=3, help="of each figure (default: 3)")
    parser.add_argument("--seconds", type=int, default=2, help="for each figure (default: 2)")
    parser.add_argument("--picture", type=Path, default=PICTURE, help=f"where to draw (default: {PICTURE})")
    options = parser.parse_args()
    require("wrk", "h2load")
    allow_open_files(2 * CONNECTIONS[-1])
    environment = Environment(VENV)
    panels = [
        (
            "connections, HTTP/1.1",
            "µs of CPU per request",
            {n: partial(exchanges, kind="get", connections=n) for n in CONNECTIONS},
        ),
        (
            "streams of each of 8 connections, HTTP/2",
            "µs of CPU per request",
            {n: partial(h2load, streams=n) for n in STREAMS},
        ),
        ("idle connections", "KiB per connection", {n: partial(idle_memory, idle=n) for n in IDLE}),
    ]
    found = []
    for counted, unit, loads in panels:
        figures = {}
        for number, load in loads.items():
            figures[number] = measure(environment, load, options.rounds, options.seconds)
            print(f"{number:6} {counted}: {figures[number]:8.1f} {unit}", flush=True)
        found.append((counted, unit, figures))
    draw(found, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
