"""Detecting workers that will never all start."""

from __future__ import annotations

from rm_ray.cluster.timeouts import COMPANY_S, LOOK_EVERY_S, LOOKS


class StartupLoss:
    """Finds out, over several looks, why workers do not all start."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._looks_with_fewer = 0
        self._alone_s = 0.0

    def find(self, *, num_begun: int, num_fitting: int) -> str | None:
        """Return why the attempt is lost, or None; from the workers that started and would fit.

        A machine counts as lost after several consecutive looks; the first workers wait up to
        ``COMPANY_S`` for the others.
        """
        is_short = num_fitting < self._num_workers and num_begun == 0
        self._looks_with_fewer = self._looks_with_fewer + 1 if is_short else 0
        if self._looks_with_fewer == LOOKS:
            return "a machine was lost before the workers started"
        if num_begun == 0:
            return None
        self._alone_s = self._alone_s + LOOK_EVERY_S if num_begun < self._num_workers else 0.0
        if self._alone_s > COMPANY_S:
            began = f"{num_begun} of {self._num_workers} workers"
            return f"only {began} started within {COMPANY_S:.0f} s"
        return None
