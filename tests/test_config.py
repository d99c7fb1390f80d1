"""Config: what it takes, what it refuses and in which words, and that it does nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from math import inf, nan

import pytest

from trigi.config import Config
from trigi.exceptions import ConfigError

FIELDS = dataclasses.fields(Config)


def fields_of_kind(*kinds: str) -> list[str]:
    return [field.name for field in FIELDS if field.metadata["setting"].kind in kinds]


def refusal(**values) -> str:
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    return str(caught.value)


def test_the_defaults_are_the_documented_ones():
    assert dataclasses.asdict(Config()) == {
        "bind": ("127.0.0.1:8000",),
        "backlog": 2048,
        "uds_mode": None,
        "interface": "auto",
        "factory": False,
        "app_dir": ".",
        "root_path": "",
        "lifespan": "auto",
        "lint": False,
        "certfile": None,
        "keyfile": None,
        "keyfile_password": None,
        "ca_certs": None,
        "verify_mode": "none",
        "ciphers": None,
        "http": "auto",
        "date_header": True,
        "server_header": True,
        "half_close": False,
        "websocket_per_message_deflate": True,
        "tls_handshake_timeout": 10,
        "header_timeout": 10,
        "keep_alive_timeout": 5,
        "body_timeout": 30,
        "write_timeout": 30,
        "request_timeout": inf,
        "disconnect_grace": 5,
        "websocket_ping_interval": 20,
        "websocket_ping_timeout": 20,
        "websocket_close_timeout": 10,
        "startup_timeout": 60,
        "shutdown_timeout": 60,
        "graceful_timeout": 30,
        "cleanup_timeout": 5,
        "head_size_limit": 64 * 1024,
        "header_count_limit": 100,
        "body_size_limit": inf,
        "pipelined_size_limit": 64 * 1024,
        "keep_alive_max_requests": inf,
        "connection_limit": inf,
        "concurrency_limit": inf,
        "websocket_message_size_limit": 16 * 1024 * 1024,
        "websocket_frame_count_limit": 1024,
        "websocket_queue_size": 32,
        "write_buffer_size": 65536,
        "h2_max_concurrent_streams": 100,
        "h2_stream_window": 65536,
        "h2_reset_limit": 100,
        "h2_control_frame_limit": 1000,
        "thread_limit": 40,
        "wsgi_threads": 40,
        "wsgi_queue_size": 1000,
        "log_level": "info",
        "access_log": True,
        "access_log_format": None,
        "log_json": False,
    }


def test_it_is_frozen_and_keyword_only_and_has_no_other_attributes():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.backlog = 1
    with pytest.raises(TypeError):
        Config("127.0.0.1:1")
    assert not hasattr(config, "__dict__")


def test_equal_values_are_equal_and_hash_alike():
    assert Config(bind="a:1") == Config(bind=("a:1",)) != Config()
    assert hash(Config(bind="a:1")) == hash(Config(bind=["a:1"]))


def test_it_survives_json_and_replace():
    config = Config(bind=["a:1", "b:2"], uds_mode=0o600, request_timeout=1.5)
    assert Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert dataclasses.replace(config, bind=["a:1", "b:2"]) == config


@pytest.mark.parametrize("bind", ["a:1", ["a:1"], ("a:1",)])
def test_bind_becomes_a_tuple(bind):
    assert Config(bind=bind).bind == ("a:1",)


@pytest.mark.parametrize("bind", ["", [], (), [""], ["a:1", ""], ["a:1", 2], 8000, None, {"a:1"}, b"a:1"])
def test_bind_refuses_what_is_no_list_of_strings(bind):
    kept = tuple(bind) if isinstance(bind, list) else ("",) if bind == "" else bind
    assert refusal(bind=bind) == f"bind: {kept!r} is not a list of one or more strings that are not empty"


@pytest.mark.parametrize("name", fields_of_kind("seconds"))
def test_a_time_is_a_number_of_seconds(name):
    smallest = 0.001 if name == "websocket_ping_interval" else 0
    for good in (smallest, 1, 0.25, inf):
        assert getattr(Config(**{name: good}), name) == good
    for bad in (-1, -0.001, -inf, nan, True, "5", None, 10**400):
        assert refusal(**{name: bad}) == f"{name}: {bad!r} is not a number of seconds, at least 0, or inf"


@pytest.mark.parametrize("name", fields_of_kind("whole", "size"))
def test_a_limit_is_a_whole_number_from_1(name):
    for good in (1, 2, 10_000):
        assert getattr(Config(**{name: good}), name) == good
    for bad in (0, -1, 1.0, 1.5, -inf, nan, True, "1", None, 10**400):
        assert refusal(**{name: bad}).startswith(f"{name}: {bad!r} is not a whole number of ")


BOUNDED = {"backlog", "h2_stream_window"}


@pytest.mark.parametrize("name", [name for name in fields_of_kind("whole", "size") if name not in BOUNDED])
def test_inf_switches_a_limit_off(name):
    assert getattr(Config(**{name: inf}), name) == inf


def test_a_window_has_31_bits():
    assert refusal(h2_stream_window=inf) == (
        "h2_stream_window: inf is not a whole number of bytes from 1 to 2147483647"
    )


def test_the_words_about_limits():
    assert refusal(thread_limit=0) == "thread_limit: 0 is not a whole number of threads, at least 1, or inf"
    assert refusal(body_size_limit=0) == (
        "body_size_limit: 0 is not a whole number of bytes, at least 1, or inf (in text also 64KiB, MiB, GiB)"
    )


@pytest.mark.parametrize("backlog", [0, inf, 2**31])
def test_backlog_is_what_listen_takes(backlog):
    assert refusal(backlog=backlog) == (
        f"backlog: {backlog} is not a whole number of connections from 1 to 2147483647"
    )


@pytest.mark.parametrize("name", fields_of_kind("flag"))
def test_a_flag_is_a_bool(name):
    for good in (True, False):
        assert getattr(Config(**{name: good}), name) is good
    for bad in (1, 0, "true", None):
        assert refusal(**{name: bad}) == f"{name}: {bad!r} is not true or false"


@pytest.mark.parametrize("name", fields_of_kind("choice"))
def test_a_choice_is_one_of_its_choices(name):
    choices = next(field for field in FIELDS if field.name == name).metadata["setting"].choices
    tls = {"certfile": "c.pem", "ca_certs": "ca.pem"}
    for good in choices:
        others = tls if name == "verify_mode" and good != "none" else {}
        assert getattr(Config(**{name: good}, **others), name) == good
    for bad in ("", choices[0].upper(), None, True, [choices[0]]):
        assert refusal(**{name: bad}) == f"{name}: {bad!r} is not one of {', '.join(choices)}"


@pytest.mark.parametrize("name", fields_of_kind("text"))
def test_a_text_is_a_string(name):
    default = getattr(Config(), name)
    allowed = "a string" if default == "" else "a string that is not empty"
    bad = [1, b"x", ["x"]] + ([""] if default != "" else []) + ([None] if default is not None else [])
    for value in bad:
        shown = "the value" if name == "keyfile_password" else repr(value)
        assert refusal(**{name: value}) == f"{name}: {shown} is not {allowed}"


@pytest.mark.parametrize("mode", [0, 0o600, 0o777, None])
def test_uds_mode_is_a_mode(mode):
    assert Config(uds_mode=mode).uds_mode == mode


@pytest.mark.parametrize("mode", [660, -1, 0o1000, "660", 1.0, True])
def test_uds_mode_refuses_what_is_no_mode(mode):
    allowed = "an octal file mode from 0 to 777 (0o777 where a number is written)"
    assert refusal(uds_mode=mode) == f"uds_mode: {mode!r} is not {allowed}"


@pytest.mark.parametrize("path", ["", "/api", "/api/v1"])
def test_root_path_is_a_path_without_an_end(path):
    assert Config(root_path=path).root_path == path


@pytest.mark.parametrize("path", ["/", "api", "/api/"])
def test_root_path_refuses_other_paths(path):
    assert refusal(root_path=path) == (
        f"root_path: {path!r} is not a path that begins with / and does not end with one"
    )


def test_a_ping_interval_of_0_is_refused():
    assert refusal(websocket_ping_interval=0) == (
        "websocket_ping_interval: 0 would ping without a pause: more than 0, or inf for none"
    )


@pytest.mark.parametrize("name", ["keyfile", "keyfile_password", "ca_certs", "ciphers"])
def test_what_belongs_to_a_certificate_needs_one(name):
    assert refusal(**{name: "x"}) == f"{name}: needs a certfile"


def test_verifying_clients_needs_a_certificate_and_authorities():
    assert refusal(verify_mode="optional") == "verify_mode: needs a certfile"
    assert refusal(verify_mode="required", certfile="c.pem") == (
        "verify_mode: 'required' needs ca_certs to verify certificates with"
    )
    assert refusal(ca_certs="ca.pem", certfile="c.pem") == (
        "ca_certs: verifies no one with verify_mode 'none': allowed are optional, required"
    )


def test_whole_tls_settings_are_taken():
    config = Config(
        certfile="c.pem",
        keyfile="k.pem",
        keyfile_password="s3cret",
        ca_certs="ca.pem",
        verify_mode="required",
    )
    assert config.keyfile_password == "s3cret"
    assert "s3cret" not in repr(config)
    assert "c.pem" in repr(config)


def test_a_wrong_password_is_not_shown():
    assert "s3cret" not in refusal(keyfile_password=["s3cret"])


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_is_described(field):
    """What `--help` and the reference print: a heading, sentences, choices and units where they belong."""
    setting = field.metadata["setting"]
    assert setting.default == field.default
    assert setting.group
    assert re.fullmatch(r"[A-Z].*\.", setting.help)
    assert "|" not in setting.help
    assert bool(setting.choices) == (setting.kind == "choice")
    assert bool(setting.unit) == (setting.kind in {"whole", "size", "seconds"})


def test_a_parser_that_is_not_installed(monkeypatch):
    assert Config(http="httptools").http == "httptools"
    monkeypatch.setitem(sys.modules, "httptools", None)
    assert refusal(http="httptools") == "http: httptools is not installed: pip install 'trigi[fast]'"
    assert (Config(http="h11").http, Config(http="auto").http) == ("h11", "auto")
