"""The command as a user runs it: what it prints, and its exit status. Serving is tested elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trigi import __version__
from trigi.cli import main


@pytest.fixture
def trigi(tmp_path):
    """Run `python -m trigi` in an empty directory, with modules that the test writes there."""

    def run(
        line: str, modules: dict[str, str] | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        for name, text in (modules or {}).items():
            (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIGI_")}
        return subprocess.run(
            [sys.executable, "-m", "trigi", *line.split()],
            cwd=tmp_path,
            env=clean | environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def test_version(trigi):
    assert outcome(trigi("--version")) == (0, f"trigi {__version__}\n", "")


def test_help(trigi):
    done = trigi("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: trigi [options] MODULE:ATTRIBUTE\n")


@pytest.mark.parametrize(
    ("line", "environ", "error"),
    [
        ("", {}, "no application is given: expected MODULE:ATTRIBUTE, as in trigi main:app"),
        ("--prot 80 main:app", {}, "--prot: there is no such option; did you mean --port?"),
        ("main:app --port x", {}, "--port: 'x' is not a whole number from 0 to 65535"),
        ("main:app", {"TRIGI_PORT": "x"}, "TRIGI_PORT: 'x' is not a whole number from 0 to 65535"),
        ("main:app --config no.toml", {}, "--config: cannot read 'no.toml': No such file or directory"),
        ("main:app --keyfile k", {}, "--keyfile: needs a certfile"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(trigi, line, environ, error):
    assert outcome(trigi(line, **environ)) == (2, "", f"trigi: error: {error}\n")


def test_main_reads_the_process_s_own_command_line_and_environment(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trigi", "main:app", "--port", "x"])
    assert main() == 2
    monkeypatch.setattr(sys, "argv", ["trigi", "main:app"])
    monkeypatch.setenv("TRIGI_LINT", "x")
    assert main() == 2
    assert capsys.readouterr().err.splitlines() == [
        "trigi: error: --port: 'x' is not a whole number from 0 to 65535",
        "trigi: error: TRIGI_LINT: 'x' is not true or false",
    ]


def test_main_takes_a_command_line(capsys):
    assert main(["--zzz"]) == 2
    assert capsys.readouterr().err == "trigi: error: --zzz: there is no such option; trigi --help lists all\n"


def test_an_application_that_is_not_there_is_one_line_and_status_1(trigi):
    done = trigi("missing_module:app --port 0")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("trigi: error: ")
    assert "missing_module" in done.stderr


def test_an_application_whose_module_raises_shows_its_traceback_then_one_line(trigi):
    done = trigi("broken:app --port 0", {"broken": "def fail():\n    return 1 / 0\n\nfail()\n"})
    *traceback, line = done.stderr.splitlines()
    assert done.returncode == 1
    assert traceback[0] == "Traceback (most recent call last):"
    assert any('broken.py", line 2, in fail' in shown for shown in traceback)
    assert traceback[-1] == "ZeroDivisionError: division by zero"
    assert line.startswith("trigi: error: ")
    assert "broken" in line


FAILING = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database\\nat all"})
"""


def test_a_failed_startup_ends_with_one_line_and_status_1(trigi):
    done = trigi("failing:app --port 0", {"failing": FAILING})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "trigi: error: lifespan startup failed: no database at all"
    assert "Traceback" not in done.stderr


IDLE = """
async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
"""


def test_an_address_that_cannot_be_bound_ends_with_one_line_and_status_1(trigi):
    done = trigi("idle:app --uds missing/directory/socket", {"idle": IDLE})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("trigi: error: ")
    assert "missing/directory/socket" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_before_serving_is_silent_and_status_130(trigi):
    assert outcome(trigi("interrupted:app --port 0", {"interrupted": "raise KeyboardInterrupt"})) == (
        130,
        "",
        "",
    )
