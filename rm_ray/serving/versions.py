"""The model version that ``--model`` means now: a folder, a run's best model, a Hub commit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rm_ray.config.recipe import parse_config
from rm_ray.config.scoring import RewardScale, ScoringModel, ScoringModels
from rm_ray.config.serving import Server
from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import has_statistics
from rm_ray.local_home import local_home
from rm_ray.publish.access import find_commit
from rm_ray.publish.version_builder import VersionBuilder
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.late_evaluations import add_late_metrics, read_records
from rm_ray.runs.layout import EXPORT, RESULT, RUN, read_record, refuse_other_format
from rm_ray.runs.manifest import find_fault, find_intact, read_checkpoint
from rm_ray.runs.retention import best_step, rank_by
from rm_ray.runs.versions import Versions, version_name
from rm_ray.scoring.scorer import model_name
from rm_ray.storage import Storage


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A version of a model that does not change any more, unless it is a plain folder."""

    name: str
    """The name that answers give: ``run@step-00000020``, ``me/model@0123456789ab``, a folder's."""

    place: str
    """A folder or URI, or a name on the Hub."""

    revision: str | None = None
    """Commit on the Hub."""

    checkpoint: str = ""
    """Checkpoint of the run in ``place`` that is exported first."""

    is_followable: bool = False
    """Whether there may be a newer version in the same place."""

    @contextmanager
    def files(self) -> Iterator[str]:
        """Yield a folder with the model, or its name on the Hub.

        Raises:
            InputError: the checkpoint is damaged or gone.
        """
        if self.checkpoint:
            with tempfile.TemporaryDirectory(dir=_scratch()) as folder:
                _export(Storage.open(self.place), self.checkpoint, Path(folder))
                yield folder
        elif "://" in self.place:
            with Storage.open(self.place).local_folder() as folder:
                yield str(folder)
        else:
            yield self.place


def find_version(model: ScoringModel) -> ModelVersion:
    """Return the newest version of a model.

    In a run's folder this is the best model by its ``checkpoint.keep_best_by``, or the last one.

    Raises:
        InputError: there is none, or the Hub refuses it.
        HubAwayError: the Hub does not answer.
    """
    name = model_name(model.model, model.revision)
    if "://" in model.model or name.kind == "folder":
        folder = Storage.open(model.model)
        if folder.exists(RUN):
            return _best_of_run(folder, model.model, model.rewards)
        return ModelVersion(name=folder.path.rstrip("/").rpartition("/")[2], place=model.model)
    if name.kind != "hub":
        raise InputError(
            f"{name.text} is not a trained reward model; name a folder that a run exported, a "
            "run's folder, or a reward model on the Hugging Face Hub"
        )
    commit = find_commit(model.model, revision=model.revision)
    return ModelVersion(
        name=f"{model.model}@{commit[:12]}",
        place=model.model,
        revision=commit,
        is_followable=True,
    )


def unchecked_version(model: ScoringModel) -> ModelVersion:
    """Return the version in the Hub's cache on this machine, for when the Hub does not answer."""
    return ModelVersion(
        name=model.model, place=model.model, revision=model.revision, is_followable=True
    )


def refuse_following_several(model: ScoringModels, server: Server) -> None:
    """Refuse to follow several models, of which one would change before the others.

    Raises:
        InputError: that is asked.
    """
    if server.follow and len(model.model) > 1:
        raise InputError(
            f"--follow takes over newer versions of one model, and --model names "
            f"{len(model.model)}, whose mean would change its meaning with each; leave --follow "
            "out, and start again to serve newer versions"
        )


def require_followable(version: ModelVersion, model: ScoringModel) -> None:
    """Refuse to follow a plain folder, whose files may change one by one.

    Raises:
        InputError: it is one.
    """
    if not version.is_followable:
        raise InputError(
            f"--follow takes a run's folder (with {RUN}) or a name on the Hugging Face Hub, and "
            f"--model '{model.model}' is a plain folder, whose files may change one by one; name "
            "the run, or leave --follow out"
        )


def _best_of_run(folder: Storage, place: str, rewards: RewardScale) -> ModelVersion:
    record, result = read_record(folder), folder.read_json(RESULT)
    refuse_other_format(record, f"'{folder.path}'", is_finished=True)
    best_by = record["config"].get("checkpoint", {}).get("keep_best_by")
    run = str(record["config"]["run"]["name"])
    last = None if result is None else int(result["steps"])
    best = None if result is None else best_step(result, best_by=best_by)
    intact = [] if best == last is not None else [*find_intact(folder, list_checkpoints(folder))]
    needs = ""
    if rewards == "standardized":  # by the statistics of an evaluation on data.eval
        intact = [one for one in intact if has_statistics(folder, one.manifest.step)]
        needs = " that was evaluated on data.eval, as --rewards standardized needs"
    if intact:  # newest first
        best_first = intact
        if best_by is not None:
            best_first = rank_by(add_late_metrics(intact, read_records(folder)), best_by)
        return ModelVersion(
            name=f"{run}@{version_name(best_first[0].manifest.step)}",
            place=place,
            checkpoint=best_first[0].name,
            is_followable=True,
        )
    if last is None:
        raise InputError(
            f"--model '{place}' is a run without a whole checkpoint yet{needs}; wait for its first "
            "one (checkpoint.every_steps), then start again"
        )
    export = f"{place.rstrip('/')}/{EXPORT}"
    return ModelVersion(name=f"{run}@{version_name(last)}", place=export, is_followable=True)


def _export(run_folder: Storage, name: str, folder: Path) -> None:
    """Write the model of an intact checkpoint into a local folder."""
    checkpoint = read_checkpoint(run_folder, name)
    fault = find_fault(run_folder, name, checkpoint.manifest if checkpoint else None)
    if checkpoint is None or fault is not None:
        raise InputError(f"checkpoint {run_folder.join(name)} cannot be served: {fault}")
    VersionBuilder(
        run_folder=run_folder,
        config=parse_config(read_record(run_folder)["config"]),
        versions=Versions(run_folder=run_folder, repo_id=""),  # nothing is published
    ).export(checkpoint, folder)


def _scratch() -> Path:
    home = local_home() / "serving"
    home.mkdir(exist_ok=True)
    return home
