"""Memory that the process has freed, kept for its next maps and results.

On a CPU PyTorch takes memory from the C library, which gives large pieces back to the system when
they are freed. The system hands them out again page by page, each one cleared first: with maps of
40 MB and results of 300 MB a tenth to a fifth of the time of an inference or a training step.
"""

import ctypes
import platform

# Of GNU's malloc.h: the free memory above which it is given back, how large pieces are that come
# from the system one by one, and how many may.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


def can_disable_malloc_trim() -> bool:
    """Whether the C library can be told to: GNU's can, Linux's usual one."""
    return platform.libc_ver()[0] == "glibc"


def disable_malloc_trim() -> bool:
    """From now on this process keeps what it frees: as much as it has needed at once.

    Returns:
        whether that is so, see :func:`can_disable_malloc_trim`.
    """
    return _tell((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0))


def enable_malloc_trim() -> bool:
    """Undo :func:`disable_malloc_trim`: from now on this process gives large pieces back, by the
    thresholds at which GNU's C library arrives by itself once it has seen such pieces.

    Returns:
        whether that is so.
    """
    told = _tell((_TRIM_THRESHOLD, 64 * 2**20), (_MMAP_THRESHOLD, 32 * 2**20), (_MMAP_MAX, 65536))
    if told:
        ctypes.CDLL(None).malloc_trim(0)
    return told


def _tell(*settings: tuple[int, int]) -> bool:
    if not can_disable_malloc_trim():
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(name, value) for name, value in settings)
