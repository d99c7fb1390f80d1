"""A soak: very many requests over a few connections of HTTP/2, while the server's memory is looked at.

`python tests/benchmarks/soak_http2.py` runs two things, each against a server of its own: many requests over few
connections, and fewer over more with many streams each. It prints the resident memory after warm-up, at the end and
at its largest, and the requests that failed. It exits with 1 if one failed; it says nothing about the memory, which is
for the reader to judge.
"""

# ruff: noqa: T201 (a command prints)

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from servers import VENV, Environment, Failed, Server, require

SERVER = "-m trigi --no-access-log --bind 127.0.0.1:{port} applications:hello"
SAMPLE_INTERVAL = 1.0  # seconds
WARM_UP = 0.1  # of the requests
SLOWEST = 100  # requests per second: at fewer the load generator is ended


def h2load(server: Server, requests: int, connections: int, streams: int) -> tuple[int, list[int]]:
    """Run h2load: how many requests failed, and the server's memory, in bytes, before and in each second."""
    options = ["-n", str(requests), "-c", str(connections), "-m", str(streams)]
    command = ["h2load", *options, f"http://127.0.0.1:{server.port}/"]
    print(" ".join(command))
    samples = [server.memory()]
    deadline = time.monotonic() + requests / SLOWEST
    with tempfile.TemporaryFile("w+") as output, subprocess.Popen(command, stdout=output) as process:
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(SAMPLE_INTERVAL)
                samples.append(server.memory())
        finally:
            process.kill()
        output.seek(0)
        found = re.search(r"requests: .* (\d+) succeeded", output.read())
    if not found:
        raise Failed(f"h2load did not end: {server.said()}")
    return requests - int(found[1]), samples


def run(environment: Environment, requests: int, connections: int, streams: int) -> int:
    """Warm a server up, drive it, and print what happened: the number of failed requests."""
    with Server(environment, SERVER) as server:
        warm_up = round(requests * WARM_UP)
        failed_before, _ = h2load(server, warm_up, connections, streams)
        failed, samples = h2load(server, requests, connections, streams)
    first, last, largest = (f"{size / 1024:.0f} KiB" for size in (samples[0], samples[-1], max(samples)))
    print(f"  memory after {warm_up} requests: {first}, at the end: {last}, at its largest: {largest}")
    print(f"  failed requests: {failed} of {requests}, and {failed_before} of the {warm_up} before them")
    return failed + failed_before


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Send very many requests over HTTP/2, and look at the memory."
    )
    add = parser.add_argument
    add("--requests", metavar="N", type=int, default=1_000_000, help="over 4 connections (default: 1000000)")
    add(
        "--burst",
        metavar="N",
        type=int,
        default=100_000,
        help="over 10 connections of 100 streams (default: 100000)",
    )
    add("--venv", metavar="DIRECTORY", type=Path, default=VENV, help=f"of the servers (default: {VENV})")
    options = parser.parse_args()
    if min(options.requests, options.burst) < 1000:
        parser.error("at least 1000 requests")
    require("h2load")
    environment = Environment(options.venv)
    failed = run(environment, options.requests, connections=4, streams=16)
    failed += run(environment, options.burst, connections=10, streams=100)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
