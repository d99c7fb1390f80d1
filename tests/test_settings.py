"""The command line, the environment, the file: what each gives, which wins, the line for each mistake."""

from __future__ import annotations

import dataclasses
import re
from math import inf
from pathlib import Path

import pytest

from trigi._settings import SETTINGS, long_options, read_settings, settings_reference, variable
from trigi.config import Config
from trigi.exceptions import ConfigError

FLAGS = [name for name, setting in SETTINGS.items() if setting.kind == "flag"]


@pytest.fixture
def toml(tmp_path, monkeypatch):
    """Write `trigi.toml` into an empty current directory, and name it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("trigi.toml").write_text(text, encoding="utf-8")
        return "trigi.toml"

    return write


def config(line: str = "", **environ: str) -> Config:
    target, config = read_settings(["main:app", *line.split()], environ)
    assert target == "main:app"
    return config


def refusal(line: str = "main:app", **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_settings(line.split(), environ)
    return str(caught.value)


# What each source can say


def test_nothing_said_is_the_defaults():
    assert read_settings(["main:app"], {"PATH": "/bin", "trigi_port": "x"}) == ("main:app", Config())


SAMPLES = {
    "flag": ("false", "false", False),
    "seconds": ("1.5", "1.5", 1.5),
    "whole": ("7", "7", 7),
    "size": ("64KiB", "'64KiB'", 65536),
    "mode": ("660", "'660'", 0o660),
    "text": ("/x", "'/x'", "/x"),
    "texts": ("a:1", "['a:1']", ("a:1",)),
}
"""A value for each kind of setting, as text, in TOML, and as it is meant."""


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
def test_each_setting_can_be_given_in_each_source(name, toml):
    setting = SETTINGS[name]
    last = setting.choices[-1] if setting.choices else ""
    text, in_toml, value = SAMPLES.get(setting.kind, (last, f"'{last}'", last))
    tls = {} if setting.group != "TLS" else {"certfile": "c", "ca_certs": "a", "verify_mode": "required"}
    expected = Config(**{**tls, name: value})
    around = {variable(other): said for other, said in tls.items() if other != name}
    option = f"--no-{name.replace('_', '-')}" if setting.kind == "flag" else f"{long_options(name)[0]} {text}"

    assert config(option, **around) == expected
    assert config("", **around, **{variable(name): text}) == expected
    assert config(f"--config {toml(f'{name} = {in_toml}')}", **around) == expected


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_can_be_given_either_way(name):
    yes, no = long_options(name)
    assert getattr(config(yes), name) is True
    assert getattr(config(no), name) is False
    assert getattr(config(f"{no} {yes}"), name) is True


@pytest.mark.parametrize("text", ["1", "true", "yes", "on", "TRUE", "0", "false", "no", "off", "Off"])
def test_a_flag_in_the_environment(text):
    assert config(TRIGI_LINT=text).lint is (text.lower() in {"1", "true", "yes", "on"})


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("64KiB", 65536), ("64 KiB", 65536), ("2MiB", 2 << 20), ("1GiB", 1 << 30), ("inf", inf)],
)
def test_sizes(text, size, toml):
    assert read_settings(["main:app", "--body-size-limit", text], {})[1].body_size_limit == size
    assert config(TRIGI_BODY_SIZE_LIMIT=text).body_size_limit == size
    in_toml = text if text in {"1", "inf"} else f"'{text}'"
    assert config(f"--config {toml(f'body_size_limit = {in_toml}')}").body_size_limit == size


def test_inf_in_every_source(toml):
    assert config("--header-timeout inf --connection-limit inf").header_timeout == inf
    assert config(TRIGI_HEADER_TIMEOUT="inf", TRIGI_HEADER_COUNT_LIMIT="inf").header_count_limit == inf
    file = toml("header_timeout = inf\nheader_count_limit = inf")
    assert config(f"--config {file}") == Config(header_timeout=inf, header_count_limit=inf)


def test_a_mode_is_octal_text_or_a_number(toml):
    assert config("--uds-mode 0o600").uds_mode == 0o600
    assert config(f"--config {toml('uds_mode = 0o640')}").uds_mode == 0o640


def test_an_option_given_twice_counts_once():
    assert config("--port 1 --port 2 --header-timeout 1 --header-timeout=2") == Config(
        bind="127.0.0.1:2", header_timeout=2
    )


def test_an_empty_root_path_can_be_given():
    assert config(TRIGI_ROOT_PATH="").root_path == ""


def test_the_target_can_come_from_each_source(toml):
    file = toml("app = 'file:app'")
    assert read_settings(["--config", file], {})[0] == "file:app"
    assert read_settings(["--config", file], {"TRIGI_APP": "env:app"})[0] == "env:app"
    assert read_settings(["--config", file, "line:app"], {"TRIGI_APP": "env:app"})[0] == "line:app"
    assert read_settings(["--port", "1", "line:app", "--lint"], {})[0] == "line:app"


def test_the_file_can_be_named_by_the_environment(toml):
    Path("other.toml").write_text("backlog = 2", encoding="utf-8")
    file = toml("backlog = 1")
    assert config(TRIGI_CONFIG=file).backlog == 1
    assert config("--config other.toml", TRIGI_CONFIG=file).backlog == 2


# Which wins


def test_the_command_line_wins_over_the_environment():
    assert config("--backlog 3", TRIGI_BACKLOG="2").backlog == 3
    assert config("--no-lint", TRIGI_LINT="1").lint is False


def test_the_command_line_wins_over_the_file(toml):
    assert config(f"--backlog 3 --config {toml('backlog = 1')}").backlog == 3


def test_the_environment_wins_over_the_file(toml):
    assert config(f"--config {toml('backlog = 1')}", TRIGI_BACKLOG="2").backlog == 2


def test_each_wins_over_the_default_and_they_mix(toml):
    file = toml("backlog = 1\nthread_limit = 1\nheader_timeout = 1")
    mixed = config(f"--config {file} --header-timeout 3", TRIGI_THREAD_LIMIT="2", TRIGI_HEADER_TIMEOUT="2")
    assert mixed == Config(backlog=1, thread_limit=2, header_timeout=3)


@pytest.mark.parametrize(
    ("line", "bind"),
    [
        ("", ["127.0.0.1:8000"]),
        ("--host 0.0.0.0", ["0.0.0.0:8000"]),
        ("--port 80", ["127.0.0.1:80"]),
        ("--port 0", ["127.0.0.1:0"]),
        ("--host ::1 --port 80", ["[::1]:80"]),
        ("--host [::1]", ["[::1]:8000"]),
        ("--host localhost", ["localhost:8000"]),
        ("--uds /run/app.sock", ["unix:/run/app.sock"]),
        ("--fd 3", ["fd://3"]),
        ("--fd 0", ["fd://0"]),
        ("-b a:1", ["a:1"]),
        ("-b a:1 --bind b:2 -b=c:3", ["a:1", "b:2", "c:3"]),
        ("--fd 3 --uds /s --port 80 -b a:1", ["a:1", "127.0.0.1:80", "unix:/s", "fd://3"]),
    ],
)
def test_shorthands_and_bind_add_up_in_one_source(line, bind, toml):
    assert config(line) == Config(bind=bind)


@pytest.mark.parametrize("text", ["a:1,b:2", "a:1 b:2", " a:1, b:2\n", "a:1,,b:2,"])
def test_binds_in_the_environment(text):
    assert config(TRIGI_BIND=text).bind == ("a:1", "b:2")


def test_shorthands_in_the_environment_and_the_file(toml):
    assert config(TRIGI_HOST="h", TRIGI_PORT="1", TRIGI_UDS="/s", TRIGI_FD="3", TRIGI_BIND="a:1").bind == (
        "a:1",
        "h:1",
        "unix:/s",
        "fd://3",
    )
    file = toml("host = 'h'\nport = 1\nuds = '/s'\nfd = 3\nbind = 'a:1'")
    assert config(f"--config {file}").bind == ("a:1", "h:1", "unix:/s", "fd://3")


@pytest.mark.parametrize(
    ("file", "environ", "line", "bind"),
    [
        # a host and a port meet, from whatever two sources
        ("", {"TRIGI_PORT": "9"}, "--host h", ["h:9"]),
        ("", {"TRIGI_HOST": "h"}, "--port 9", ["h:9"]),
        ("port = 9", {}, "--host h", ["h:9"]),
        ("port = 9", {"TRIGI_HOST": "h"}, "", ["h:9"]),
        ("host = 'h'\nport = 9", {"TRIGI_PORT": "8"}, "--port 7", ["h:7"]),
        # everything else that a lower source says is replaced
        ("", {"TRIGI_PORT": "9"}, "-b a:1", ["a:1"]),
        ("", {"TRIGI_BIND": "a:1"}, "--port 9", ["127.0.0.1:9"]),
        ("bind = 'f:1'", {"TRIGI_BIND": "e:1"}, "", ["e:1"]),
        ("bind = 'f:1'", {"TRIGI_BIND": "e:1"}, "-b l:1", ["l:1"]),
        ("bind = 'f:1'\nport = 9", {}, "--host h", ["h:9"]),
        ("uds = '/s'\nfd = 3", {"TRIGI_PORT": "9"}, "", ["127.0.0.1:9"]),
        ("uds = '/s'", {}, "--fd 3", ["fd://3"]),
        ("port = 9", {}, "--uds /s", ["unix:/s"]),
        # also for a host that a source in between has replaced
        ("host = 'h'", {"TRIGI_BIND": "e:1"}, "--port 9", ["127.0.0.1:9"]),
        # and a source that says nothing about binding replaces nothing
        ("bind = 'f:1'", {"TRIGI_BACKLOG": "2048"}, "--backlog 2048", ["f:1"]),
    ],
)
def test_binding_across_sources(file, environ, line, bind, toml):
    assert config(f"--config {toml(file)} {line}", **environ) == Config(bind=bind)


# Mistakes: the exact line

NO_PORT = "is not a whole number from 0 to 65535"
NO_TIME = "is not a number of seconds, at least 0, or inf"
NO_LIST = "is not a list of one or more strings that are not empty"
NO_MODE = "is not an octal file mode from 0 to 777 (0o777 where a number is written)"
NO_TEXT = "is not a string that is not empty"


def test_no_target():
    assert refusal("") == "no application is given: expected MODULE:ATTRIBUTE, as in trigi main:app"


def test_an_empty_target():
    with pytest.raises(ConfigError, match=r"^MODULE:ATTRIBUTE: '' is not a string that is not empty$"):
        read_settings([""], {})
    assert refusal("", TRIGI_APP="") == f"TRIGI_APP: '' {NO_TEXT}"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("a:b c:d", "c:d: one argument too many: the application is a:b"),
        ("a:b --port", "--port: expected one argument"),
        ("a:b --bind", "-b/--bind: expected one argument"),
        ("a:b --lint=1", "--lint/--no-lint: ignored explicit argument '1'"),
        ("--prot 8 a:b", "--prot: there is no such option; did you mean --port?"),
        ("--prot=8 a:b", "--prot: there is no such option; did you mean --port?"),
        ("a:b --Port 8", "--Port: there is no such option; did you mean --port?"),
        ("a:b --no-date-haeder", "--no-date-haeder: there is no such option; did you mean --no-date-header?"),
        ("a:b --verzion", "--verzion: there is no such option; did you mean --version?"),
        ("a:b --app c:d", "--app: there is no such option; did you mean --app-dir?"),
        ("a:b --zzz", "--zzz: there is no such option; trigi --help lists all"),
        ("a:b -p 8", "-p: there is no such option; trigi --help lists all"),
        # no abbreviations: a new option must not change what an old command line means
        ("a:b --log-lev debug", "--log-lev: there is no such option; did you mean --log-level?"),
        ("a:b --port x", f"--port: 'x' {NO_PORT}"),
        ("a:b --port -1", f"--port: -1 {NO_PORT}"),
        ("a:b --port 65536", f"--port: 65536 {NO_PORT}"),
        ("a:b --port 80.0", f"--port: '80.0' {NO_PORT}"),
        ("a:b --port inf", f"--port: inf {NO_PORT}"),
        ("a:b --fd x", "--fd: 'x' is not a whole number from 0 to 2147483647"),
        ("a:b --host=", f"--host: '' {NO_TEXT}"),
        ("a:b --uds=", f"--uds: '' {NO_TEXT}"),
        ("a:b --bind=", f"--bind: ('',) {NO_LIST}"),
        ("a:b --backlog 0", "--backlog: 0 is not a whole number of connections from 1 to 2147483647"),
        ("a:b --interface cgi", "--interface: 'cgi' is not one of auto, asgi3, asgi2, wsgi, asyncio"),
        ("a:b --header-timeout -1", f"--header-timeout: -1.0 {NO_TIME}"),
        ("a:b --header-timeout 1s", f"--header-timeout: '1s' {NO_TIME}"),
        ("a:b --header-timeout nan", f"--header-timeout: nan {NO_TIME}"),
        ("a:b --thread-limit 0", "--thread-limit: 0 is not a whole number of threads, at least 1, or inf"),
        ("a:b --uds-mode 888", f"--uds-mode: '888' {NO_MODE}"),
        (
            "a:b --root-path api",
            "--root-path: 'api' is not a path that begins with / and does not end with one",
        ),
        ("a:b --keyfile k", "--keyfile: needs a certfile"),
        (
            "a:b --verify-mode required --certfile c",
            "--verify-mode: 'required' needs ca_certs to verify certificates with",
        ),
        ("a:b --config missing.toml", "--config: cannot read 'missing.toml': No such file or directory"),
        ("a:b --config .", "--config: cannot read '.': Is a directory"),
    ],
)
def test_mistakes_on_the_command_line(line, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(line) == error


@pytest.mark.parametrize("text", ["64KB", "64kib", "1.5MiB", "-1", "0x10", "", "KiB", "9" * 5000])
def test_what_is_no_size(text):
    assert refusal(TRIGI_BODY_SIZE_LIMIT=text) == (
        f"TRIGI_BODY_SIZE_LIMIT: {text!r} is not a whole number of bytes, at least 1, or inf "
        "(in text also 64KiB, MiB, GiB)"
    )


@pytest.mark.parametrize(
    ("variable", "text", "error"),
    [
        ("TRIGI_PROT", "8", "TRIGI_PROT: there is no such setting; did you mean TRIGI_PORT?"),
        ("TRIGI_port", "8", "TRIGI_port: there is no such setting; did you mean TRIGI_PORT?"),
        ("TRIGI_LOGLEVEL", "info", "TRIGI_LOGLEVEL: there is no such setting; did you mean TRIGI_LOG_LEVEL?"),
        ("TRIGI_", "x", "TRIGI_: there is no such setting; trigi --help lists all"),
        ("TRIGI_XYZ", "x", "TRIGI_XYZ: there is no such setting; trigi --help lists all"),
        ("TRIGI_PORT", "x", f"TRIGI_PORT: 'x' {NO_PORT}"),
        ("TRIGI_PORT", "", f"TRIGI_PORT: '' {NO_PORT}"),
        ("TRIGI_LINT", "maybe", "TRIGI_LINT: 'maybe' is not true or false"),
        ("TRIGI_LINT", "", "TRIGI_LINT: '' is not true or false"),
        ("TRIGI_BIND", " ,", f"TRIGI_BIND: () {NO_LIST}"),
        ("TRIGI_CERTFILE", "", f"TRIGI_CERTFILE: '' {NO_TEXT}"),
        ("TRIGI_KEYFILE_PASSWORD", "s3cret", "TRIGI_KEYFILE_PASSWORD: needs a certfile"),
        ("TRIGI_LIFESPAN", "ON", "TRIGI_LIFESPAN: 'ON' is not one of auto, on, off"),
        (
            "TRIGI_CONFIG",
            "missing.toml",
            "TRIGI_CONFIG: cannot read 'missing.toml': No such file or directory",
        ),
        (
            "TRIGI_WEBSOCKET_PING_INTERVAL",
            "0",
            "TRIGI_WEBSOCKET_PING_INTERVAL: 0 would ping without a pause: more than 0, or inf for none",
        ),
    ],
)
def test_mistakes_in_the_environment(variable, text, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(**{variable: text}) == error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("prot = 8", "prot: there is no such setting; did you mean port?"),
        (
            "keep-alive-timeout = 8",
            "keep-alive-timeout: there is no such setting; did you mean keep_alive_timeout?",
        ),
        ("config = 'x.toml'", "config: there is no such setting; trigi --help lists all"),
        ("[trigi]\nport = 8", "trigi: there is no such setting; trigi --help lists all"),
        ("port = '8'", f"port: '8' {NO_PORT}"),
        ("port = 8.0", f"port: 8.0 {NO_PORT}"),
        ("port = true", f"port: True {NO_PORT}"),
        ("lint = 1", "lint: 1 is not true or false"),
        ("lint = 'true'", "lint: 'true' is not true or false"),
        ("app = 1", f"app: 1 {NO_TEXT}"),
        ("bind = 8000", f"bind: 8000 {NO_LIST}"),
        ("bind = []", f"bind: () {NO_LIST}"),
        ("bind = ['a:1', 2]", f"bind: ('a:1', 2) {NO_LIST}"),
        ("header_timeout = '5'", f"header_timeout: '5' {NO_TIME}"),
        ("header_timeout = nan", f"header_timeout: nan {NO_TIME}"),
        ("log_level = 'loud'", "log_level: 'loud' is not one of critical, error, warning, info, debug"),
        ("uds_mode = 660", f"uds_mode: 660 {NO_MODE}"),
        (
            "ca_certs = 'a'\ncertfile = 'c'",
            "ca_certs: verifies no one with verify_mode 'none': allowed are optional, required",
        ),
        ("port = ", "not a TOML file: Invalid value (at end of document)"),
    ],
)
def test_mistakes_in_the_file(text, error, toml):
    assert refusal(f"main:app --config {toml(text)}") == f"trigi.toml: {error}"


def test_a_file_that_is_not_utf_8(toml):
    Path(toml("")).write_bytes(b"app = '\xff'")
    assert refusal("--config trigi.toml").startswith(
        "trigi.toml: not a TOML file: 'utf-8' codec can't decode"
    )


def test_a_combination_of_sources_names_the_one_that_asked_for_more(toml):
    file = toml("verify_mode = 'required'")
    assert refusal(f"a:b --config {file} --certfile c").startswith(
        "trigi.toml: verify_mode: 'required' needs"
    )


# What is made from the list


def test_help_tells_all(capsys):
    with pytest.raises(SystemExit) as caught:
        read_settings(["--help"], {})
    assert caught.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "usage: trigi [options] MODULE:ATTRIBUTE" in words
    for name, setting in SETTINGS.items():
        assert all(option in words for option in long_options(name))
        assert setting.group in words
    assert re.search("-b( ADDRESS)?, --bind ADDRESS", words)  # Python 3.13 says it once
    assert "(default: 10 s)" in words
    assert "(default: 16 MiB)" in words
    assert "(default: 100 headers)" in words
    assert "%(h)s %(r)s %(s)s" in words


def test_help_is_shown_whatever_the_environment_says(capsys):
    with pytest.raises(SystemExit):
        read_settings(["--help"], {"TRIGI_PORT": "x"})


def test_the_reference_lists_each_setting_once():
    rows = [line for line in settings_reference().splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(SETTINGS)
    assert "| `port` | `--port PORT` | `TRIGI_PORT` | `8000` | TCP port" in settings_reference()
    assert "| `lint` | `--lint`, `--no-lint` | `TRIGI_LINT` | `false` | Check" in settings_reference()
    assert (
        "| `body_timeout` | `--body-timeout SECONDS` | `TRIGI_BODY_TIMEOUT` | `30 s` |"
        in settings_reference()
    )
