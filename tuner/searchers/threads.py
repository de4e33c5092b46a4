"""How many threads a proposal computes with: one, and afterwards as many as before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import scipy.linalg  # noqa: F401  # brings a BLAS of its own, which the controller is to find
from threadpoolctl import ThreadpoolController

_ALONE = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """One BLAS thread, no warnings of overflow, and as it was before afterwards.

    One at any size. Up to some 500 data more threads cost more than they give, beyond they give
    little, the cores belong to whoever is training, and sums that are split otherwise are rounded
    otherwise: the proposal would depend on the machine's cores.
    """
    # The number of threads is the whole process's: one proposal at a time.
    with _ALONE, _controller().limit(limits=1, user_api="blas"), np.errstate(all="ignore"):
        yield


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()
