"""What a long command says of itself."""

import io

import pytest

from saccade.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("total", "before", "done", "failed", "seconds", "line"),
    [
        (None, 0, 0, 0, 0.0, "0 pictures, 0/s, 0 errors"),
        (None, 0, 1200, 1, 3.0, "1,200 pictures, 400/s, 1 error"),
        (5000, 0, 1200, 3, 3.0, "1,200 of 5,000 pictures, 400/s, 0:00:10 left, 3 errors"),
        (1_000_000, 600_000, 600_100, 0, 10.0, "600,100 of 1,000,000 pictures, 10/s, 11:06:30 left, 0 errors"),
        (10, 0, 10, 0, 20.0, "10 of 10 pictures, 0.5/s, 0 errors"),
        (10, 10, 10, 0, 1.0, "10 of 10 pictures, 0/s, 0 errors"),
    ],
)
def test_it_says_how_far_it_is_and_how_long_it_takes(
    total: int | None, before: int, done: int, failed: int, seconds: float, line: str
) -> None:
    """The rate is of this run alone: what an earlier one did took no time now."""
    progress = Progress(io.StringIO(), done=before, failed=failed)
    progress.total = total
    for _ in range(done - before):
        progress.step(False)
    assert progress.line(seconds) == line


def test_a_file_gets_whole_lines_and_a_terminal_one_that_changes() -> None:
    for stream, expected in (
        (io.StringIO(), "saccade: 1 picture,"),
        (Terminal(), "\r1 picture,"),
    ):
        progress = Progress(stream)
        progress.step(False)
        progress.end()
        assert stream.getvalue().startswith(expected)
        assert stream.getvalue().endswith("\n")


def test_a_stream_that_nobody_reads_does_not_stop_the_work() -> None:
    """A terminal that was closed, a pipe to a program that has ended."""

    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    for stream in (Gone(), Terminal()):
        progress = Progress(stream)
        if isinstance(stream, Terminal):
            stream.close()
        progress.step(False)
        progress.end()
