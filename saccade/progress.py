"""How far a long command is: rate, time left and errors. On a terminal one line that changes, else one now and then."""

import contextlib
import sys
import time
from typing import TextIO

_TERMINAL_S, _LOG_S = 0.2, 10.0


class Progress:
    """Of `total` pictures where that is known, which may be found out later."""

    def __init__(self, stream: TextIO | None = None, *, done: int = 0, failed: int = 0) -> None:
        """`done` and `failed` are those of an earlier run. No stream: stderr."""
        self.total: int | None = None
        self.done = done
        self.failed = failed
        self._before = done
        self._stream = stream or sys.stderr  # None where somebody closed it
        self._live = self._stream is not None and self._stream.isatty()
        self._every = _TERMINAL_S if self._live else _LOG_S
        self._began = self._shown = time.monotonic()

    def step(self, failed: int, count: int = 1) -> None:
        """So many are done more, `failed` of them in vain."""
        self.done += count
        self.failed += failed
        now = time.monotonic()
        if now - self._shown >= self._every:
            self._shown = now
            self._write(self.line(now - self._began), "" if self._live else "\n")

    def end(self) -> None:
        self._write(f"{self.line(time.monotonic() - self._began)}", "\n")

    def line(self, seconds: float) -> str:
        """After so many seconds: `1,200 of 5,000 pictures, 400/s, 0:00:10 left, 3 errors`."""
        rate = (self.done - self._before) / seconds if seconds > 0 else 0.0
        of = "" if self.total is None else f" of {self.total:,}"
        parts = [
            f"{self.done:,}{of} picture{'' if (self.total or self.done) == 1 else 's'}",
            f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s",
        ]
        if self.total is not None and rate > 0 and self.total > self.done:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        parts.append(f"{self.failed:,} error{'' if self.failed == 1 else 's'}")
        return ", ".join(parts)

    def _write(self, line: str, end: str) -> None:
        # to the line's begin and clear to its end (ECMA-48): it may have been longer
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody looks any more: the work goes on
            self._stream.write(f"\r{line}\x1b[K{end}" if self._live else f"saccade: {line}{end}")
            self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
