"""Applications: found by their target or not, in which words, and told apart as ASGI 3 and ASGI 2."""

from __future__ import annotations

import functools
import os
import re
import sys
import textwrap
import traceback

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint

from trigi._server.application import load_application, split_target, to_asgi3
from trigi.adapters import ASGI2Adapter, WSGIAdapter
from trigi.config import Config
from trigi.exceptions import ApplicationLoadError, ConfigError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules into the folder of the application; afterwards Python has forgotten them."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)

    def write_module(path: str, source: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))

    yield write_module
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def load(tmp_path):
    return functools.partial(load_application, app_dir=str(tmp_path), factory=False)


@pytest.fixture
def refusal(load):
    def refused(target: str, *, cause: type[BaseException] | None = None, **options) -> str:
        with pytest.raises(ApplicationLoadError) as caught:
            load(target, **options)
        assert "\n" not in str(caught.value)
        if cause is None:
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__ or caught.value.__context__ is None
        else:
            assert type(caught.value.__cause__) is cause
        return str(caught.value)

    return refused


# Loading


def test_module_and_attribute(write, load):
    write("hello.py", "async def app(scope, receive, send): ...")
    assert load("hello:app").__qualname__ == "app"


def test_a_module_in_a_package_and_an_attribute_of_an_attribute(write, load):
    write("shop/__init__.py", "")
    write("shop/web.py", "class Site:\n    async def serve(self, scope, receive, send): ...\nsite = Site()")
    assert load("shop.web:site.serve").__qualname__ == "Site.serve"


@pytest.mark.parametrize(
    ("source", "expected"),
    [("def app(): ...\ndef application(): ...", "app"), ("def application(): ...", "application")],
)
def test_without_an_attribute_the_usual_names_are_tried(write, load, source, expected):
    write("usual.py", source)
    assert load("usual").__name__ == expected


def test_the_folder_comes_first_on_the_path_and_once(write, load, tmp_path):
    write("first.py", "async def app(scope, receive, send): ...")
    load("first:app")
    load("first:app")
    assert sys.path[0] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_a_module_that_was_written_just_now_is_found(write, load, refusal, tmp_path):
    refusal("late:app")
    changed = tmp_path.stat().st_mtime_ns
    write("late.py", "def app(): ...")
    os.utime(tmp_path, ns=(changed, changed))  # clocks of file systems are coarse
    assert load("late:app")


def test_the_folder_may_be_relative_to_the_current_one(write, tmp_path, monkeypatch):
    write("src/relative.py", "def app(): ...")
    monkeypatch.chdir(tmp_path)
    assert load_application("relative:app", app_dir="src", factory=False)
    assert sys.path[0] == str(tmp_path / "src")


def test_a_folder_that_is_not_there(refusal, tmp_path):
    said = refusal("app:app", app_dir=str(tmp_path / "missing"))
    assert said == f"app_dir: {tmp_path}/missing is not a folder"


@pytest.mark.parametrize("target", ["", ":app", "module:", ".relative:app"])
def test_a_target_that_names_nothing(refusal, target):
    assert refusal(target) == f"{target!r} is not module:attribute"


@pytest.mark.parametrize("target", ["src/hello.py", "hello.py:app", "src/hello:app"])
def test_a_target_that_is_a_file(refusal, target):
    assert refusal(target) == (
        f"{target!r} names a file: it takes a module, like 'hello', and its folder as app_dir"
    )


def test_no_such_module(write, refusal, tmp_path):
    assert refusal("missing:app") == f"there is no module 'missing' in {tmp_path}, or elsewhere on sys.path"
    assert "there is no module 'missing'" in refusal("missing.web:app")
    write("there/__init__.py", "")
    assert "there is no module 'there.web'" in refusal("there.web:app")
    write("plain.py", "")
    assert "there is no module 'plain.web'" in refusal("plain.web:app")


@pytest.mark.parametrize("missing", ["missing", "importing.missing", "importing_more", "importin"])
def test_a_module_that_imports_what_is_missing_is_not_itself_missing(write, refusal, missing):
    write("importing.py", f"import {missing}")
    said = refusal("importing:app", cause=ModuleNotFoundError)
    assert said.startswith("module 'importing' can't be imported: ModuleNotFoundError: No module named ")
    assert missing in said


def test_the_cause_leads_to_the_line_that_raised(write, load):
    write("failing.py", "x = 1\ny = {}['missing']")
    with pytest.raises(ApplicationLoadError, match="KeyError: 'missing'") as caught:
        load("failing:app")
    assert traceback.extract_tb(caught.value.__cause__.__traceback__)[-1].lineno == 2


@pytest.mark.parametrize(
    ("source", "cause", "words"),
    [
        ("def app(:", SyntaxError, r"SyntaxError: .*\(broken.py, line 1\)"),
        ("raise ValueError('first\\nsecond')", ValueError, "ValueError: first"),
        ("raise ValueError", ValueError, "ValueError"),
        ("import sys; sys.exit(3)", SystemExit, "SystemExit: 3"),
        ("from json import nothing", ImportError, "ImportError: cannot import name 'nothing' .*"),
    ],
)
def test_a_module_that_fails(write, refusal, source, cause, words):
    write("broken.py", source)
    said = refusal("broken:app", cause=cause)
    assert re.fullmatch("module 'broken' can't be imported: " + words, said)


