"""Memory that is free, given back."""

from __future__ import annotations

import ctypes


def give_back_free_memory() -> None:
    """Give the system the pages that nothing lies on any more, where the C library can (glibc's).

    It keeps them for itself, and where one thread has freed them another does not get them: 5 MB of an agent
    that has imported all it needs, 2 MB more once it has a runtime. It takes a few milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
