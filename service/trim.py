"""Memory that large bodies and pictures leave behind goes back to the system."""

import contextlib
import ctypes
from collections.abc import Callable


def find_trim() -> Callable[[], None]:
    """A function that gives back what is free, for a thread of its own; where the C library has none (musl, which keeps
    little), it does nothing.

    glibc keeps a freed piece for the next: after many uploads at once, hundreds of megabytes between pieces in use.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda: None
    return lambda: trim(ctypes.c_size_t(0))


_M_MMAP_THRESHOLD = -3  # mallopt(3)
_LARGE = 2**22


def keep_large_blocks_apart() -> None:
    """A block of 4 MiB or more is a mapping of its own, which is gone when it is freed; where the C library is glibc.

    By itself glibc takes the size of what was freed for the next limit, and then keeps giant pictures among the small.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
