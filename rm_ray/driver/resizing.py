"""Deciding when a run stops to resume with more workers."""

from __future__ import annotations

from rm_ray.cluster.timeouts import LOOKS


class Resizing:
    """Waits until the cluster has room for more workers in several consecutive looks."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._looks_with_more = 0

    def is_due(self, num_fitting: int) -> bool:
        """Return True once when it is time to stop; ``num_fitting`` workers would fit now."""
        has_more = num_fitting > self._num_workers
        self._looks_with_more = self._looks_with_more + 1 if has_more else 0
        return self._looks_with_more == LOOKS
