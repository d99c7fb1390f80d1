"""How often a client may make a server work for nothing: streams that are reset, and frames that are of no use.

Both are counted over `RATE_SECONDS`. What a server sends wins a client frames to answer with: windows that it opens, a
ping to measure the line. (CVE-2023-44487, rapid reset; CVE-2019-9512 and its siblings; CVE-2025-8671, MadeYouReset.)
"""

from __future__ import annotations

from math import inf
from typing import Final

from trigi.config import Config

from .http2_frames import ErrorCode, Violation

__all__ = ["RATE_SECONDS", "Rates"]

RATE_SECONDS: Final = 10.0

EARNED: Final = 100_000
"""How many control frames a client can have coming to it: a window may be large, and is opened afterwards."""


class Rates:
    """What one client has done in the last while.

    Raises:
        Violation: of ENHANCE_YOUR_CALM, by any of the counts, when there has been more than `config` allows.
    """

    def __init__(self, config: Config) -> None:
        self._reset_limit = config.h2_reset_limit
        self._control_frame_limit = config.h2_control_frame_limit
        self._began = -inf
        self._resets = 0
        self._control_frames = 0

    def advance(self, now: float) -> None:
        """The time is now; what is left of the frames that were earned stays."""
        if now >= self._began + RATE_SECONDS:
            self._began = now
            self._resets = 0
            self._control_frames = min(self._control_frames, 0)

    def count_reset(self) -> None:
        """A stream ended before its time, by the client or because of it."""
        self._resets += 1
        if self._resets > self._reset_limit:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset", limit="h2_reset_limit")

    def count_control_frame(self) -> None:
        """A frame came that carries no request and no body."""
        self._control_frames += 1
        if self._control_frames > self._control_frame_limit:
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "too many control frames", limit="h2_control_frame_limit"
            )

    def earn(self, control_frames: int) -> None:
        """Something was sent, or asked for, that so many may have to do with."""
        self._control_frames = max(self._control_frames - control_frames, -EARNED)
