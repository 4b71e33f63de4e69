"""Finishing a run's publication: all pending versions, then the best model on main."""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from rm_ray.config.recipe import parse_config
from rm_ray.config.sections.hub import HubConfig
from rm_ray.errors import InputError
from rm_ray.publish.export_gate import ClientsError
from rm_ray.publish.hub import HubRepo
from rm_ray.publish.mirror import Mirror
from rm_ray.runs.layout import RESULT, read_record, refuse_other_format
from rm_ray.runs.manifest import read_checkpoint
from rm_ray.runs.retention import best_name, best_step
from rm_ray.runs.versions import Version
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PublishReport:
    """Published and pending versions of a run, and what keeps the rest from the Hub."""

    repo_id: str
    versions: list[Version]
    main: str | None
    """Tag of the version on main, if any."""
    is_over: bool
    """Whether the run is finished, so that its best model belongs on main."""
    problem: str
    """Why publishing is incomplete; empty if nothing went wrong."""

    def tags(self, state: str) -> list[str]:
        """Return the tags of the versions in a state."""
        return [version.tag for version in self.versions if version.state == state]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to publish."""
        missing = self.is_over and self.main is None and not self.tags("refused")
        return not (self.tags("waiting") or missing or self.problem)


def finish_publishing(
    folder: str,
    hub: HubConfig | None = None,
    *,
    limit_s: float | None = None,
    retries_refused: bool = False,
) -> PublishReport:
    """Publish everything that a run still has to publish, within ``limit_s`` seconds.

    ``folder`` is the run's path or URI; ``hub`` defaults to the run's settings. Hub outages are
    retried for ``hub.patience_s``. Published versions are not uploaded again; refused ones are
    retried only with ``retries_refused``. Once a finished run is complete on its own repository,
    checkpoints kept only for publishing are deleted.

    Raises:
        InputError: the run does not exist, has no repository, or has checkpoints of another
            format.
    """
    run_folder = Storage.open(folder)
    record, result = read_record(run_folder), run_folder.read_json(RESULT)
    refuse_other_format(record, f"'{run_folder.path}'", is_finished=result is not None)
    config = parse_config(record["config"])
    is_own = hub is None or hub.repo_id == config.hub.repo_id
    config = replace(config, hub=hub or config.hub)
    if config.hub.repo_id is None:
        raise InputError(f"the run in '{folder}' has no hub.repo_id; name one with --repo_id")
    last_step = record.get("steps", sys.maxsize) if result is None else result["steps"]
    mirror = Mirror(run_folder=run_folder, config=config, last_step=last_step)
    if retries_refused:
        mirror.retry_refused()
    problem = _within(limit_s, lambda: _publish_all(mirror, result))
    report = PublishReport(
        repo_id=config.hub.repo_id,
        versions=[version for _, version in sorted(mirror.versions.read().items())],
        main=mirror.versions.main,
        is_over=result is not None,
        problem=problem,
    )
    if report.is_over and report.is_complete and is_own:
        mirror.release()
    return report


def _within(seconds: float | None, action: Callable[[], None]) -> str:
    """Run an action with a time limit; return what went wrong, or an empty string."""
    problems: list[Exception] = []

    def work() -> None:
        try:
            action()
        except Exception as error:  # reported as the problem
            problems.append(error)

    thread = threading.Thread(target=work, name="publishing", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return f"not finished within {seconds:.0f} s"
    return (str(problems[0]) or repr(problems[0])) if problems else ""


def _publish_all(mirror: Mirror, result: dict[str, Any] | None) -> None:
    """Publish all waiting versions and wanted checkpoints, and put the best version on main."""
    hub, is_over = mirror.config.hub, result is not None
    left = len(mirror.find_waiting()) + len(mirror.find_wanted())
    if not left and (not is_over or mirror.versions.main is not None):
        return  # nothing to do; skip contacting the Hub

    @functools.cache
    def repo() -> HubRepo:
        return HubRepo.open(mirror.versions.repo_id, private=hub.private, patience_s=hub.patience_s)

    problems: list[ClientsError] = []
    with tqdm(total=left + 2 * is_over, desc=f"publishing on {hub.repo_id}", disable=None) as bar:
        for version in _remaining_versions(mirror, result, problems):
            bar.set_postfix_str(version.tag)
            mirror.publish(version, repo())
            bar.update()
        best = None if result is None else _last_and_best(mirror, result)
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


def _remaining_versions(
    mirror: Mirror, result: dict[str, Any] | None, problems: list[ClientsError]
) -> Iterator[Version]:
    """Yield the waiting versions, then prepare and yield a version of each wanted checkpoint.

    If the clients do not answer for a checkpoint, skip it and append the error to ``problems``.
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


def _last_and_best(mirror: Mirror, result: dict[str, Any]) -> Version:
    """Prepare the last and the best version; return the one that belongs on main."""
    versions = mirror.read_versions()
    last = versions.get(result["steps"]) or mirror.builder.from_export(result)
    best = best_step(result, best_by=mirror.config.checkpoint.keep_best_by)
    if best == last.step or best in versions:
        return versions.get(best, last)
    name = best_name(result)
    found = read_checkpoint(mirror.run_folder, name)
    version = None if found is None else mirror.make_ready(found, result=result)
    if version is None:
        logger.warning("the best checkpoint, %s, is not intact; using the last one instead", name)
    return version or last
