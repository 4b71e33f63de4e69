"""The driver: config -> token caches, plan and TorchTrainer -> fit() -> result.json."""

from __future__ import annotations

import logging
import platform
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer
from transformers import PreTrainedTokenizerBase

from rm_ray.config import TrainConfig, flatten
from rm_ray.data.plan import Plan, PlanSettings, Steps
from rm_ray.data.stream import PerRankStreams, PlannedPairs
from rm_ray.data.token_cache import TokenCache, build_token_cache
from rm_ray.data.token_table import open_table
from rm_ray.data.tokenization import ends_assistant_turn, load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.export import check_export
from rm_ray.model.reward_model import check_architecture
from rm_ray.storage import Storage
from rm_ray.tracking.history import History
from rm_ray.tracking.mlflow_run import MlflowTarget, finish_run, open_run
from rm_ray.tracking.plots import plot_run
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.progress import BoardReader, start_board
from rm_ray.train.session import fit_to_cluster, ray_cluster
from rm_ray.train.worker import TrainJob, train_loop_per_worker

logger = logging.getLogger(__name__)

RUN, RESULT, HISTORY, PLOTS = "run.json", "result.json", "history.jsonl", "plots"

MAX_WORKER_FAILURES = 3
"""Restarts of the worker group by Ray before the run ends with the error."""

_MAY_CHANGE = ("cluster.num_workers", "cluster.use_gpu", "cluster.cpus_per_worker")
"""Fields that a resumed run may change: what trains, not what is trained."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything known before a worker starts."""

    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase
    storage: Storage
    train: TokenCache
    held_out: TokenCache | None
    plan: Plan
    eval_steps: Steps | None

    @property
    def run(self) -> Storage:
        """The run's folder."""
        return self.storage.folder(self.config.run.name)

    @property
    def mlflow(self) -> MlflowTarget:
        """Where metrics go: an SQLite file in the storage if nothing is set."""
        uri = self.config.mlflow.tracking_uri
        if uri is None:
            uri = f"sqlite:///{self.storage.join('mlflow.db')}"
        return MlflowTarget(tracking_uri=uri, experiment=self.config.mlflow.experiment)

    @property
    def identity(self) -> dict[str, str]:
        """What a resumed run must share with the one it goes on with."""
        return {"data": self.train.key, "plan": self.plan.fingerprint()}

    @property
    def refused(self) -> list[dict[str, Any]]:
        """Refused rows, counted by set and reason."""
        caches = {"train": self.train, "eval": self.held_out}
        return [
            {"set": name, "reason": reason, "rows": count}
            for name, cache in caches.items()
            if cache is not None
            for reason, count in cache.refused.items()
        ]


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """Prepare everything, train nothing; return what a run would do."""
    with ray_cluster(config.cluster):
        return describe(prepare(config))


def train(config: TrainConfig) -> dict[str, Any]:
    """Train to the end, or go on where the run of this name stopped; return its ``result.json``.

    Raises:
        InputError: something given cannot be trained on; nothing has been trained.
        TrainingError: training began and could not go on.
    """
    storage = Storage.open(config.run.storage_path)
    storage.check_writable()
    run = storage.folder(config.run.name)
    refuse_other_config(run, config)
    if (result := run.read_json(RESULT)) is not None:
        logger.info("run '%s' is finished; give another --run.name to train anew", config.run.name)
        return dict(result)
    with ray_cluster(config.cluster):
        prepared = prepare(config)
        result = fit(prepared)
    return finish(prepared, result)


class TrainingError(RuntimeError):
    """Training began and could not go on; the run's checkpoints are as they were."""


def refuse_other_config(run: Storage, config: TrainConfig) -> None:
    """Compare with what the run of this name began with.

    Raises:
        InputError: naming each field that differs, with both values.
    """
    started = run.read_json(RUN)
    if started is None:
        return
    before, now = flatten(started["config"]), flatten(_as_json(config))
    differing = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in _MAY_CHANGE
    ]
    if differing:
        raise InputError(
            f"run '{config.run.name}' in {run.path} began with another configuration: "
            f"{'; '.join(differing)}. Resume it with the same one, or choose another --run.name"
        )


