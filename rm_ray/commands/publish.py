"""The command that publishes a run's models, and its summary."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rm_ray.commands.exits import RERUN, ExitStatus, run_command
from rm_ray.config.sections.hub import HubConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.runs.layout import read_record
from rm_ray.storage import Storage, below

if TYPE_CHECKING:  # keep --help fast: this imports torch
    from rm_ray.publish.finish import PublishReport

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/publish.py"


@dataclass(frozen=True, kw_only=True)
class PublishCommand:
    """Publish a run's models on the Hugging Face Hub, or resume publishing them.

    Each model is checked against training with plain transformers, gets a model card, is uploaded
    to a branch, verified by checksum, and tagged. The best model of a finished run then goes to
    main in one commit, so neither a tag nor main ever holds half a model. After an interruption,
    rerun the command from any machine that reaches the run's folder; nothing is uploaded twice:
    ``HF_TOKEN=... python jobs/publish.py ~/rm_ray/RUN --repo_id me/model``.
    """

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder or URI: run.storage_path/run.name."""

    repo_id: str | None = None
    """Repository such as 'me/model', created if missing; by default the run's hub.repo_id."""

    private: bool | None = None
    """Whether to create the repository as private; by default the run's hub.private."""

    revision_prefix: str | None = None
    """Prefix of the tags if several runs share a repository; by default hub.revision_prefix."""

    patience_s: float | None = None
    """Seconds to retry while the Hub does not answer; by default the run's hub.patience_s."""


def main(arguments: Sequence[str]) -> int:
    """Publish a run; return the exit status."""
    return run_command(_publish, arguments, on_interrupt=RERUN)


def _publish(arguments: Sequence[str]) -> int:
    options = tyro.cli(PublishCommand, prog=PROGRAM, args=list(arguments), use_underscores=True)
    hub = _choose_hub(options)
    from rm_ray.publish.finish import finish_publishing
    from rm_ray.publish.registration import register_models

    published = finish_publishing(options.run, hub, retries_refused=True)
    is_registered = register_models(options.run, hub.repo_id)
    logger.info("%s", publish_summary(published, options.run, hub))
    is_done = published.is_complete and not published.tags("refused") and is_registered
    return ExitStatus.DONE if is_done else ExitStatus.FAILED


def publish_end(config: TrainConfig) -> int:
    """Publish and register the rest of a run that has just finished; return the exit status.

    The status is 0 even if something stays unpublished, because the run itself is finished.
    """
    folder, hub = below(config.run.storage_path, config.run.name), config.hub
    resume = "rerun the same command" if hub.repo_id is None else _resume_command(folder, hub)
    try:
        if hub.repo_id is not None:
            from rm_ray.publish.finish import finish_publishing

            published = finish_publishing(folder, hub, limit_s=hub.patience_s)
            logger.info("%s", publish_summary(published, folder, hub))
        if config.mlflow.registered_model is not None:
            from rm_ray.publish.registration import register_models

            if not register_models(folder, hub.repo_id):
                logger.warning("to register it: %s", resume)
    except (InputError, OSError) as error:
        logger.warning("publishing stopped: %s. To resume: %s", error, resume)
    except KeyboardInterrupt:
        logger.info("interrupted; to resume: %s", resume)
        return ExitStatus.INTERRUPTED
    return ExitStatus.DONE


def publish_summary(published: PublishReport, folder: str, hub: HubConfig) -> str:
    """Summarize the published, pending and refused versions, and how to resume."""
    done, waiting, refused = (published.tags(s) for s in ("published", "waiting", "refused"))
    lines = [f"  published         {', '.join(done) or 'nothing'} on {published.repo_id}"]
    if published.main:
        lines.append(f"  main              {published.main}")
    if not published.is_over:
        lines.append(f"  the run           is not finished; hub.every is '{hub.every}'")
    if refused:
        lines.append(f"  refused           {', '.join(refused)}: the reasons are above")
    if not published.is_complete:
        lines.append(f"  not published     {', '.join(waiting) or 'main'}: {published.problem}")
    if refused or not published.is_complete:
        lines.append(f"  to resume         {_resume_command(folder, hub)}")
    return "\n".join(lines)


def _resume_command(folder: str, hub: HubConfig) -> str:
    """Return the command that resumes publishing, for the project's root folder."""
    place = folder if "://" in folder else str(Path(folder).expanduser().resolve())
    words = [*PROGRAM.split(), place, "--repo_id", str(hub.repo_id)]
    words += ["--private", str(hub.private)]
    if hub.revision_prefix:
        words += ["--revision_prefix", hub.revision_prefix]
    return shlex.join(words)


def _choose_hub(options: PublishCommand) -> HubConfig:
    """Return the run's hub section, overridden by the given options."""
    own: dict[str, Any] = read_record(Storage.open(options.run))["config"]["hub"]
    given = {n: v for n, v in asdict(options).items() if n != "run" and v is not None}
    return HubConfig(**{**own, **given})