def test_ctrl_c_while_a_module_is_imported_is_no_load_error(write, load):
    write("interrupted.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load("interrupted:app")


CANDIDATES = """
    import json
    from pathlib import Path
    from functools import wraps

    class Site:
        def __call__(self, scope): ...
        def serve(self, scope): ...
        port = 80

    def create(): ...
    application_v2 = Site()
    callback = Site().serve
    _hidden = create
    number = 3
"""


def test_no_such_attribute_suggests_the_nearest(write, refusal):
    write("near.py", CANDIDATES)
    assert refusal("near:creat") == "module 'near' has no attribute 'creat'; did you mean 'create'?"


def test_no_such_attribute_lists_what_could_be_an_application(write, refusal):
    write("listed.py", CANDIDATES)
    said = refusal("listed:xyz")
    assert said == "module 'listed' has no attribute 'xyz'; it has Site, create, application_v2, callback"


def test_a_list_that_is_not_endless(write, refusal):
    write("many.py", "\n".join(f"def q{number}(): ..." for number in range(30)))
    assert refusal("many:xyz").endswith("q8, q9")


def test_no_such_attribute_of_an_attribute(write, refusal):
    write("nested.py", CANDIDATES)
    assert refusal("nested:Site.serf") == (
        "'Site' in module 'nested' has no attribute 'serf'; did you mean 'serve'?"
    )
    assert refusal("nested:number.app") == "'number' in module 'nested' has no attribute 'app'"


def test_none_of_the_usual_names(write, refusal):
    write("unusual.py", "def web(): ...")
    assert refusal("unusual") == "module 'unusual' has neither app nor application; it has web"
    write("empty.py", "")
    assert refusal("empty") == "module 'empty' has neither app nor application"


def test_a_factory_with_parentheses(write, refusal):
    write("called.py", "def create(): ...")
    assert refusal("called:create()") == (
        "module 'called' has no attribute 'create()'; "
        "a factory is named without parentheses, and called if the setting factory is on"
    )


def test_something_that_is_not_callable(write, refusal):
    write("constant.py", "app = 'hello'")
    assert refusal("constant:app") == "constant:app is not callable: it is of type str"


# Factories


def test_a_factory_is_called_once(write, load):
    write(
        "factory.py",
        """
        calls = []
        async def app(scope, receive, send): ...
        def create(debug=False):
            calls.append(debug)
            return app
        """,
    )
    assert load("factory:create", factory=True).__name__ == "app"
    assert sys.modules["factory"].calls == [False]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("create = 3", "factory bad:create is not callable: it is of type int"),
        ("def create(config): ...", "factory bad:create is called without arguments, and needs some"),
        ("def create(): ...", "factory bad:create returned nothing"),
        ("def create(): return 3", "what factory bad:create returned is not callable: it is of type int"),
        ("async def create(): ...", "factory bad:create is async: it is called, not awaited"),
    ],
)
def test_a_factory_that_is_none(write, refusal, source, words):
    write("bad.py", source)
    assert refusal("bad:create", factory=True) == words


@pytest.mark.parametrize(
    ("statement", "cause", "words"),
    [
        ("raise LookupError('no settings\\nat all')", LookupError, "LookupError: no settings"),
        ("len()", TypeError, "TypeError: len() takes exactly one argument (0 given)"),
        ("raise SystemExit", SystemExit, "SystemExit"),
    ],
)
def test_a_factory_that_raises(write, refusal, statement, cause, words):
    write("raising.py", f"def create():\n    {statement}")
    assert refusal("raising:create", factory=True, cause=cause) == f"factory raising:create raised {words}"


# ASGI 3 or ASGI 2


async def function(scope, receive, send): ...


class Callable3:
    async def __call__(self, scope, receive, send): ...

    async def method(self, scope, receive, send): ...

    @staticmethod
    async def static(scope, receive, send): ...

    @classmethod
    async def of_class(cls, scope, receive, send): ...


def returns_awaitable(scope, receive, send):
    return function(scope, receive, send)


async def needs_session(scope, receive, send, session): ...


@functools.wraps(needs_session)
async def decorated(scope, receive, send, *, session=None): ...


async def any_arguments(*arguments): ...


class CallableAny:
    async def __call__(self, *arguments): ...


def marked(*args): ...


marked._asgi_single_callable = True


class Instance:
    """The class form of ASGI 2."""

    def __init__(self, scope): ...

    async def __call__(self, receive, send): ...


class Callable2:
    def __call__(self, scope):
        return Instance(scope)


def function2(scope):
    return Instance(scope)


def anything(*args): ...


async def marked2(*args): ...


marked2._asgi_double_callable = True


