"""From `"module:attribute"`, or an object, to the ASGI 3 application that is served."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from trigi.adapters import ASGI2Adapter, WSGIAdapter
from trigi.config import Config, Interface
from trigi.exceptions import ApplicationLoadError, ConfigError
from trigi.typing import Application, ASGI2Application, ASGI3Application, WSGIApplication

__all__ = ["load_application", "split_target", "to_asgi3"]

DEFAULT_ATTRIBUTES = ("app", "application")
"""Where an application is looked for in a module when the target names only that."""

CANDIDATES_SHOWN = 10


def split_target(target: str, interface: Interface) -> tuple[str, Interface]:
    """Target and interface of `"wsgi:module:attribute"`; any other target is given back as it is.

    `"wsgi:attribute"` is no such prefix but a module of that name, which many projects have.

    Raises:
        ConfigError: the prefix and the setting `interface` contradict each other.
    """
    prefix, _, rest = target.partition(":")
    if prefix != "wsgi" or ":" not in rest:
        return target, interface
    if interface not in ("auto", "wsgi"):
        raise ConfigError(f"interface: {interface!r} contradicts the application {target!r}")
    return rest, "wsgi"


def load_application(target: str, *, app_dir: str, factory: bool) -> Application:
    """Import the application that a target names.

    Args:
        target: `"package.module:attribute"`; the attribute may have dots. Without it, `app` and then `application`.
        app_dir: the folder that is put first on `sys.path`, where it stays.
        factory: the attribute is called without arguments, and returns the application.

    Raises:
        ApplicationLoadError: says in one line how far it got. `__cause__` is what the module raised while it was
            imported, or the factory while it was called.
    """
    name, colon, attribute = target.partition(":")
    if not name or name.startswith(".") or (colon and not attribute):
        raise ApplicationLoadError(f"{target!r} is not module:attribute")
    if "/" in name or name.endswith(".py"):
        raise ApplicationLoadError(
            f"{target!r} names a file: it takes a module, like {Path(name).stem!r}, and its folder as app_dir"
        )
    module = _import_module(name, _put_on_path(app_dir))
    if not colon:
        attribute = next((default for default in DEFAULT_ATTRIBUTES if hasattr(module, default)), "")
        if not attribute:
            raise ApplicationLoadError(
                f"module {name!r} has neither {' nor '.join(DEFAULT_ATTRIBUTES)}{_suggestion(module)}"
            )
    found = _find_attribute(module, attribute)
    label = f"{name}:{attribute}"
    if factory:
        found = _call_factory(found, label)
    else:
        _check_callable(found, label)
    return cast("Application", found)


def to_asgi3(
    application: Application, interface: Interface, config: Config | None = None
) -> ASGI3Application:
    """The application itself if it is an ASGI 3 one, else an adapter around it.

    Args:
        application: an ASGI 3, ASGI 2 or WSGI application.
        interface: which of them it is; `"auto"` finds out which of the first two, see `is_double_callable`. With
            `"asyncio"` that is found out as well, and it is called in an asyncio loop.
        config: the settings of the adapter.

    Raises:
        ApplicationLoadError: it can't be called as one, because it is not callable or takes other arguments.
    """
    if interface == "asyncio":
        # Imported here, since asyncio takes 40 ms and some megabytes, which most servers have no use for.
        from trigi.adapters.asyncio import AsyncioAdapter  # noqa: PLC0415

        adapted = to_asgi3(application, "auto")
        return adapted if isinstance(adapted, AsyncioAdapter) else AsyncioAdapter(adapted)
    name = getattr(application, "__qualname__", type(application).__qualname__)
    _check_callable(application, f"the application ({name})")
    if interface == "wsgi":
        return _adapt_wsgi(application, name, Config() if config is None else config)
    is_asgi2 = is_double_callable(application) if interface == "auto" else interface == "asgi2"
    if not _takes(application, 1 if is_asgi2 else 3):
        arguments = "(scope)" if interface == "asgi2" else "(scope, receive, send)"
        hint = "; is it a factory?" if _takes(application, 0) else ""
        hint = "; for a WSGI application the setting interface is wsgi" if _takes(application, 2) else hint
        raise ApplicationLoadError(f"the application ({name}) can't be called with {arguments}{hint}")
    if is_asgi2:
        return ASGI2Adapter(cast("ASGI2Application", application))
    return cast("ASGI3Application", application)


def _adapt_wsgi(application: Application, name: str, config: Config) -> ASGI3Application:
    if not _takes(application, 2):
        raise ApplicationLoadError(
            f"the application ({name}) can't be called with (environ, start_response)"
            + ("; is it a factory?" if _takes(application, 0) else "")
        )
    return WSGIAdapter(
        cast("WSGIApplication", application),
        threads=config.wsgi_threads,
        queue=config.wsgi_queue_size,
        cleanup_timeout=config.cleanup_timeout,
    )


def is_double_callable(application: Application) -> bool:
    """Whether a callable is an ASGI 2 application, by asgiref's rules in their order.

    `_asgi_single_callable` and `_asgi_double_callable` say so themselves. Coroutine functions, also as methods and
    in a `functools.partial`, and objects whose `__call__` is one, are ASGI 3. What is left, classes and callables
    that may return anything, is ASGI 2; but here, other than by asgiref's rules, only if it can take a scope alone.
    """
    if getattr(application, "_asgi_single_callable", False):
        return False
    if getattr(application, "_asgi_double_callable", False):
        return True
    if not inspect.isclass(application):  # the __call__ of a class is its instances'
        call = getattr(application, "__call__", None)  # noqa: B004 - it is looked at, not called
        if inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(application):
            return False
    return _takes(application, 1)


def _takes(function: Callable[..., object], count: int) -> bool:
    """Whether a callable takes so many positional arguments; yes if that can't be known."""
    try:
        # A decorated function is called with what its wrapper takes.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _put_on_path(folder: str) -> Path:
    path = Path(folder).absolute()
    if not path.is_dir():
        raise ApplicationLoadError(f"app_dir: {path} is not a folder")
    if sys.path[:1] != [str(path)]:
        sys.path.insert(0, str(path))
    importlib.invalidate_caches()  # a module may have been written just now
    return path


