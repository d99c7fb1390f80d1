"""Benchmarks: the CPU (or memory) that trigi needs for a unit of work, in proportion to what a peer needs.

`python tests/benchmarks/run.py` measures everything; README.md beside it says what, how and why. It needs Linux, wrk
and h2load; the servers are installed into a virtual environment of their own.
"""

# ruff: noqa: T201 (a command prints)

import argparse
import contextlib
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from servers import HERE, VENV, Environment, Failed, Server, allow_open_files, require

WARM_UP = 0.5  # seconds of the same load before what is measured
PATIENCE = 60.0  # seconds beyond its time after which a load generator is killed
BATCH = 4000  # requests of HTTP/2 in one run of h2load: a server may end a connection after 1000, and 8 share them
MOST_SECONDS = 30  # no server's WebSocket ping must be answered in this time

# Connections.
FEW = 4
SOME = 32
MANY = 1000
IDLE = 2000


# Loads. Each drives a server for some seconds, and returns what one unit of work cost it.


def run_tool(command: list[str], seconds: float) -> str:
    """What a load generator prints."""
    try:
        run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds + PATIENCE)
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]} did not end") from None
    if run.returncode:
        raise Failed(f"{command[0]}: {run.stderr.strip()}")
    return run.stdout


def wrk(
    server: Server, seconds: int, path: str = "/", scheme: str = "http", header: str = "accept: */*"
) -> float:
    """Requests of HTTP/1.1 from wrk: microseconds of CPU per request."""

    def requests(seconds):
        url = f"{scheme}://127.0.0.1:{server.port}{path}"
        command = ["wrk", "-t1", f"-c{SOME}", f"-d{seconds}s", "--timeout=30s", "-H", header, url]
        output = run_tool(command, seconds)
        if error := re.search(r"Socket errors: .*|Non-2xx or 3xx responses: .*", output):
            raise Failed(f"wrk: {error[0]}")
        return int(re.search(r"(\d+) requests in", output)[1])

    requests(1)  # wrk takes whole seconds
    before = server.cpu()
    done = requests(seconds)
    return (server.cpu() - before) / done * 1e6


def h2load(server: Server, seconds: int, streams: int = 16) -> float:
    """Requests of HTTP/2 in clear from h2load, in batches: microseconds of CPU per request."""

    def requests(seconds):
        url = f"http://127.0.0.1:{server.port}/"
        command = ["h2load", "-n", str(BATCH), "-c", "8", "-m", str(streams), url]
        deadline = time.monotonic() + seconds
        done = 0
        while done == 0 or time.monotonic() < deadline:
            output = run_tool(command, seconds)
            if f" {BATCH} succeeded, 0 failed" not in output:
                raise Failed("h2load: " + re.search(r"requests: .*", output)[0])
            done += BATCH
        return done

    requests(WARM_UP)
    before = server.cpu()
    done = requests(seconds)
    return (server.cpu() - before) / done * 1e6


@contextlib.contextmanager
def own_load(server: Server, kind: str, connections: int, size: int = 0):
    """Open connections of `load.py`: a function that makes exchanges on them for some seconds and counts them."""
    command = [sys.executable, str(HERE / "load.py"), str(server.port), kind, str(connections), str(size)]
    pipe = subprocess.PIPE

    def answer():
        if line := process.stdout.readline():
            return line.strip()
        raise Failed(f"load.py: {process.stderr.read().strip()}")

    def go(seconds):
        with contextlib.suppress(BrokenPipeError):  # what it said before it ended is the answer
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        return int(answer())

    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            answer()
            yield go
            process.stdin.close()
            process.wait(PATIENCE)
        finally:
            process.kill()


def exchanges(
    server: Server, seconds: int, *, kind: str, connections: int, size: int = 0, units: int = 1
) -> float:
    """Exchanges of `load.py`, on connections that are open before and after: microseconds of CPU per unit."""
    with own_load(server, kind, connections, size) as go:
        go(WARM_UP)
        before = server.cpu()
        done = go(seconds)
        return (server.cpu() - before) / (done * units) * 1e6


def idle_memory(server: Server, _seconds: int, idle: int = IDLE) -> float:
    """Connections that made a request each, and are idle: KiB of memory per connection."""
    with own_load(server, "get", SOME) as go:
        go(WARM_UP)
    before = server.memory()
    with own_load(server, "get", idle):
        return (server.memory() - before) / idle / 1024


# What is measured.

Load = Callable[[Server, int], float]


@dataclass(frozen=True)
class Contestant:
    """A server, and the load that it is measured under.

    Attributes:
        name: What the table says.
        arguments: Of the environment's Python, without the application.
        load: The load.
    """

    name: str
    arguments: str
    load: Load


