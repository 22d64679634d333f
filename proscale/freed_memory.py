"""Memory that the process has freed, kept for its next maps and results.

On a CPU PyTorch takes memory from the C library, which gives large pieces back to the system when
they are freed. The system hands them out again page by page, each one cleared first: with maps of
40 MB and results of 300 MB a fifth of the time of an inference or a training step.
"""

import ctypes
import platform

# Of GNU's malloc.h: the free memory above which it is given back, and how many pieces may come from
# the system one by one.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER, _NONE = -1, 0


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees: as much as it has needed at once.

    Returns:
        whether that is so; only GNU's C library, Linux's usual one, can be told.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_TRIM_THRESHOLD, _NEVER) and library.mallopt(_MMAP_MAX, _NONE))
