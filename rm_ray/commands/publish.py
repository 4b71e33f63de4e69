"""The command line of publishing, and what it says."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rm_ray.config.train_config import HubConfig, TrainConfig
from rm_ray.errors import INTERRUPTED, InputError
from rm_ray.logs import log_to_stdout
from rm_ray.runs.layout import read_record
from rm_ray.storage import Storage, below

if TYPE_CHECKING:  # imports torch, which --help does without
    from rm_ray.publish.finish import PublishReport

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/publish.py"


@dataclass(frozen=True, kw_only=True)
class PublishCommand:
    """Publish a run's models on the Hugging Face Hub, or go on with it.

    Each is compared with training through plain transformers, described by a card, uploaded to a
    branch, compared by its checksums, and tagged; the best model of a finished run is then put on
    main in one commit. So neither a tag nor main is ever half a model. Give the command again after
    any interruption, from any machine that reaches the run's folder; what is there is not sent
    again: ``HF_TOKEN=... python jobs/publish.py ~/rm_ray/RUN --repo_id me/model``.
    """

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder or URI: run.storage_path/run.name."""

    repo_id: str | None = None
    """The repository, as in 'me/model', created where it is missing; none: the run's own."""

    private: bool | None = None
    """Whether a repository that is created is private; none: the run's hub.private."""

    revision_prefix: str | None = None
    """What tags begin with, where several runs share a repository; none: the run's own."""

    patience_s: float | None = None
    """Seconds for which a Hub that is away is asked again; none: the run's own."""


def main_publish(arguments: Sequence[str]) -> int:
    """Publish a run; return the exit status."""
    log_to_stdout()
    options = tyro.cli(PublishCommand, prog=PROGRAM, args=list(arguments), use_underscores=True)
    try:
        hub = _choose_hub(options)
        from rm_ray.publish.finish import finish_publishing
        from rm_ray.publish.registration import register_models

        published = finish_publishing(options.run, hub, retries_refused=True)
        is_registered = register_models(options.run, hub.repo_id)
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logger.info("interrupted; the same command goes on")
        return INTERRUPTED
    logger.info("%s", publish_summary(published, options.run, hub))
    is_done = published.is_whole and not published.tags("refused") and is_registered
    return 0 if is_done else 1


def publish_end(config: TrainConfig) -> int:
    """Publish and register what a run that has just ended has left; return the exit status.

    That is 0 also where something is left: the run itself is finished.
    """
    folder, hub = below(config.run.storage_path, config.run.name), config.hub
    again = "the same command again" if hub.repo_id is None else _again(folder, hub)
    try:
        if hub.repo_id is not None:
            from rm_ray.publish.finish import finish_publishing

            published = finish_publishing(folder, hub, limit_s=hub.patience_s)
            logger.info("%s", publish_summary(published, folder, hub))
        if config.mlflow.registered_model is not None:
            from rm_ray.publish.registration import register_models

            if not register_models(folder, hub.repo_id):
                logger.warning("to register it: %s", again)
    except (InputError, OSError) as error:
        logger.warning("nothing more is published: %s. To go on: %s", error, again)
    except KeyboardInterrupt:
        logger.info("interrupted; this goes on: %s", again)
        return INTERRUPTED
    return 0


def publish_summary(published: PublishReport, folder: str, hub: HubConfig) -> str:
    """Return what is on the Hub, what is not, and the command that goes on."""
    done, waiting, refused = (published.tags(s) for s in ("published", "waiting", "refused"))
    lines = [f"  published         {', '.join(done) or 'nothing'} on {published.repo_id}"]
    if published.main:
        lines.append(f"  main              {published.main}")
    if not published.is_over:
        lines.append(f"  the run           is not finished; hub.every is '{hub.every}'")
    if refused:
        lines.append(f"  refused           {', '.join(refused)}: the reasons are above")
    if not published.is_whole:
        lines.append(f"  not published     {', '.join(waiting) or 'main'}: {published.problem}")
    if refused or not published.is_whole:
        lines.append(f"  to go on          {_again(folder, hub)}")
    return "\n".join(lines)


def _again(folder: str, hub: HubConfig) -> str:
    """Return the command that goes on, in the folder of this project."""
    place = folder if "://" in folder else str(Path(folder).expanduser().resolve())
    words = [*PROGRAM.split(), place, "--repo_id", str(hub.repo_id)]
    words += ["--private", str(hub.private)]
    if hub.revision_prefix:
        words += ["--revision_prefix", hub.revision_prefix]
    return shlex.join(words)


def _choose_hub(options: PublishCommand) -> HubConfig:
    """Return the run's own hub section, with what is given in its place."""
    own: dict[str, Any] = read_record(Storage.open(options.run))["config"]["hub"]
    given = {n: v for n, v in asdict(options).items() if n != "run" and v is not None}
    return HubConfig(**{**own, **given})
