"""TEMP"""
from __future__ import annotations
import importlib, inspect, os, sys
from typing import Any, cast
from trigi.adapters import ASGI2Adapter
from trigi.exceptions import ApplicationLoadError
from trigi.typing import Application, ASGI3Application
def load_application(target: str, *, app_dir: str, factory: bool) -> Application:
    sys.path.insert(0, os.path.abspath(app_dir))
    module, _, attribute = target.partition(":")
    app: Any = importlib.import_module(module)
    for part in (attribute or "app").split("."):
        app = getattr(app, part)
    return cast("Application", app() if factory else app)
def to_asgi3(application: Any, interface: str) -> ASGI3Application:
    if interface == "asgi3" or (interface == "auto" and not inspect.isclass(application) and (inspect.iscoroutinefunction(application) or inspect.iscoroutinefunction(getattr(application, "__call__", None)))):
        return cast("ASGI3Application", application)
    return ASGI2Adapter(application)
