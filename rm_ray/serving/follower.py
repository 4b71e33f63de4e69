"""Takes over a newer version of a model while the one before serves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch

from rm_ray.config.scoring import ScoringModel
from rm_ray.errors import InputError, first_line
from rm_ray.publish.hub import HubAwayError
from rm_ray.serving.served_model import ServedModel
from rm_ray.serving.versions import find_version

logger = logging.getLogger(__name__)


class Follower:
    """Looks for a newer version now and then, loads it, and hands it over.

    A version that cannot be loaded is tried again, and the one before keeps serving.
    """

    def __init__(
        self,
        model: ScoringModel,
        device: torch.device,
        current: str,
        take_over: Callable[[ServedModel], None],
        *,
        cache_bytes: int = 0,
    ) -> None:
        self._model, self._device, self._take_over = model, device, take_over
        self._cache_bytes = cache_bytes
        self._current, self._problem = current, ""

    def start(self, every_s: float) -> None:
        """Look every so many seconds, in a thread of its own, until the process ends."""
        threading.Thread(target=self._run, args=(every_s,), name="follower", daemon=True).start()

    def look(self) -> None:
        """Look once; take over a newer version if there is one."""
        try:
            version = find_version(self._model)
            if version.name == self._current:
                return
            found = ServedModel.load(
                version, self._model, device=self._device, cache_bytes=self._cache_bytes
            )
            self._take_over(found)
        except Exception as error:  # whatever it is, the version before keeps serving
            if str(error) != self._problem:
                expected = isinstance(error, InputError | HubAwayError | OSError | RuntimeError)
                logger.warning(
                    "no newer model is taken over: %s", first_line(error), exc_info=not expected
                )
            self._problem = str(error)
            return
        self._current, self._problem = version.name, ""
        logger.info("serving %s", version.name)

    def _run(self, every_s: float) -> None:
        pause = threading.Event()
        while not pause.wait(every_s):
            self.look()
