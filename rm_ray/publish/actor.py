"""The mirror as a Ray actor: it publishes while the workers train, and nobody waits for it."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rm_ray.config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.recipe import parse_config
from rm_ray.storage import Storage
from rm_ray.train.board import BoardWriter
from rm_ray.train.gauges import RunGauges

if TYPE_CHECKING:  # the driver does not wait for these imports
    from rm_ray.publish.hub import HubRepo
    from rm_ray.publish.mirror import Mirror
    from rm_ray.train.manifest import FoundCheckpoint

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0

PATIENCE_S = 30.0
"""How long one call to the Hub is tried; then the next look does it again."""

REFUSED_AGAIN_S = 600.0
"""How long a Hub that refuses the token or the account is not asked again."""


class HubMirror:
    """Looks for checkpoints of a run and publishes them, in a thread, until it is killed."""

    def __init__(self, board: str, run: Storage, config: dict[str, Any], last_step: int) -> None:
        os.nice(19)  # training comes first where they share CPUs
        self._board, self._run, self._last_step = board, run, last_step
        self._config = parse_config(config)
        self._gauges = RunGauges(self._config.run.name)
        self._told = ""
        self._asks_again = 0.0
        self._repo: HubRepo | None = None
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def _work(self) -> None:
        from rm_ray.publish.mirror import Mirror  # takes seconds to import

        with self._gauges, BoardWriter(ray.get_actor(self._board)):
            mirror = Mirror(run=self._run, config=self._config, last_step=self._last_step)
            while True:
                self._look(mirror)
                time.sleep(LOOK_EVERY_S)

    def _look(self, mirror: Mirror) -> None:
        """Do what there is to do; tell once of what is in the way."""
        from rm_ray.publish.hub import HubAwayError, HubRefusedError

        try:
            for found in self._see(mirror):
                mirror.make_ready(found)
            if time.monotonic() > self._asks_again:
                self._repo = self._repo or self._open()
                for version in mirror.find_waiting():
                    mirror.publish(version, self._repo)
                    self._see(mirror)
            self._told = ""
        except HubRefusedError as error:
            self._asks_again = time.monotonic() + REFUSED_AGAIN_S
            self._tell(f"{error}. Training goes on, and what is not published stays with the run")
        except HubAwayError as error:
            self._tell(f"{error}; training goes on, and it is asked again")
        except (InputError, OSError) as error:
            self._tell(f"the mirror cannot go on now: {error}; training does, and it tries again")
        except Exception as error:  # a bug of ours must neither end training nor the mirror
            self._tell(f"the mirror fails ({error!r}); training goes on\n{traceback.format_exc()}")

    def _see(self, mirror: Mirror) -> list[FoundCheckpoint]:
        """Return what is wanted, and show how much is not published."""
        wanted = mirror.find_wanted()
        self._gauges.set("mirror_waiting", len(wanted) + len(mirror.find_waiting()))
        return wanted

    def _open(self) -> HubRepo:
        """Find the repository, or create it: what is wrong with the token shows at once."""
        from rm_ray.publish.hub import HubRepo

        hub = self._config.hub
        return HubRepo.open(str(hub.repo_id), private=hub.private, patience_s=PATIENCE_S)

    def _tell(self, problem: str) -> None:
        if problem != self._told:
            logger.warning("%s", problem)
        self._told = problem


def start_mirror(board: str, run: Storage, config: TrainConfig, last_step: int) -> Any:
    """Start the mirror beside the driver, where the Hub's token is; Ray starts it again if lost.

    ``board`` is the name of the run's board: Ray warns of handles given to actors like this one.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    mirror = ray.remote(num_cpus=0, max_restarts=-1)(HubMirror)
    return mirror.options(scheduling_strategy=here).remote(board, run, config.to_json(), last_step)
