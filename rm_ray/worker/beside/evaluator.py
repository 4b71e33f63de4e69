"""A checkpoint's weights -> the figures that the workers would have found at its step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from rm_ray.batches.collate import Collator
from rm_ray.batches.loading import LoadedMicroBatch, load_step
from rm_ray.batches.read_ahead import read_ahead
from rm_ray.batches.stream import PlannedGroups
from rm_ray.data.cache.token_table import open_table
from rm_ray.evaluation.held_out import Evaluation, evaluate_held_out
from rm_ray.evaluation.held_out_set import HeldOutSet
from rm_ray.model.attention import choose_kernel, head_size
from rm_ray.model.liger import apply_liger
from rm_ray.objectives.build import build_objective
from rm_ray.objectives.losses import Objective
from rm_ray.runs.manifest import Checkpoint
from rm_ray.train.determinism import ask_for_determinism
from rm_ray.train.engine import Engine
from rm_ray.train.placement import place_empty, place_whole
from rm_ray.train.slices import stream_weights
from rm_ray.worker.build import build_model, choose_liger, prepare_torch
from rm_ray.worker.evaluation import add_averages
from rm_ray.worker.job import TrainJob


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A reward model on one device that takes the weights of any checkpoint of its run."""

    job: TrainJob
    streams: Mapping[str, PlannedGroups]
    """The pairs of each held-out set, by the set's ``dataset``."""
    engine: Engine
    collator: Collator
    objective: Objective
    on_progress: Callable[[], None]

    @classmethod
    def build(
        cls, job: TrainJob, streams: Mapping[str, PlannedGroups], *, on_progress: Callable[[], None]
    ) -> Evaluator:
        """Build the model as the workers do; ``job`` has this process's resources.

        Raises:
            InputError: the model cannot be loaded.
        """
        config = job.config
        if config.run.deterministic:
            ask_for_determinism()
        prepare_torch(job)
        dtype = getattr(torch, config.model.dtype)
        model = build_model(job, dtype)
        width = head_size(model.classifier.config)
        liger = choose_liger(config.model.liger, on_gpu=True) if job.use_gpu else "off"
        apply_liger(model, liger, on_gpu=job.use_gpu)
        # ZeRO computes with weights in the dtype; without it, autocast casts float32 ones.
        is_cast = config.cluster.zero_stage > 0
        device = torch.device("cuda" if job.use_gpu else "cpu")
        if model.sources is not None and not config.trains_all:  # checkpoints lack what is frozen
            place_whole(model, device, dtype=dtype if is_cast else None, rank=0)
        elif model.sources is not None or is_cast:
            place_empty(model, device, dtype=dtype if is_cast else torch.float32)
        alone = replace(
            config.cluster,
            num_workers=1,
            zero_stage=0,
            offload="none",
            zero_secondary_partition=False,
        )
        engine = Engine(
            model,
            config.optimizer,
            alone,
            dtype=torch.float32 if is_cast else dtype,
            use_gpu=job.use_gpu,
        )
        collator = Collator(
            layout=job.layout,
            kernel=choose_kernel(engine.device, dtype, head_size=width),
            pad_token_id=job.tokenizer.pad_token_id,
            device=engine.device,
        )
        return cls(
            job=job,
            streams=streams,
            engine=engine,
            collator=collator,
            objective=build_objective(config.objective),
            on_progress=on_progress,
        )

    def evaluate(self, found: Checkpoint) -> list[tuple[HeldOutSet, Evaluation]]:
        """Evaluate a checkpoint on every held-out set.

        Raises:
            FileNotFoundError: it has been deleted meanwhile.
            ValueError: its files do not hold every trained weight.
        """
        self._load(found)
        return [(held_out, self._score(held_out)) for held_out in self.job.held_out]

    def _load(self, found: Checkpoint) -> None:
        """Fill the trained weights from a checkpoint's slices, one part at a time."""
        module = self.engine.module
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        files = [name for name, entry in found.manifest.files.items() if "extents" in entry]
        copies = self.job.run_folder.folder(found.name).local_copies(files)
        shapes = {name: parameter.shape for name, parameter in trained.items()}
        for name, first, values in stream_weights(shapes, copies):
            trained[name].detach().view(-1)[first : first + len(values)].copy_(values)
            self.on_progress()

    def _score(self, held_out: HeldOutSet) -> Evaluation:
        ready = map(
            self.collator.move, read_ahead(map(self.collator.lay_out, self._steps(held_out)))
        )
        evaluation = evaluate_held_out(
            self.engine,
            self.objective,
            ready,
            self.job.tokenizer,
            sample_rows=self.job.config.evaluation.sample_rows,
            prefix=held_out.prefix,
            on_micro_batch=self.on_progress,
        )
        assert evaluation is not None  # nothing makes it give up
        assert evaluation.num_groups == held_out.steps.num_groups
        return add_averages(held_out, evaluation)

    def _steps(self, held_out: HeldOutSet) -> Iterator[Sequence[LoadedMicroBatch]]:
        """Yield a set's steps from its memory-mapped table, as one rank that is alone."""
        planned = self.streams[held_out.dataset]
        table = open_table(planned.cache)
        plan = planned.plan(table)
        for step in range(held_out.steps.total):
            yield [*load_step(table, plan, step, rank=0, world_size=1)]
