"""What holds for all tests."""

import signal

import pytest

from trigi._connection import exchange


def pytest_configure():
    """Ctrl-C is Python's, even where it is ignored: as by what a shell runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    """What is compiled can't be replaced."""
    if item.get_closest_marker("interpreted") and not exchange.__file__.endswith(".py"):
        pytest.skip("this part of trigi is compiled")
