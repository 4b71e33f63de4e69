"""The mirror as a Ray actor, which publishes during training without delaying it."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray

from rm_ray.cluster.placement import beside_the_driver
from rm_ray.config.recipe import parse_config
from rm_ray.config.train_config import TrainConfig
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage
from rm_ray.tracking.channel import ChannelWriter
from rm_ray.tracking.prometheus import RunGauges

if TYPE_CHECKING:  # keep the driver's imports light
    from rm_ray.publish.hub import HubRepo
    from rm_ray.publish.mirror import Mirror

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0

AFTER_FAILURE_S = 15.0
"""Pause in seconds after a failure."""

PATIENCE_S = 30.0
"""How long one call to the Hub is retried, in seconds; the next look tries it again."""

REFUSED_AGAIN_S = 600.0
"""Pause in seconds after the Hub refuses the token or the account."""


class Backoff:
    """Exponential backoff by name: delays double with each failure, up to ``most_s`` seconds."""

    def __init__(self, first_s: float = LOOK_EVERY_S, most_s: float = 600.0) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._delays: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def is_due(self, name: str) -> bool:
        """Return whether to try it now."""
        return time.monotonic() >= self._due.get(name, 0.0)

    def put_off(self, name: str) -> None:
        """Record a failure."""
        delay = self._delays.get(name, self._first_s)
        self._due[name] = time.monotonic() + delay
        self._delays[name] = min(2 * delay, self._most_s)


class HubMirror:
    """Prepares and publishes a run's checkpoints, in two threads, until it is killed.

    Checkpoints are prepared even while the Hub hangs, so that none has to be kept for long.
    """

    def __init__(
        self, channel: str, run_folder: Storage, config: dict[str, Any], last_step: int
    ) -> None:
        os.nice(19)  # yield shared CPUs to training
        self._channel, self._run_folder, self._last_step = channel, run_folder, last_step
        self._config = parse_config(config)
        self._gauges = RunGauges(self._config.run.name)
        self._repo: HubRepo | None = None
        self._refused_at = -REFUSED_AGAIN_S
        self._not_ready = Backoff()
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def _work(self) -> None:
        from rm_ray.publish.mirror import Mirror  # these take seconds to import
        from rm_ray.publish.version_builder import scratch_home

        shutil.rmtree(scratch_home(self._run_folder.read_json(RUN)["key"]), ignore_errors=True)
        making, publishing = (
            Mirror(run_folder=self._run_folder, config=self._config, last_step=self._last_step)
            for _ in range(2)
        )
        with self._gauges, ChannelWriter(ray.get_actor(self._channel)):
            other = threading.Thread(
                target=self._repeat, args=(self._publish, publishing), daemon=True
            )
            other.start()
            self._repeat(self._make_ready, making)

    def _make_ready(self, mirror: Mirror) -> None:
        from rm_ray.publish.export_gate import ClientsError

        wanted = mirror.find_wanted()
        self._gauges.set("mirror_waiting", len(wanted) + len(mirror.find_waiting()))
        problem: Exception | None = None
        for found in wanted:  # a failing checkpoint does not block the others
            if not self._not_ready.is_due(found.name):
                continue
            try:
                if mirror.make_ready(found) is None:
                    self._not_ready.put_off(found.name)
            except ClientsError as error:
                self._not_ready.put_off(found.name)
                problem = error
        if problem is not None:
            raise problem

    def _publish(self, mirror: Mirror) -> None:
        """Upload the waiting versions; open the repository first, to find token problems early."""
        from rm_ray.publish.hub import HubRefusedError, HubRepo

        if time.monotonic() - self._refused_at < REFUSED_AGAIN_S:
            return
        try:
            if self._repo is None:
                hub = self._config.hub
                self._repo = HubRepo.open(
                    str(hub.repo_id), private=hub.private, patience_s=PATIENCE_S
                )
            for version in mirror.find_waiting():
                mirror.publish(version, self._repo)
        except HubRefusedError:
            self._refused_at = time.monotonic()
            raise

    def _repeat(self, action: Callable[[Mirror], None], mirror: Mirror) -> None:
        """Repeat an action forever; report each kind of failure once."""
        reported: set[str] = set()
        while True:
            delay = LOOK_EVERY_S
            try:
                action(mirror)
            except Exception as error:  # no failure may stop training or the mirror
                kind = f"{type(error).__name__}{error.args[:1] and str(error)[:60]}"
                if kind not in reported:
                    logger.warning(
                        "%s. Training continues; unpublished versions stay with the run and are "
                        "retried",
                        str(error) or repr(error),
                    )
                    logger.debug("%s", traceback.format_exc())
                reported.add(kind)
                delay = AFTER_FAILURE_S
            time.sleep(delay)


def start_mirror(channel: str, run_folder: Storage, config: TrainConfig, last_step: int) -> Any:
    """Start the mirror on the driver's machine, which has the Hub token; Ray restarts it if lost.

    ``channel`` is the name of the run's channel, since Ray warns about handles passed to such
    actors.
    """
    mirror = ray.remote(max_restarts=-1)(HubMirror).options(**beside_the_driver())
    return mirror.remote(channel, run_folder, config.to_json(), last_step)