def _as_json(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as they look after a round trip through JSON."""
    settings = config.to_dict()
    for section in settings.values():
        for name, value in section.items():
            section[name] = list(value) if isinstance(value, tuple) else value
    return settings


def prepare(config: TrainConfig) -> Prepared:
    """Check everything that can be checked, and tokenise what has not been yet.

    Raises:
        InputError: something given cannot be trained on.
    """
    config = replace(config, cluster=fit_to_cluster(config.cluster))
    if config.model.liger == "on" and not config.cluster.use_gpu:
        raise InputError(
            "model.liger is 'on', but Liger's Triton kernels need a GPU and the workers have none; "
            "use 'auto' or 'off'"
        )
    storage = Storage.open(config.run.storage_path)
    storage.check_writable()
    if config.mlflow.tracking_uri is None and not storage.is_local:
        raise InputError(
            f"mlflow.tracking_uri is not set, and its default, an SQLite file in run.storage_path, "
            f"cannot be kept at '{config.run.storage_path}'; name an MLflow server"
        )
    tokenizer = load_tokenizer(
        config.model.tokenizer or _tokenizer_of(config.model.name_or_path),
        revision=config.model.revision if config.model.tokenizer is None else None,
        chat_template=config.data.chat_template,
    )
    if not ends_assistant_turn(tokenizer):
        logger.warning(
            "the chat template ends the assistant's turn without an end-of-turn or EOS token: the "
            "reward is read from a token that looks the same in the middle of a response"
        )
    check_export(check_architecture(config.model, tokenizer), tokenizer)
    train_cache = _cache(config, "train", tokenizer, storage)
    held_out = _cache(config, "eval", tokenizer, storage) if config.data.eval else None
    batch, optimizer = config.batch, config.optimizer
    settings = PlanSettings(
        global_batch_size=batch.global_batch_size,
        tokens_per_micro_batch=batch.tokens_per_micro_batch,
        seed=config.run.seed,
        epochs=optimizer.epochs,
        max_episodes=optimizer.max_episodes,
    )
    return Prepared(
        config=config,
        tokenizer=tokenizer,
        storage=storage,
        train=train_cache,
        held_out=held_out,
        plan=Plan(lengths=open_table(train_cache.parts).lengths, settings=settings),
        eval_steps=(
            Steps(num_pairs=held_out.num_pairs, settings=_in_order(settings)) if held_out else None
        ),
    )


def _tokenizer_of(model: str) -> str:
    if model.endswith(".json"):
        raise InputError(
            f"model.name_or_path '{model}' is a config without a tokenizer; name one with "
            "model.tokenizer"
        )
    return model


def _in_order(settings: PlanSettings) -> PlanSettings:
    """Return the plan of one pass over held-out pairs."""
    return replace(settings, epochs=1, max_episodes=None, shuffle=False)


def _cache(
    config: TrainConfig, name: str, tokenizer: PreTrainedTokenizerBase, storage: Storage
) -> TokenCache:
    specs = config.data.train if name == "train" else config.data.eval
    cache = build_token_cache(specs, config.data, tokenizer, seed=config.run.seed, storage=storage)
    rows = cache.num_pairs + cache.num_refused
    logger.info("%s pairs: %s of %s rows", name, f"{cache.num_pairs:,}", f"{rows:,}")
    for reason, count in cache.refused.items():
        logger.info("  refused %6d  %s", count, reason)
    if cache.refused:
        logger.info("  refused rows are in %s", cache.quarantine)
    reasons = ", ".join(f"{count} {reason}" for reason, count in cache.refused.items())
    if cache.num_pairs == 0:
        raise InputError(
            f"data.{name}: nothing is left to train on; all {rows} rows were refused ({reasons}). "
            f"See {cache.quarantine}"
        )
    if cache.num_refused > config.data.max_refused_fraction * rows:
        raise InputError(
            f"data.{name}: {cache.num_refused} of {rows} rows were refused ({reasons}), more than "
            f"data.max_refused_fraction {config.data.max_refused_fraction} allows. See "
            f"{cache.quarantine}; mend the data, or raise the fraction"
        )
    return cache


def describe(prepared: Prepared) -> dict[str, Any]:
    """Return what a run would do: resolved settings, counts, steps, learning-rate end points."""
    steps = prepared.plan.steps
    rate = learning_rate_schedule(prepared.config.optimizer, steps.total)
    warmup = min(prepared.config.optimizer.warmup_steps, steps.total)
    return {
        "config": _as_json(prepared.config),
        "train_pairs": prepared.train.num_pairs,
        "train_pairs_by_source": prepared.train.pairs_by_source,
        "train_tokens": prepared.train.num_tokens,
        "eval_pairs": prepared.held_out.num_pairs if prepared.held_out else 0,
        "refused": prepared.refused,
        "steps": steps.total,
        "steps_per_epoch": steps.per_epoch,
        "episodes": steps.num_episodes,
        "learning_rate": {
            "first_step": rate(0),
            "after_warmup": rate(warmup),
            "last_step": rate(steps.total - 1),
        },
    }


def fit(prepared: Prepared) -> ray.train.Result:
    """Run the workers until the last step is trained and the model is exported."""
    config, run = prepared.config, prepared.run
    key = f"{run.path}@{prepared.train.data_hash[:12]}"
    run_id = open_run(
        prepared.mlflow,
        name=config.run.name,
        key=key,
        params={**flatten(_as_json(config)), "data_hash": prepared.train.data_hash},
        tags=versions(),
    )
    started = run.read_json(RUN)
    if started is None:
        started = {
            "config": _as_json(config),
            "identity": prepared.identity,
            "mlflow_run_id": run_id,
            "data": describe_data(prepared),
            "versions": versions(),
        }
        run.write_json(RUN, started)
    refuse_other_data(prepared, started)
    board = start_board()
    job = TrainJob(
        config=config,
        tokenizer=prepared.tokenizer,
        run=run,
        steps=prepared.plan.steps,
        eval_steps=prepared.eval_steps,
        use_gpu=bool(config.cluster.use_gpu),
        plan_fingerprint=prepared.identity["plan"],
        mlflow=prepared.mlflow,
        mlflow_run_id=run_id,
        board=board,
    )
    workers = f"{config.cluster.num_workers} worker{'s' * (config.cluster.num_workers != 1)}"
    logger.info("starting %s for %d steps", workers, prepared.plan.steps.total)
    with BoardReader(board):
        try:
            return _trainer(prepared, job).fit()
        except ray.train.TrainingFailedError as error:
            raise _explain(error) from error


def refuse_other_data(prepared: Prepared, started: dict[str, Any]) -> None:
    """Compare pairs, tokens and shards with those that the run of this name began with.

    Raises:
        InputError: saying what differs.
    """
    cluster, before = prepared.config.cluster, started["config"]["cluster"]
    if prepared.identity != started["identity"]:
        raise InputError(
            f"run '{prepared.config.run.name}' began with other training pairs, tokenizer or chat "
            "template than those of now, though its configuration is the same; restore them, or "
            "choose another --run.name"
        )
    if cluster.zero_stage > 0 and cluster.num_workers != before["num_workers"]:
        raise InputError(
            f"cluster.num_workers is {cluster.num_workers}, but the ZeRO-{cluster.zero_stage} "
            f"state of run '{prepared.config.run.name}' is sharded over {before['num_workers']}; "
            "resume with that many"
        )


def describe_data(prepared: Prepared) -> dict[str, Any]:
    """Return hashes and counts of the pairs, for the run's record."""
    sets = {"train": prepared.train, "eval": prepared.held_out}
    return {
        name: {
            "data_hash": cache.data_hash,
            "pairs": cache.num_pairs,
            "pairs_by_source": cache.pairs_by_source,
            "tokens": cache.num_tokens,
            "refused": cache.refused,
            "quarantine": cache.quarantine,
        }
        for name, cache in sets.items()
        if cache is not None
    }


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    packages = ("torch", "ray", "transformers", "accelerate", "deepspeed", "liger-kernel")
    found = {f"version.{name}": version(name) for name in packages}
    return {**found, "version.python": platform.python_version()}


def _trainer(prepared: Prepared, job: TrainJob) -> TorchTrainer:
    config, storage = prepared.config, prepared.storage
    streams = {"train": PlannedPairs(cache=prepared.train.parts, settings=prepared.plan.settings)}
    if prepared.held_out is not None:
        settings = _in_order(prepared.plan.settings)
        streams["eval"] = PlannedPairs(cache=prepared.held_out.parts, settings=settings)
    metric = config.checkpoint.keep_best_by
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.cluster.num_workers,
            use_gpu=bool(config.cluster.use_gpu),
            resources_per_worker={
                "CPU": config.cluster.cpus_per_worker,
                **({"GPU": 1} if config.cluster.use_gpu else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=config.run.name,
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=MAX_WORKER_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=config.checkpoint.keep,
                checkpoint_score_attribute=metric,
                checkpoint_score_order=score_order(metric),
            ),
        ),
        datasets=streams,
        dataset_config=PerRankStreams(),
    )


