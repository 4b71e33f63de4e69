"""What a worker is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rm_ray.batches.plan import Steps
from rm_ray.config.train_config import Layout, TrainConfig
from rm_ray.runs.startup import Startup
from rm_ray.storage import Storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rm_ray.evaluation.pairwise import Labels
    from rm_ray.train.reference_rewards import ReferencePairs


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainJob:
    """All that a worker is told: settings, where the run is kept, and how long it is."""

    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase
    run_folder: Storage
    steps: Steps
    eval_steps: Steps | None
    use_gpu: bool
    plan_fingerprint: str
    layout: Layout
    startup: Startup
    channel: Any
    run_key: str
    """What tells this run from every other."""
    attempt: int
    """Which attempt at the run this is, counted from 1."""
    skipped: frozenset[int]
    """Steps, counted from 0, that are left out."""
    probes: ReferencePairs
    """Pairs whose rewards are kept with every checkpoint."""
    eval_labels: Labels | None
    """What the held-out pairs are counted under."""
    run_began: float
    """When the run began, by the wall clock, time without any attempt left out."""

    def __repr__(self) -> str:
        """Name the attempt: Ray's dashboard shows this, and the rest holds conversations."""
        return f"attempt {self.attempt} at run '{self.config.run.name}'"
