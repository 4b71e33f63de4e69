"""The end of publishing: all that a run has to publish, the best model on main, the registry."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm import tqdm

from rm_ray.config.recipe import parse_config
from rm_ray.config.train_config import HubConfig
from rm_ray.errors import InputError
from rm_ray.publish.export_gate import ClientsError
from rm_ray.publish.hub import HubRepo
from rm_ray.publish.mirror import Mirror, best_step
from rm_ray.runs.layout import RESULT, read_record
from rm_ray.runs.manifest import FoundCheckpoint, read_manifest
from rm_ray.runs.versions import Version
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class PublishReport:
    """What is on the Hub, what is not yet, and why."""

    repo_id: str
    versions: list[Version] = field(default_factory=list)
    main: str | None = None
    """The tag of what is on main."""
    is_over: bool = False
    """Whether the run is finished, so that main is to have its best model."""
    problem: str = ""
    """What keeps the rest from being published."""

    def tags(self, state: str) -> list[str]:
        """Return the tags of the versions in a state."""
        return [version.tag for version in self.versions if version.state == state]

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing left to do."""
        missing = self.is_over and self.main is None and not self.tags("refused")
        return not (self.tags("waiting") or missing or self.problem)


def finish_publishing(
    folder: str,
    hub: HubConfig | None = None,
    *,
    limit_s: float | None = None,
    retries_refused: bool = False,
) -> PublishReport:
    """Publish all that a run has to publish, for ``limit_s`` at most.

    ``folder`` is the run's, as a path or a URI; without a ``hub`` it is the run's own. A Hub that
    is away is asked again for ``hub.patience_s``. What is there is not sent again. With
    ``retries_refused`` what was refused is tried once more. The checkpoints of a finished run that
    stayed for its own repository alone are deleted once they are not needed for it.

    Raises:
        InputError: there is no such run, or it has no repository.
    """
    run_folder = Storage.open(folder)
    record, result = read_record(run_folder), run_folder.read_json(RESULT)
    config = parse_config(record["config"])
    is_own = hub is None or hub.repo_id == config.hub.repo_id
    config = replace(config, hub=hub or config.hub)
    if config.hub.repo_id is None:
        raise InputError(f"the run in '{folder}' has no hub.repo_id; name one with --repo_id")
    last_step = record.get("steps", sys.maxsize) if result is None else result["steps"]
    mirror = Mirror(run_folder=run_folder, config=config, last_step=last_step)
    if retries_refused:
        mirror.retry_refused()
    published = PublishReport(repo_id=config.hub.repo_id, is_over=result is not None)
    problem = _within(limit_s, lambda: _publish_all(mirror, result))
    versions = mirror.versions.read()
    published.versions = [version for _, version in sorted(versions.items())]
    published.main = mirror.versions.main
    published.problem = problem
    if published.is_over and published.is_whole and is_own:
        mirror.release()
    return published


def _within(seconds: float | None, action: Callable[[], None]) -> str:
    """Do something, for so long at most; return what went wrong, if anything did."""
    problems: list[Exception] = []

    def work() -> None:
        try:
            action()
        except Exception as error:  # whatever it is, it is told as what keeps the rest
            problems.append(error)

    thread = threading.Thread(target=work, name="publishing", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return f"it was not done within {seconds:.0f} s"
    return (str(problems[0]) or repr(problems[0])) if problems else ""


def _publish_all(mirror: Mirror, result: dict[str, Any] | None) -> None:
    """Publish what waits and what is to be made ready, and put the best on main."""
    hub, is_over = mirror.config.hub, result is not None
    left = len(mirror.find_waiting()) + len(mirror.find_wanted())
    if not left and (not is_over or mirror.versions.main is not None):
        return  # the Hub need not be asked

    @functools.cache
    def repo() -> HubRepo:
        return HubRepo.open(mirror.versions.repo_id, private=hub.private, patience_s=hub.patience_s)

    problems: list[ClientsError] = []
    with tqdm(total=left + 2 * is_over, desc=f"publishing on {hub.repo_id}", disable=None) as bar:
        for version in _find_left(mirror, result, problems):
            bar.set_postfix_str(version.tag)
            mirror.publish(version, repo())
            bar.update()
        best = None if result is None else _make_ends_ready(mirror, result)
        for version in mirror.find_waiting():
            bar.set_postfix_str(version.tag)
            mirror.publish(version, repo())
        bar.update()
        if result is not None and best is not None and mirror.versions.main != best.tag:
            bar.set_postfix_str("main")
            now = mirror.read_versions()[best.step]
            if now.state == "published":
                mirror.promote(now, repo(), result)
        bar.update()
    if problems:
        raise problems[0]


def _find_left(
    mirror: Mirror, result: dict[str, Any] | None, problems: list[ClientsError]
) -> Iterator[Version]:
    """Yield what waits, and then each checkpoint that is wanted, once it is ready.

    One that clients do not answer for is left out, and becomes one of the ``problems``.
    """
    yield from mirror.find_waiting()
    for found in mirror.find_wanted():
        try:
            version = mirror.make_ready(found, result=result)
        except ClientsError as error:
            problems.append(error)
            continue
        if version is not None and version.state == "waiting":
            yield version


def _make_ends_ready(mirror: Mirror, result: dict[str, Any]) -> Version | None:
    """Make the last model and the best one ready; return what is to be on main."""
    versions = mirror.read_versions()
    last = versions.get(result["steps"]) or mirror.make_last_ready(result)
    best = best_step(mirror.config, result)
    if best == last.step or best in versions:
        return versions.get(best, last)
    name = str(result["best_checkpoint"]).rpartition("/")[2]
    manifest = read_manifest(mirror.run_folder, name)
    version = None
    if manifest is not None:
        found = FoundCheckpoint(name=name, manifest=manifest)
        version = mirror.make_ready(found, result=result)
    if version is None:
        logger.warning("%s is the best, and is not whole; the last one is taken", name)
    return version or last