def score_order(metric: str | None) -> str:
    """Return whether more or less of a metric is better."""
    return "min" if metric is not None and metric.endswith("/loss") else "max"


def _explain(error: ray.train.TrainingFailedError) -> Exception:
    """Return the user's error where there is one inside, else what failed and where."""
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, InputError):
                return InputError(str(cause))
            cause = getattr(cause, "cause", None) or cause.__cause__
    return TrainingError(str(error))


def finish(prepared: Prepared, fitted: ray.train.Result) -> dict[str, Any]:
    """Write history, plots and ``result.json``, and complete the MLflow run.

    Raises:
        TrainingError: the loss was not finite; names the pairs.
    """
    config, run = prepared.config, prepared.run
    outcome = dict(fitted.return_value or {})
    if "not_finite" in outcome:
        raise TrainingError(_describe_not_finite(prepared, outcome["not_finite"]))
    history = History.from_json_lines(outcome.pop("history").splitlines())
    run_id = run.read_json(RUN)["mlflow_run_id"]
    with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as folder:
        figures = plot_run(history.records, f"{config.run.name}", Path(folder))
        run.upload(Path(folder), PLOTS)
        if run_id is not None:
            finish_run(
                prepared.mlflow,
                run_id,
                config=_as_json(config),
                refused=prepared.refused,
                figures=figures,
            )
    run.write_text(HISTORY, history.to_json_lines())
    result = {
        "name": config.run.name,
        **outcome,
        "train_pairs": prepared.train.num_pairs,
        "eval_pairs": prepared.held_out.num_pairs if prepared.held_out else 0,
        "refused": prepared.refused,
        "workers": config.cluster.num_workers,
        "mlflow_run_id": run_id,
        "mlflow_tracking_uri": prepared.mlflow.tracking_uri,
        "mlflow_view": prepared.mlflow.view_command,
        "best_checkpoint": _best(fitted, config.checkpoint.keep_best_by),
        "last_checkpoint": fitted.checkpoint.path if fitted.checkpoint else None,
        "plots": run.join(PLOTS),
        "folder": run.path,
    }
    run.write_json(RESULT, result)
    return result


def _best(fitted: ray.train.Result, metric: str | None) -> str | None:
    """Return the checkpoint with the best metric; the last one where none is set."""
    if metric is None or not fitted.best_checkpoints:
        return fitted.checkpoint.path if fitted.checkpoint else None
    pick = min if score_order(metric) == "min" else max
    checkpoint, _ = pick(fitted.best_checkpoints, key=lambda item: item[1][metric])
    return str(checkpoint.path)


def _describe_not_finite(prepared: Prepared, found: dict[str, Any]) -> str:
    table = open_table(prepared.train.parts)
    ids = [table.pair_id(pair) for pair in found["pairs"]]
    shown = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
    return (
        f"the loss or gradient of step {found['step']} is not a finite number, so training stopped "
        f"before it could spoil the weights. Pairs at fault: {shown}. Look at them, or lower "
        "optimizer.learning_rate; the checkpoints before it are kept"
    )
