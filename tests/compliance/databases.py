"""Databases of the tests' own: a block in which one runs, on a port that was free, and its URL."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.compliance.conftest import need

START_SECONDS = 30.0
"""What a database may take to start, and to stop."""


@contextmanager
def running_postgresql() -> Iterator[str]:
    """A PostgreSQL, which lets everybody in who is on this machine."""
    # Debian keeps the programs of each version beside the path
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    initdb = shutil.which("initdb", path=path)
    if initdb is None:
        need("initdb")
    bin_folder = Path(initdb).parent
    # not in pytest's own folder, into which only its owner may look: PostgreSQL does not run as root
    folder = Path(tempfile.mkdtemp(prefix="trigi-postgresql-"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    as_user |= {"env": os.environ | {"LC_ALL": "C.UTF-8"}, "cwd": folder}
    data, port = folder / "data", free_port()
    try:
        subprocess.run(
            [bin_folder / "initdb", "-D", data, "-U", "trigi", "--auth=trust", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            **as_user,
        )
        with (folder / "log").open("w") as log:
            settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
            options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
            command = [bin_folder / "postgres", "-D", data, "-p", str(port), *options]
            process = subprocess.Popen(command, stdout=log, stderr=log, **as_user)

        def is_ready() -> bool:
            # it listens some time before it lets anybody in
            asked = [bin_folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            return subprocess.run(asked, check=False).returncode == 0

        try:
            wait_for(is_ready, process)
            yield f"postgresql://trigi@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown
            process.wait(START_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """A Redis, in an empty folder."""
    need("redis-server")
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def is_ready() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    try:
        wait_for(is_ready, process)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline, "it did not become ready"
        time.sleep(0.02)
