"""What holds for all tests."""

import signal


def pytest_configure():
    """Ctrl-C is Python's, even where it is ignored: as by what a shell runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
