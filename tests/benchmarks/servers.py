"""The virtual environment of the benchmarks, and server processes: started, looked at, and ended."""

# ruff: noqa: T201 (a command says what it does)

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
VENV = Path(".venv-bench")
PEERS = (
    "uvicorn",
    "httptools",
    "uvloop",
    "wsproto",
    "websockets",
    "hypercorn[trio]",
    "h2",
    "starlette",
    "trustme",
)
EXTRAS = ("fast",)  # of trigi, where it has them
TOOLS = {"wrk": "wrk", "h2load": "nghttp2-client"}  # and the Debian packages they are in
STARTUP = 20.0  # seconds until a server must accept connections
SHUTDOWN = 5.0  # seconds until a server that was told to end is killed
TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = resource.getpagesize()
OPEN_FILES = 8192  # for some thousands of connections: what is asked for if nobody says how many
FOREIGN = ("TRIGI_", "UVICORN_", "HYPERCORN_", "PYTHON", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS")


class Failed(Exception):
    """Something could not be measured, for the reason given."""


def require(*tools: str):
    """Exit if a load generator is not installed, and say how to install it."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        packages = " ".join(TOOLS[tool] for tool in missing)
        raise SystemExit(
            f"{' and '.join(missing)} not found. On Debian and Ubuntu: apt-get install {packages}"
        )


def allow_open_files(wanted: int = OPEN_FILES):
    """Raise the soft limit of open files, for this process and those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Environment:
    """A virtual environment that has the peers, and this checkout of trigi as users install it: compiled.

    It is made once, and again when what it must have has changed, or trigi. `COMPILE_TRIGI=0` measures trigi as it is
    where there is no compiler.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.python = str(self.folder / "bin" / "python")
        pyproject = (CHECKOUT / "pyproject.toml").read_text()
        extras = [
            name for name in EXTRAS if name in tomllib.loads(pyproject)["project"]["optional-dependencies"]
        ]
        trigi = f"{CHECKOUT}[{','.join(extras)}]" if extras else str(CHECKOUT)
        self._install(trigi, stamp="\n".join((sys.version, trigi, *PEERS, pyproject, _source())))
        certificate, key = self._certificate()
        h11 = (
            "--http=h11" if "--http {" in self.run("-m", "trigi", "--help") else ""
        )  # else it is the only parser
        self._names = {"certificate": certificate, "key": key, "h11": h11}

    def _install(self, trigi: str, stamp: str):
        stamp_file = self.folder / "installed"
        if stamp_file.exists() and stamp_file.read_text() == stamp:
            return
        print(f"Installing trigi and its peers into {self.folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        pip = [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "uninstall", "--yes", "trigi"], check=True, stderr=subprocess.DEVNULL)
        subprocess.run([*pip, "install", *PEERS, trigi], check=True)
        stamp_file.write_text(stamp)

    def run(self, *arguments: str) -> str:
        """What the environment's Python prints."""
        command = [self.python, *arguments]
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=clean_environment()
        ).stdout

    def versions(self) -> str:
        """The versions of what is compared, in one line."""
        names = (
            "trigi",
            "trio",
            "uvicorn",
            "httptools",
            "uvloop",
            "h11",
            "wsproto",
            "hypercorn",
            "h2",
            "starlette",
        )
        code = f"import importlib.metadata as m; print(', '.join(f'{{n}} {{m.version(n)}}' for n in {names}))"
        return f"Python {sys.version.split()[0]}, " + self.run("-c", code).strip()

    def command(self, arguments: str, port: int) -> list[str]:
        """The environment's Python with these arguments, in which `{port}` and the other names are filled in."""
        names = {"port": port, **self._names}
        return [self.python, *filter(None, (argument.format_map(names) for argument in arguments.split()))]

    def _certificate(self) -> tuple[Path, Path]:
        """The files of a certificate for 127.0.0.1 and of its key; no client needs to trust it."""
        folder = self.folder / "certificate"
        if not folder.exists():
            folder.mkdir()
            self.run(
                "-m", "trustme", "--quiet", "--dir", str(folder), "--identities", "127.0.0.1", "localhost"
            )
        return folder / "server.pem", folder / "server.key"


def _source() -> str:
    """What tells one state of trigi from another, and how it is installed."""
    digest = hashlib.sha256()
    for path in (CHECKOUT / "hatch_build.py", *sorted((CHECKOUT / "trigi").rglob("*.py"))):
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {os.environ.get('COMPILE_TRIGI', '')}"


def clean_environment() -> dict[str, str]:
    """The environment without what would change a server's defaults."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server: its port, and what its processes used.

    Args:
        environment: Where it is installed.
        arguments: Of Python, as `Environment.command` takes them.
    """

    def __init__(self, environment: Environment, arguments: str):
        self.port = free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._command = environment.command(arguments, self.port)

    def __enter__(self):
        environment = clean_environment()
        self._process = subprocess.Popen(
            self._command,
            cwd=HERE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self._wait_until_it_accepts()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        processes = self.processes()
        self._process.terminate()
        try:
            self._process.wait(SHUTDOWN)
        except subprocess.TimeoutExpired:
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _wait_until_it_accepts(self):
        deadline = time.monotonic() + STARTUP
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise Failed(f"the server did not start: {self.said()}")

    def said(self) -> str:
        """The last line that the server wrote."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"

    def processes(self) -> dict[int, list[str]]:
        """The process and its descendants, each with the fields of `/proc/PID/stat` from the third on."""
        seen = {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                seen[int(file.parent.name)] = file.read_text().rpartition(")")[2].split()
        tree = {}
        waiting = [self._process.pid] if self._process.pid in seen else []
        while waiting:
            pid = waiting.pop()
            tree[pid] = seen[pid]
            waiting += [child for child, fields in seen.items() if int(fields[1]) == pid]
        return tree

    def cpu(self) -> float:
        """Seconds of CPU, user and system, of the processes and of their children that have ended."""
        return sum(int(ticks) for fields in self.processes().values() for ticks in fields[11:15]) * TICK

    def memory(self) -> int:
        """Bytes of resident memory of the processes."""
        return sum(int(fields[21]) for fields in self.processes().values()) * PAGE
