"""Settings of the run itself: name, storage path, seed, determinism."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from rm_ray.config.checks import refuse_password, require
from rm_ray.config.fields import MAY_CHANGE

_TAKEN = ("evaluations", "mlflow.db", "mlflow_artifacts", "token_cache")
"""Other entries of run.storage_path, next to the runs."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Name, storage path and seed of the run."""

    name: str = "reward-model"
    """Name of the run and of its folder in storage_path. The same name resumes the same run."""

    storage_path: Annotated[str, MAY_CHANGE] = "~/rm_ray"
    """Where to store runs and token caches: a folder, a network mount, or a URI (s3://, gs://). On
    a cluster of several machines, all of them must reach it."""

    seed: int = 0
    """Seed of the order of pairs, the sampling of sources and the head's initial weights."""

    deterministic: Annotated[bool, MAY_CHANGE] = False
    """Make the same command produce bit-identical weights, on GPUs too: only kernels with a fixed
    order of additions are used, and an operation without one ends the run. Needs a fixed number of
    workers and the same machines. The cost on GPUs has not been measured."""

    keep_pair_losses: Annotated[bool, MAY_CHANGE] = False
    """Keep the loss of each pair in each epoch, at the step that trained on it, in checkpoints and
    at the end in the run's pair_losses/: the audit finds pairs in it whose labels are probably
    wrong. It changes no weight. A resumed run that turns it on has the losses from then on."""

    def __post_init__(self) -> None:
        legal = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None
        rule = "letters from A to Z or a to z, digits, '.', '_' and '-'"  # Ray's metrics are ASCII
        require(legal, "run.name", self.name, rule)
        is_free = self.name not in _TAKEN
        require(is_free, "run.name", self.name, f"none of {', '.join(_TAKEN)}, which are reserved")
        require(bool(self.storage_path), "run.storage_path", self.storage_path, "a path or a URI")
        refuse_password(
            "run.storage_path",
            self.storage_path,
            "the environment, as with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
        require(0 <= self.seed < 2**32, "run.seed", self.seed, "from 0 to 4294967295")
