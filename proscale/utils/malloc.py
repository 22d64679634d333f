"""Freed memory, kept by the process for its next maps and results.

On a CPU PyTorch takes memory from the C library, which gives large pieces back to the system when
they are freed. The system hands them out again page by page, each one cleared first: with maps of
40 MB and results of 300 MB a tenth to a fifth of the time of an inference or a training step.
"""

import ctypes
import platform

# Of GNU's malloc.h: the free memory above which it is given back, the size from which pieces come
# from the system one by one, and the greatest number of such pieces.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def can_disable_malloc_trim() -> bool:
    """Whether the C library is GNU's, Linux's usual one, which has these settings."""
    return platform.libc_ver()[0] == "glibc"


def disable_malloc_trim() -> bool:
    """From now on this process keeps freed memory: as much as it has needed at once.

    Returns whether the C library accepted it, see :func:`can_disable_malloc_trim`.
    """
    # Never trim the heap, and take nothing past it.
    return _set_options((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0))


def enable_malloc_trim() -> bool:
    """Undo :func:`disable_malloc_trim`: from now on this process gives large pieces back."""
    # The thresholds at which GNU's C library arrives by itself once it has seen such pieces.
    accepted = _set_options(
        (_TRIM_THRESHOLD, 64 * 2**20), (_MMAP_THRESHOLD, 32 * 2**20), (_MMAP_MAX, 65536)
    )
    if accepted:
        ctypes.CDLL(None).malloc_trim(0)
    return accepted


def _set_options(*settings: tuple[int, int]) -> bool:
    if not can_disable_malloc_trim():
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(name, value) for name, value in settings)