@dataclass(frozen=True)
class Row:
    """A benchmark.

    Attributes:
        name: For `--only`.
        unit: Of the figures.
        application: In `applications.py`.
        trigi: What is compared.
        peers: What it is compared with, each with the bound of the ratio that is wished for; `inf` for none.
    """

    name: str
    unit: str
    application: str
    trigi: Contestant
    peers: tuple[tuple[Contestant, float], ...]


TRIGI = "-m trigi --no-access-log --bind 127.0.0.1:{port}"
UVICORN = "-m uvicorn --no-access-log --host 127.0.0.1 --port {port}"
UVICORN_FAST = f"{UVICORN} --http httptools --loop uvloop"
HYPERCORN = "-m hypercorn --bind 127.0.0.1:{port}"
HYPERCORN_TRIO = f"{HYPERCORN} --worker-class trio"
KEEP = "75"  # seconds: longer than it takes to open the idle connections


def row(
    name: str, unit: str, application: str, load: Load, *peers: tuple[str, str, float], trigi: str = TRIGI
) -> Row:
    """A row in which all servers are under the same load; a peer is its name, its arguments and the bound."""
    contestants = tuple((Contestant(peer, arguments, load), bound) for peer, arguments, bound in peers)
    return Row(name, unit, application, Contestant("trigi", trigi, load), contestants)


FAST = "uvicorn, httptools, uvloop"
REQUEST, MIB, MESSAGE = "µs/request", "µs/MiB", "µs/message"

ROWS = (
    row(
        "get-h1", REQUEST, "hello", wrk,
        (FAST, UVICORN_FAST, 1.0),
        ("hypercorn, trio", HYPERCORN_TRIO, 0.07),
    ),
    row(
        "floor", REQUEST, "hello", wrk,
        ("no server, trio and a scope", "floor.py --scope --port {port}", math.inf),
        ("no server, trio", "floor.py --port {port}", math.inf),
        (FAST, UVICORN_FAST, math.inf),
    ),
    row(
        "get-h11", REQUEST, "hello", wrk,
        ("uvicorn, h11, asyncio", f"{UVICORN} --http h11 --loop asyncio", 0.75),
        trigi=f"{TRIGI} {{h11}}",
    ),
    Row(
        "get-1000", REQUEST, "hello",
        Contestant("trigi", TRIGI, partial(exchanges, kind="get", connections=MANY)),
        ((Contestant("trigi, 32 connections", TRIGI, partial(exchanges, kind="get", connections=SOME)), 1.25),),
    ),
    row(
        "starlette", REQUEST, "starlette", partial(wrk, path="/items/42"),
        (FAST, UVICORN_FAST, 1.0),
    ),
    row(
        "connect", REQUEST, "hello", partial(wrk, header="connection: close"),
        (FAST, UVICORN_FAST, 1.0),
    ),
    row(
        "download", MIB, "download", partial(exchanges, kind="get", connections=FEW, units=8),
        (FAST, UVICORN_FAST, 1.0),
    ),
    row(
        "upload", MIB, "upload", partial(exchanges, kind="upload", connections=FEW, size=16 << 20, units=16),
        (FAST, UVICORN_FAST, 1.0),
    ),
    row(
        "websocket-64", MESSAGE, "echo", partial(exchanges, kind="websocket", connections=FEW, size=64),
        ("uvicorn, wsproto", f"{UVICORN} --ws wsproto", 0.8),
    ),
    row(
        "websocket-256k", MESSAGE, "echo", partial(exchanges, kind="websocket", connections=FEW, size=256 << 10),
        ("uvicorn, wsproto", f"{UVICORN} --ws wsproto", 0.8),
    ),
    row(
        "http2", REQUEST, "hello", h2load,
        ("hypercorn, asyncio", HYPERCORN, 0.6),
    ),
    row(
        "asyncio", REQUEST, "hello", wrk,
        ("hypercorn, asyncio", HYPERCORN, 1.0),
        ("hypercorn, uvloop", f"{HYPERCORN} --worker-class uvloop", 1.0),
        (FAST, UVICORN_FAST, math.inf),
        trigi=f"{TRIGI} --interface asyncio",
    ),
    row(
        "tls", REQUEST, "hello", partial(wrk, scheme="https"),
        (FAST, f"{UVICORN_FAST} --ssl-certfile {{certificate}} --ssl-keyfile {{key}}", 1.3),
        trigi=f"{TRIGI} --certfile {{certificate}} --keyfile {{key}}",
    ),
    row(
        "memory-idle", "KiB/connection", "hello", idle_memory,
        ("hypercorn, trio", f"{HYPERCORN_TRIO} --keep-alive {KEEP}", 0.6),
        trigi=f"{TRIGI} --keep-alive-timeout {KEEP}",
    ),
)  # fmt: skip