def _import_module(name: str, folder: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        # What is missing is the module, or a package that it is in; and not what it imports.
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise ApplicationLoadError(
                f"there is no module {missing!r} in {folder}, or elsewhere on sys.path"
            ) from None
        raise ApplicationLoadError(f"module {name!r} can't be imported: {_first_line(error)}") from error


def _find_attribute(module: ModuleType, dotted: str) -> Any:
    found: Any = module
    where = f"module {module.__name__!r}"
    for attribute in dotted.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            suggestion = _suggestion(found, attribute)
            raise ApplicationLoadError(f"{where} has no attribute {attribute!r}{suggestion}") from None
        where = f"{attribute!r} in {where}"
    return found


def _suggestion(owner: object, attribute: str = "") -> str:
    """What could have been meant, to end the sentence "it has no …"."""
    if attribute.endswith("()"):
        return "; a factory is named without parentheses, and called if the setting factory is on"
    candidates = [
        name
        for name, value in getattr(owner, "__dict__", {}).items()
        if not name.startswith("_") and callable(value) and _is_at_home(value, owner)
    ]
    if close := get_close_matches(attribute, candidates, n=1):
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(candidates[:CANDIDATES_SHOWN])
    return f"; it has {shown}" if shown else ""


def _is_at_home(value: object, owner: object) -> bool:
    """Whether a callable of a module was made there, and not only imported; objects don't say."""
    if not isinstance(owner, ModuleType) or not (inspect.isclass(value) or inspect.isroutine(value)):
        return True
    return getattr(value, "__module__", None) == owner.__name__


def _call_factory(factory: Any, label: str) -> object:
    _check_callable(factory, f"factory {label}")
    if not _takes(factory, 0):
        raise ApplicationLoadError(f"factory {label} is called without arguments, and needs some")
    try:
        application = factory()
    except (Exception, SystemExit) as error:
        raise ApplicationLoadError(f"factory {label} raised {_first_line(error)}") from error
    if inspect.iscoroutine(application):
        application.close()
        raise ApplicationLoadError(f"factory {label} is async: it is called, not awaited")
    if application is None:
        raise ApplicationLoadError(f"factory {label} returned nothing")
    _check_callable(application, f"what factory {label} returned")
    return application


def _check_callable(application: object, label: str) -> None:
    if not callable(application):
        raise ApplicationLoadError(f"{label} is not callable: it is of type {type(application).__qualname__}")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(": ")
