"""The `trigi` command: read the settings, serve, end with a truthful status and one line about a failure."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from ._settings import read_settings
from .exceptions import ApplicationLoadError, ConfigError, TrigiError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as a command line says, until a signal ends it.

    Args:
        argv: the command line, without the name of the command; by default the process's own.

    Returns:
        The exit status: 0 after a clean shutdown; 1 if the application could not be loaded, started or shut
        down, or an address could not be bound; 2 if a setting was wrong; 130 if it was interrupted before it
        served.

    Raises:
        SystemExit: `--help` or `--version` was asked for, and is printed.
    """
    try:
        target, config = read_settings(sys.argv[1:] if argv is None else argv, os.environ)
        from ._server.run import run  # noqa: PLC0415 - a server's modules are not needed for --help or an error

        run(target, config)
    except TrigiError as error:
        if isinstance(error, ApplicationLoadError) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)  # the application's own: its author needs all of it
        line = " ".join(str(error).splitlines())
        print(f"trigi: error: {line}", file=sys.stderr)  # noqa: T201 - a command speaks here
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130  # as a shell reports the end by SIGINT
    return 0
