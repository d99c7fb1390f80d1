"""Builds wheels in which the two lower layers are compiled, by mypyc, where there is a compiler.

What is compiled is the same Python, in far less time. Where it can't be compiled, the wheel is pure
Python, as an editable installation always is.

`COMPILE_TRIGI=0` compiles nothing. With `COMPILE_TRIGI=1` what can't be compiled is an error, and an editable
installation is compiled, too: in place, where it must be compiled again after each change.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface[Any]):
    """Compiles before a wheel is packed: the packages of `compiled`, but for the modules of `interpreted`."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the compiled modules to the wheel, or with an editable one to the checkout."""
        wanted = os.environ.get("COMPILE_TRIGI", "")
        is_editable = version == "editable"
        if wanted == "0" or (is_editable and wanted != "1"):
            return
        root = Path(self.root)
        self._folder = tempfile.TemporaryDirectory(prefix="trigi-build-")
        build = Path(self._folder.name)
        shutil.copytree(root / "trigi", build / "trigi", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        command = [sys.executable, "-m", "mypyc", "--ignore-missing-imports", *self._modules(root)]
        done = subprocess.run(  # noqa: S603 - it is ours
            command, cwd=build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            if wanted == "1":
                raise RuntimeError(f"trigi can't be compiled:\n{done.stdout}")
            self.app.display_warning("trigi can't be compiled here, and is installed as pure Python")
            return
        for library in (*build.glob("*.so"), *build.glob("trigi/**/*.so")):
            name = library.relative_to(build)
            if is_editable:
                shutil.copy2(library, root / name)
            else:
                build_data["force_include"][str(library)] = str(name)
        if not is_editable:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing behind."""
        del version, build_data, artifact_path
        if self._folder is not None:
            self._folder.cleanup()

    def _modules(self, root: Path) -> list[str]:
        """What is compiled, relative to the checkout."""
        files = (
            path for package in self.config["compiled"] for path in sorted((root / package).glob("*.py"))
        )
        names = (str(path.relative_to(root)) for path in files if path.name != "__init__.py")
        return [name for name in names if name not in self.config["interpreted"]]
