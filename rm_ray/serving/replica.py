"""One copy of the model, or of the models: tokenizes, batches and scores what it is asked."""

from __future__ import annotations

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from prometheus_client.metrics_core import Metric

from rm_ray.config.scoring import RewardScale, ScoringModel, ScoringModels
from rm_ray.config.serving import Server
from rm_ray.errors import InputError
from rm_ray.publish.hub import HubAwayError
from rm_ray.serving.batcher import Batcher
from rm_ray.serving.follower import Follower
from rm_ray.serving.metrics import BatchMetrics
from rm_ray.serving.question import Question, Rewards
from rm_ray.serving.refusal import Refusal, RefusedError
from rm_ray.serving.served_model import ServedModel, ServedModels
from rm_ray.serving.tokens import estimate_tokens
from rm_ray.serving.versions import ModelVersion, find_version, unchecked_version

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a replica serves, and what it has done."""

    model: str
    rewards: RewardScale
    """What is made of the model's rewards."""
    max_length: int
    metrics: list[Metric]
    num_rewards: int
    num_tokens: int
    num_computed: int
    """Tokens computed: shared prefixes count once, and not at all if an earlier pass had them."""


class Replica:
    """Scores questions with one model, or with several; the methods run in one event loop."""

    def __init__(self, model: ScoringModels, server: Server, *, name: str, use_gpu: bool) -> None:
        if not use_gpu:
            torch.set_num_threads(server.cpus_per_replica)
        device = torch.device("cuda" if use_gpu else "cpu")
        self._model = load_models(model, device, cache_bytes=server.prefix_cache_bytes)
        self._metrics = BatchMetrics(replica=name)
        self._batcher = Batcher(
            tokens_per_forward=model.tokens_per_pass(use_gpu=use_gpu),
            max_pending_tokens=server.max_pending_tokens,
            metrics=self._metrics,
        )
        # One thread: a tokenizer's settings are set before each use, and threads would disagree.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        if server.follow:
            (followed,) = model.each()
            follower = Follower(
                followed,
                device,
                self._model.name,
                self._take_over,
                cache_bytes=server.prefix_cache_bytes,
            )
            follower.start(server.follow_every_s)

    async def score(self, question: Question) -> Rewards | Refusal:
        """Return the rewards of a question's conversations, all from one version of the model."""
        model = self._model
        loop = asyncio.get_running_loop()
        try:
            with self._batcher.arriving(sum(map(estimate_tokens, question.conversations))):
                ids = await loop.run_in_executor(self._tokenizing, model.encode, question)
            scores = await self._batcher.score(model, ids)
        except RefusedError as error:
            return error.refusal
        return model.join(scores, ids, has_reference=question.has_reference)

    async def report(self) -> Report:
        """Return what this replica serves, and what it has done."""
        return Report(
            model=self._model.name,
            rewards=self._model.scale,
            max_length=self._model.max_length,
            metrics=self._metrics.collect(),
            num_rewards=self._metrics.num_rewards,
            num_tokens=self._metrics.num_tokens,
            num_computed=self._metrics.num_computed,
        )

    def check_health(self) -> None:
        """Raise if the model keeps failing, so that Serve replaces the replica."""
        if self._batcher.is_broken:
            raise RuntimeError("the last forward passes all failed")

    def _take_over(self, model: ServedModel) -> None:
        self._model = ServedModels.of([model])  # requests that arrived before keep theirs


def load_models(
    model: ScoringModels, device: torch.device, *, cache_bytes: int = 0
) -> ServedModels:
    """Load the newest versions of the models, one after another.

    They divide ``cache_bytes``, for keys and values of earlier passes.

    Raises:
        InputError: one cannot be served, they cannot judge together, or the cache is larger than
            the memory.
    """
    require_memory(cache_bytes, device)
    share = cache_bytes // len(model.model)
    members = [
        ServedModel.load(current_version(each), each, device=device, cache_bytes=share)
        for each in model.each()
    ]
    return ServedModels.of(members)


def require_memory(cache_bytes: int, device: torch.device) -> None:
    """Check that a replica's cache is not larger than all memory there is.

    Raises:
        InputError: says how much there is.
    """
    if device.type == "cuda":
        place, total = "GPU", torch.cuda.mem_get_info(device)[1]
    else:
        place, total = "machine", min(psutil.virtual_memory().total, container_limit())
    if cache_bytes > total:
        raise InputError(
            f"--prefix_cache_gib {cache_bytes / 2**30:g} is more than the memory of the {place}, "
            f"{total / 2**30:.1f} GiB; each replica takes so much beside its model"
        )


def container_limit(file: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Return the bytes that a container may use, infinite outside of one (cgroup v2)."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf


def current_version(model: ScoringModel) -> ModelVersion:
    """Return the newest version, or the Hub's cached one if the Hub does not answer.

    Raises:
        InputError: there is none, or the Hub refuses it.
    """
    try:
        return find_version(model)
    except HubAwayError as error:
        logger.warning("%s; using its files on this machine", error)
        return unchecked_version(model)
