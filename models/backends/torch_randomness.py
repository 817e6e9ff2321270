"""Streams of torch's randomness, of which a process has but one generator.

Dropout and initialisation draw from no other. So whoever draws has it to itself, in the state of its own
stream; those who do not draw run beside each other, and each looks whether the generator has moved.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DrewUnseen(Exception):
    """Something was drawn, beside others, of what had drawn nothing before: not from its stream."""


class TorchRandomness:
    """A stream, of which whatever runs while it is `drawn` draws.

    Attributes:
        used: Whether anything was drawn so far; None before the first time. Once it is False, no more is
            drawn: who does so gets `DrewUnseen`.
    """

    def __init__(self, seed: int, *, used: bool | None = None) -> None:
        self._state = torch.Generator().manual_seed(seed).get_state()
        self.used = used

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Hold torch's generator inside, where anything may be drawn; it then is as it was.

        Raises:
            DrewUnseen: At the end, see `used`.
        """
        if self.used is False:
            with _GENERATOR.beside():
                before = torch.get_rng_state()
                yield
                if not torch.equal(torch.get_rng_state(), before):
                    raise DrewUnseen
            return
        with _GENERATOR.alone(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._state)
            yield
            state = torch.get_rng_state()
        self.used = self.used or not torch.equal(state, self._state)
        self._state = state


class _Generator:
    """Torch's generator: one has it alone, or any number look that it stays as it is."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._left = threading.Condition()
        self._beside = 0
        self._resting: torch.Tensor

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._gate:
            with self._left:
                self._left.wait_for(lambda: not self._beside)
            yield

    @contextmanager
    def beside(self) -> Iterator[None]:
        with self._gate, self._left:
            if not self._beside:
                self._resting = torch.get_rng_state()
            self._beside += 1
        try:
            yield
        finally:
            with self._left:
                self._beside -= 1
                if not self._beside:
                    # Not before: who drew would find the generator as it was, and not know it.
                    torch.set_rng_state(self._resting)
                    self._left.notify_all()


_GENERATOR = _Generator()