# Measuring, and saying what came out.

HEAD = ("benchmark", "unit", "trigi", "peer", "peer's", "ratio", "of the rounds", "wished for")


def measure(environment: Environment, contestant: Contestant, application: str, seconds: int) -> float:
    """One figure, of a server that is started for it."""
    with Server(environment, f"{contestant.arguments} applications:{application}") as server:
        try:
            return contestant.load(server, seconds)
        except Failed as failure:
            raise Failed(f"{failure} (the server's last line: {server.said()})") from None


def measure_row(
    environment: Environment, row: Row, rounds: int, seconds: int
) -> dict[Contestant, list[float]]:
    """The figures of each contestant, one for each round; none for one that failed once, and the reason is printed."""
    contestants = [row.trigi, *(peer for peer, _ in row.peers)]
    figures = {contestant: [] for contestant in contestants}
    for number in range(1, rounds + 1):
        for contestant in contestants:
            if len(figures[contestant]) < number - 1:
                continue
            print(f"{row.name}: round {number} of {rounds}: {contestant.name}", file=sys.stderr)
            try:
                figures[contestant].append(measure(environment, contestant, row.application, seconds))
            except Failed as failure:
                print(f"{row.name}: {contestant.name}: {failure}", file=sys.stderr)
    return {contestant: all_of if len(all_of) == rounds else [] for contestant, all_of in figures.items()}


def lines(row: Row, figures: dict[Contestant, list[float]]) -> list[tuple[str, ...]]:
    """The lines of the table for a row, one for each peer."""

    def median(values, form):
        return format(statistics.median(values), form) if values else "failed"

    found = []
    for peer, bound in row.peers:
        ours, theirs = figures[row.trigi], figures[peer]
        ratios = [one / other for one, other in zip(ours, theirs, strict=False)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "-"
        figure = median(ours, ".1f"), peer.name, median(theirs, ".1f"), median(ratios, ".2f"), spread
        found.append((row.name, row.unit, *figure, "-" if math.isinf(bound) else f"≤ {bound:g}"))
    return found


def table(lines: list[tuple[str, ...]]) -> str:
    """The lines as a table that can be read as it is, and as Markdown."""
    widths = [max(map(len, column)) for column in zip(HEAD, *lines, strict=True)]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (HEAD, rule, *lines)
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measure what trigi needs for a unit of work, against its peers."
    )
    add = parser.add_argument
    names = [row.name for row in ROWS]
    add(
        "--only",
        metavar="NAME",
        action="append",
        choices=names,
        help="measure this benchmark; may be repeated",
    )
    add("--rounds", metavar="N", type=int, default=5, help="of each benchmark (default: 5)")
    add("--seconds", metavar="N", type=int, default=3, help="for each figure (default: 3)")
    add("--markdown", metavar="FILE", type=Path, help="write the table there, too")
    add("--venv", metavar="DIRECTORY", type=Path, default=VENV, help=f"of the servers (default: {VENV})")
    add("--list", action="store_true", help="list the benchmarks, and measure nothing")
    options = parser.parse_args()
    if options.rounds < 1 or not 1 <= options.seconds <= MOST_SECONDS:
        parser.error(f"at least one round, and between 1 and {MOST_SECONDS} seconds")
    return options


def main() -> int:
    """Run the command: 0 if everything could be measured, whatever came out."""
    options = parse_arguments()
    chosen = [row for row in ROWS if not options.only or row.name in options.only]
    if options.list:
        for row in chosen:
            print(
                f"{row.name:15} {row.unit:15} {row.trigi.name} | {' | '.join(peer.name for peer, _ in row.peers)}"
            )
        return 0
    require("wrk", "h2load")
    allow_open_files()
    environment = Environment(options.venv)
    results = [(row, measure_row(environment, row, options.rounds, options.seconds)) for row in chosen]
    about = f"{datetime.now(UTC):%Y-%m-%d}; {environment.versions()}; {options.rounds} rounds of {options.seconds} s"
    text = f"{about}\n\n{table([line for row, figures in results for line in lines(row, figures)])}\n"
    print(f"\n{text}", end="")
    if options.markdown:
        options.markdown.write_text(text)
    return 0 if all(all(figures.values()) for _, figures in results) else 1


if __name__ == "__main__":
    sys.exit(main())
