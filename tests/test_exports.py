"""What is public is written down here, is documented, and has types. A change of this list is a change of the API."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import pkgutil
import typing
from pathlib import Path
from types import FunctionType

import pytest

import trigi

PUBLIC = {
    "trigi": ["Config", "__version__", "run", "serve"],
    "trigi.adapters": ["ASGI2Adapter", "WSGIAdapter"],
    "trigi.adapters.asgi2": ["ASGI2Adapter"],
    "trigi.adapters.asyncio": ["AsyncioAdapter"],
    "trigi.adapters.wsgi": ["WSGIAdapter"],
    "trigi.cli": ["main"],
    "trigi.config": ["Config", "Setting"],
    "trigi.exceptions": [
        "ApplicationError",
        "ApplicationLoadError",
        "BadConnection",
        "BadRequest",
        "BindError",
        "ClientDisconnected",
        "ClientError",
        "ConfigError",
        "InvalidMessage",
        "LifespanFailed",
        "TrigiError",
        "UnexpectedMessage",
    ],
    "trigi.lint": ["lint"],
    "trigi.logs": [
        "ATOMS",
        "COMBINED_FORMAT",
        "Atom",
        "JSONFormatter",
        "LogObserver",
        "TextFormatter",
        "compile_format",
        "configure_logging",
        "escape",
    ],
    "trigi.sync": [
        "ThreadSensitiveContext",
        "async_to_sync",
        "check_cancelled",
        "current_limiter",
        "sync_to_async",
    ],
    "trigi.testing": [
        "HTTPClient",
        "IncompleteResponse",
        "InformationalResponse",
        "Response",
        "open_connection",
    ],
    "trigi.testing.clients": ["HTTPClient", "IncompleteResponse", "InformationalResponse", "Response"],
    "trigi.testing.connect": ["open_connection"],
    "trigi.testing.http2": [
        "PREFACE",
        "ConnectionClosed",
        "ErrorCode",
        "Flag",
        "Frame",
        "FrameType",
        "HTTP2Client",
        "HTTP2Response",
        "SettingCode",
        "StreamReset",
        "Violation",
        "encode_frame",
    ],
    "trigi.testing.websocket": [
        "WebSocketClient",
        "WebSocketClosed",
        "WebSocketRejected",
        "encode_frame",
    ],
    "trigi.typing": [
        "ASGI2Application",
        "ASGI3Application",
        "ASGIVersions",
        "Application",
        "HTTPScope",
        "LifespanScope",
        "Message",
        "Receive",
        "Scope",
        "Send",
        "TLSExtension",
        "WSGIApplication",
        "WebSocketScope",
    ],
}

NAMES = [(module, name) for module, names in PUBLIC.items() for name in names if name != "__version__"]


def public_modules():
    for info in pkgutil.walk_packages(trigi.__path__, "trigi."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            yield info.name


def exported(module, name):
    return getattr(importlib.import_module(module), name)


def test_every_module_without_an_underscore_is_in_the_list():
    assert {"trigi", *public_modules()} == PUBLIC.keys()


@pytest.mark.parametrize("module", PUBLIC)
def test_all_is_the_list(module):
    exports = importlib.import_module(module).__all__
    assert sorted(exports) == sorted(PUBLIC[module])
    namespace = {}
    exec(f"from {module} import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(PUBLIC[module])


def test_types_are_shipped():
    assert (Path(trigi.__file__).parent / "py.typed").exists()


def callables(value):
    """The functions that make up something public: itself, or what a class defines beside dunder methods."""
    if isinstance(value, FunctionType):
        return {value.__name__: value}
    found = {}
    for name, member in vars(value).items() if inspect.isclass(value) else ():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(member, property):
            member = member.fget  # noqa: PLW2901
        elif isinstance(member, staticmethod | classmethod):
            member = member.__func__  # noqa: PLW2901
        if isinstance(member, FunctionType) and member.__module__ == value.__module__:
            found[f"{value.__name__}.{name}"] = member
    return found


def statements(module):
    """What a module's source says; if the module is compiled, its source lies beside it."""
    path = Path(importlib.import_module(module).__file__)
    return ast.parse(path.with_name(path.name.partition(".")[0] + ".py").read_text(encoding="utf-8")).body


def documented_constants(module):
    """The names that a module assigns, and has a docstring below."""
    body = statements(module)
    for node, following in itertools.pairwise(body):
        is_docstring = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_docstring:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def defining_module(module, name):
    """Where a constant is assigned, following imports."""
    for node in statements(module):
        if isinstance(node, ast.ImportFrom) and any(
            name == (alias.asname or alias.name) for alias in node.names
        ):
            package = importlib.import_module(module).__spec__.parent
            imported = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            return defining_module(imported, name)
    return module


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_name_has_a_docstring(module, name):
    value = exported(module, name)
    if not (inspect.isclass(value) or isinstance(value, FunctionType)):
        assert name in documented_constants(defining_module(module, name))
        return
    assert (vars(value) if inspect.isclass(value) else {"__doc__": value.__doc__}).get("__doc__", "").strip()
    for called, function in callables(value).items():
        if not called.endswith("__init__"):  # which its class documents
            assert (function.__doc__ or "").strip(), called


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_name_has_types(module, name):
    value = exported(module, name)
    for called, function in callables(value).items():
        hints = typing.get_type_hints(function)  # so what they say exists at run time too
        first, *others = [*inspect.signature(function).parameters, "return"]
        wanted = {first, *others} if isinstance(value, FunctionType) else set(others)
        if called.endswith("__init__"):
            wanted -= {"return"}
        assert wanted <= hints.keys(), called
    if inspect.isclass(value):
        typing.get_type_hints(value)


def test_everything_public_says_where_it_can_be_imported_from():
    """By the docstring of the package: every public module that is no part of another one, or the foundation of all."""
    named = {module for module in PUBLIC if module.count(".") == 1} - {
        "trigi.cli",
        "trigi.config",
        "trigi.lint",
    }
    assert all(f"`{module}`" in trigi.__doc__ for module in named)
