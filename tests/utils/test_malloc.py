"""Freed memory, by the pages that the system has to hand out again."""

import platform
import subprocess
import sys
import textwrap

import pytest

# Of a process of its own, because the C library is told once for all.
PAGES = textwrap.dedent("""
    import resource
    import torch
    from proscale.utils.malloc import enable_malloc_trim, disable_malloc_trim

    def pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    print(pages(), disable_malloc_trim(), pages(), pages(), enable_malloc_trim(), pages())
""")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only GNU's C library can be told")
def test_kept_memory_is_not_handed_out_again():
    printed = subprocess.check_output([sys.executable, "-c", PAGES], text=True)
    given_back, is_kept, _, kept, is_given_back, again = printed.split()
    assert is_kept == is_given_back == "True"
    assert int(kept) < int(given_back) / 100
    # Of eight pieces at least one: a hole below live memory, once trimmed, is used again.
    assert int(again) > int(given_back) / 10
