"""The job that starts a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from rm_ray.batches.plan import Steps
from rm_ray.cluster.cores import Cores
from rm_ray.config.sections.batch import Layout
from rm_ray.config.train_config import ResolvedConfig
from rm_ray.runs.startup import Startup
from rm_ray.storage import Storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rm_ray.evaluation.held_out_set import HeldOutSet
    from rm_ray.train.reference_rewards import ReferenceGroups


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainJob:
    """One attempt at a run: its settings, its data, and where its results go."""

    config: ResolvedConfig
    tokenizer: PreTrainedTokenizerBase
    run_folder: Storage
    steps: Steps
    """The run's training steps."""
    held_out: tuple[HeldOutSet, ...]
    """What evaluations score: the set of data.eval first, if there is one."""
    use_gpu: bool
    base_hash: str = ""
    """Hash of the base model, if only a part of it is trained; empty if unknown."""
    plan_fingerprint: str
    """Identifies pairs, seed and batch sizes; a checkpoint's must be equal."""
    layout: Layout
    startup: Startup
    cores: Cores | None = None
    """The worker's own, if there is one worker and it has some."""
    channel: Any
    """The handle of the ``Channel`` actor."""
    run_key: str
    """Distinguishes this run from every other."""
    attempt: int
    """The number of this attempt, counted from 1."""
    skipped: frozenset[int]
    """Steps to skip, counted from 0."""
    unit: str
    """What the groups are called in messages: 'pairs', or 'groups' if some are not."""
    reference_groups: ReferenceGroups
    """Pairs whose rewards are stored with every checkpoint."""
    run_began: float
    """Start of the run, shifted by the gaps between attempts (Unix seconds)."""

    def __repr__(self) -> str:
        """Return only attempt and run name: Ray's dashboard shows it, and the rest holds data."""
        return f"attempt {self.attempt} at run '{self.config.run.name}'"


@dataclass(frozen=True, kw_only=True, repr=False)
class StoredJob:
    """A job in Ray's object store.

    Ray Train's controller unpickles what a worker function is given. This keeps it from importing
    transformers for the job's tokenizer, while the workers wait to be started.
    """

    name: str
    """What Ray's dashboard shows."""
    reference: ray.ObjectRef

    @classmethod
    def of(cls, job: TrainJob) -> StoredJob:
        """Store a job; the process that does so must outlive its workers."""
        return cls(name=repr(job), reference=ray.put(job))

    def load(self) -> TrainJob:
        """Return the job."""
        job: TrainJob = ray.get(self.reference)
        return job

    def __repr__(self) -> str:
        """Return the job's name."""
        return self.name
