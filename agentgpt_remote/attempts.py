"""Limits how often an address may try tokens."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from typing import Final

BURST: Final = 30
REFILL_PER_S: Final = 0.5
_MAX_ADDRESSES = 10_000
_MAX_ACCEPTED = 4096


class AttemptLimiter:
    """A bucket of attempts for each address, which wrong tokens empty and time refills.

    Tokens that were right before pass whatever their address, so that whoever guesses from behind the same router
    does not lock others out. Only keyed digests of those are kept.

    Args:
        burst: wrong tokens that an address may show at once.
        refill_per_s: how many it may show each second in the long run.
    """

    def __init__(self, burst: int = BURST, refill_per_s: float = REFILL_PER_S) -> None:
        self._burst, self._refill_per_s = burst, refill_per_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when
        self._accepted: OrderedDict[bytes, None] = OrderedDict()
        self._key = secrets.token_bytes(32)

    def wait_s(self, address: str, presented: bytes) -> float:
        """Return how many seconds an address must wait before a token of it is looked at; 0 for not at all."""
        if self._digest(presented) in self._accepted:
            return 0.0
        left = self._left(address)
        return 0.0 if left >= 1.0 else (1.0 - left) / self._refill_per_s

    def _left(self, address: str) -> float:
        left, since = self._buckets.get(address, (float(self._burst), time.monotonic()))
        return min(float(self._burst), left + (time.monotonic() - since) * self._refill_per_s)

    def failed(self, address: str) -> None:
        """Take note of a wrong token."""
        self._buckets[address] = (self._left(address) - 1.0, time.monotonic())
        self._buckets.move_to_end(address)
        if len(self._buckets) > _MAX_ADDRESSES:
            self._buckets.popitem(last=False)

    def accepted(self, presented: bytes) -> None:
        """Take note of a right token."""
        digest = self._digest(presented)
        self._accepted[digest] = None
        self._accepted.move_to_end(digest)
        if len(self._accepted) > _MAX_ACCEPTED:
            self._accepted.popitem(last=False)

    def _digest(self, presented: bytes) -> bytes:
        return hashlib.blake2b(presented, key=self._key, digest_size=16).digest()