class Endpoint(HTTPEndpoint):
    """A class that is awaited: Endpoint(scope, receive, send)."""


ASGI3 = {
    "function": function,
    "object": Callable3(),
    "method": Callable3().method,
    "static method": Callable3.static,
    "class method": Callable3.of_class,
    "partial": functools.partial(function),
    "partial of a method": functools.partial(Callable3().method),
    "partial with an argument": functools.partial(needs_session, session=None),
    "partial of an object": functools.partial(Callable3()),
    "decorated": decorated,
    "function of any arguments": any_arguments,
    "object of any arguments": CallableAny(),
    "marked": marked,
    "returns an awaitable": returns_awaitable,
    "awaitable class": Endpoint,
    "framework": Starlette(),
    "adapter": ASGI2Adapter(Instance),
}
ASGI2 = {
    "class": Instance,
    "function": function2,
    "object": Callable2(),
    "takes anything": anything,
    "partial of a class": functools.partial(Instance),
    "marked": marked2,
}


@pytest.mark.parametrize("application", ASGI3.values(), ids=ASGI3.keys())
def test_asgi_3_applications_stay_as_they_are(application):
    assert to_asgi3(application, "auto") is application


@pytest.mark.parametrize("application", ASGI2.values(), ids=ASGI2.keys())
def test_asgi_2_applications_are_adapted(application):
    adapted = to_asgi3(application, "auto")
    assert isinstance(adapted, ASGI2Adapter)
    assert adapted.application is application


def test_interface_decides_when_it_is_given():
    assert to_asgi3(anything, "asgi3") is anything
    adapted = to_asgi3(Starlette, "asgi2")
    assert isinstance(adapted, ASGI2Adapter)


@pytest.mark.parametrize(
    ("application", "interface", "words"),
    [
        ("text", "auto", "the application (str) is not callable: it is of type str"),
        (
            lambda: None,
            "auto",
            "the application (<lambda>) can't be called with (scope, receive, send); is it a factory?",
        ),
        (
            lambda environ, start_response: [],
            "auto",
            (
                "the application (<lambda>) can't be called with (scope, receive, send); "
                "for a WSGI application the setting interface is wsgi"
            ),
        ),
        (function2, "asgi3", "the application (function2) can't be called with (scope, receive, send)"),
        (function, "asgi2", "the application (function) can't be called with (scope)"),
        (
            function,
            "wsgi",
            "the application (function) can't be called with (environ, start_response)",
        ),
        (
            lambda: None,
            "wsgi",
            "the application (<lambda>) can't be called with (environ, start_response); is it a factory?",
        ),
        (
            lambda a, b, c, d: None,
            "auto",
            "the application (<lambda>) can't be called with (scope, receive, send)",
        ),
    ],
)
def test_what_can_not_be_called_as_an_application_is_refused_at_once(application, interface, words):
    with pytest.raises(ApplicationLoadError) as caught:
        to_asgi3(application, interface)
    assert str(caught.value) == words


def test_a_callable_whose_arguments_are_not_known_is_taken_at_its_word():
    assert to_asgi3(iter, "asgi3") is iter  # a builtin without a signature


def wsgi_application(environ, start_response):
    return []


def test_a_wsgi_application_is_adapted_when_it_is_said_to_be_one():
    adapted = to_asgi3(wsgi_application, "wsgi")
    assert isinstance(adapted, WSGIAdapter)
    assert adapted.application is wsgi_application
    assert to_asgi3(adapted, "auto") is adapted


def test_settings_of_the_adapter():
    config = Config(wsgi_threads=3, wsgi_queue_size=4, cleanup_timeout=2)
    adapted = to_asgi3(wsgi_application, "wsgi", config)
    assert (adapted._limiter.total_tokens, adapted._call_limit, adapted._cleanup_timeout) == (3, 7, 2)
    adapted = to_asgi3(wsgi_application, "wsgi")
    assert (adapted._limiter.total_tokens, adapted._call_limit, adapted._cleanup_timeout) == (40, 1040, 5)


@pytest.mark.parametrize(
    ("target", "interface", "wanted"),
    [
        ("wsgi:shop.web:app", "auto", ("shop.web:app", "wsgi")),
        ("wsgi:shop.web:app", "wsgi", ("shop.web:app", "wsgi")),
        ("shop.web:app", "auto", ("shop.web:app", "auto")),
        ("wsgi:app", "auto", ("wsgi:app", "auto")),  # a module of that name
        ("wsgi", "wsgi", ("wsgi", "wsgi")),
        ("wsgi:wsgi:app", "auto", ("wsgi:app", "wsgi")),
    ],
)
def test_a_target_may_say_that_it_is_wsgi(target, interface, wanted):
    assert split_target(target, interface) == wanted


def test_a_target_that_contradicts_the_interface_is_refused():
    with pytest.raises(ConfigError) as caught:
        split_target("wsgi:shop:app", "asgi3")
    assert str(caught.value) == "interface: 'asgi3' contradicts the application 'wsgi:shop:app'"
