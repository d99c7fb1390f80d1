"""The version of trigi, read by the build and by the `--version` option."""

__version__ = "0.1.0"
