"""Folders as runs leave them, made in this process: checkpoints, rewards, metrics, the export."""

import json
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import builtin_table

from rm_ray.batches.collate import Collator
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.hub import HubConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.evaluation.reports.group_report import group_report
from rm_ray.evaluation.reward_statistics import keep_statistics
from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.evaluation.scored_pairs import ScoredPairs
from rm_ray.model.build import build_reward_model
from rm_ray.model.export import export_model, export_skeleton
from rm_ray.runs.checkpoint_names import checkpoint_name
from rm_ray.runs.history import History, Record
from rm_ray.runs.layout import FORMAT
from rm_ray.runs.manifest import MANIFEST, Manifest, describe_file
from rm_ray.storage import Storage
from rm_ray.train.engine import Engine
from rm_ray.train.progress import Progress
from rm_ray.train.reference_rewards import choose_reference_groups
from rm_ray.train.slices import list_extents, write_slices


class MadeRun:
    """A run of the built-in model whose weights change at random from step to step."""

    def __init__(self, folder: Path, config: TrainConfig, *, last_step: int) -> None:
        self.config, self.last_step = config, last_step
        self.storage = Storage.open(str(folder / "storage"))
        self.run = self.storage.folder(config.run.name)
        table, self.tokenizer = builtin_table(folder / "table", 24)
        self.model = build_reward_model(config.model, self.tokenizer, seed=0)
        self.engine = Engine(
            self.model, OptimizerConfig(), ClusterConfig(), dtype=torch.float32, use_gpu=False
        )
        self.collator = Collator(
            layout="packed",
            kernel="grouped",
            pad_token_id=self.tokenizer.pad_token_id,
            device=torch.device("cpu"),
        )
        self.reference_groups = choose_reference_groups(table, self.tokenizer)
        self.history = History()
        skeleton = folder / "skeleton"
        export_skeleton(self.model, self.tokenizer, skeleton, dtype=torch.float32)
        self.run.upload(skeleton, "skeleton")
        described = {
            "data_hash": "0" * 64,
            "pairs_by_source": {"colours": 20, "numbers": 4},
            "refused": {"empty": 2},
        }
        record = {
            "format": FORMAT,
            "key": uuid.uuid4().hex,
            "config": config.to_json(),
            "data": {"train": described, "eval": {**described, "refused": {}}},
            "steps": last_step,
            "versions": {"version.torch": torch.__version__},
        }
        self.run.write_json("run.json", record)

    @property
    def folder(self) -> str:
        """The run's folder."""
        return self.run.path

    def advance(self, step: int) -> dict[str, float]:
        """Change the weights as a step does; return the metrics of then."""
        with torch.no_grad():
            generator = torch.Generator().manual_seed(step)
            for parameter in self.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
        loss = abs(step - 20) / 20  # the best is step 20
        metrics = {"episode": 8.0 * step, "train/rm/accuracy": 0.75, "eval/rm/loss": loss}
        self.history.add(
            Record(step=step, kind="train", episode=8 * step, hours=step / 60, metrics=metrics)
        )
        groups = ScoredGroups.of(_scored(step))
        report = group_report(groups, ["colours"] * 6 + ["numbers"] * 2, [])
        self.run.write_json(f"evaluations/step-{step:08d}.json", {"step": step, **report})
        return metrics

    def save(self, step: int, *, attempt: int = 1) -> Path:
        """Train to a step and leave a checkpoint."""
        metrics = self.advance(step)
        folder = Path(self.folder) / checkpoint_name(step, attempt)
        folder.mkdir(parents=True)
        write_slices(self.engine.slices(), folder / "slices-00000.safetensors")
        contents: dict[str, Any] = {
            "probes.json": self.reference_groups.score(
                self.engine, self.collator, tokens_per_pass=16_384
            ),
            "state.json": {"progress": asdict(Progress(step=step)), "mlflow_run_id": "mlflow-id"},
        }
        for name, value in contents.items():
            (folder / name).write_text(json.dumps(value))
        (folder / "history.jsonl").write_text(self.history.to_json_lines())
        files = {path.name: describe_file(path) for path in folder.iterdir()}
        slices = "slices-00000.safetensors"
        files[slices]["extents"] = list_extents(folder / slices)
        manifest = Manifest(step=step, plan_fingerprint="plan", metrics=metrics, files=files)
        (folder / MANIFEST).write_text(manifest.to_json())
        return folder

    def finish(self, *, best_step: int | None = None) -> None:
        """End as a finished run does, after its last checkpoint."""
        metrics = self.history.records[-1].metrics
        export = Path(self.folder) / "export"
        weights = self.engine.weights()
        export_model(self.model, weights, self.tokenizer, export, dtype=torch.float32)
        keep_statistics(self.run, self.last_step, self.run.folder("export"))
        self.run.write_json(
            "probes.json",
            self.reference_groups.score(self.engine, self.collator, tokens_per_pass=16_384),
        )
        self.run.write_text("history.jsonl", self.history.to_json_lines())
        result = {
            "name": self.config.run.name,
            "steps": self.last_step,
            "metrics": metrics,
            "best_checkpoint": self.run.join(checkpoint_name(best_step or self.last_step, 1)),
            "mlflow_run_id": "mlflow-id",
        }
        self.run.write_json("result.json", result)


def make_run(folder: Path, *, last_step: int = 40, **hub: Any) -> MadeRun:
    """Begin a run that is published as the fields of ``hub`` say."""
    config = TrainConfig()
    config = replace(
        config,
        run=replace(config.run, name="made", storage_path=str(folder / "storage")),
        checkpoint=replace(config.checkpoint, keep_best_by="eval/rm/loss"),
        hub=HubConfig(**{"repo_id": "someone/rewards", **hub}),
    )
    return MadeRun(folder, config, last_step=last_step)


def _scored(step: int) -> ScoredPairs:
    rng = np.random.default_rng(step)
    return ScoredPairs(
        chosen_rewards=rng.normal(1, 1, 8),
        rejected_rewards=rng.normal(0, 1, 8),
        margins=np.zeros(8),
        chosen_tokens=rng.integers(5, 50, 8),
        rejected_tokens=rng.integers(5, 50, 8),
    )
