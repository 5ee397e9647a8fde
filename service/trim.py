"""Memory that large bodies leave behind goes back to the system."""

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
