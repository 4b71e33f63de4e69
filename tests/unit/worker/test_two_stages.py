"""A run that continues from the export of another one, on plain ranks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_training import PlainRank, exported_weights, reset_accelerator, small_config

from rm_ray.config.sections.batch import BatchConfig
from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.config.sections.model import Head, ModelConfig, ResolvedModel
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.data.sources.planted import generate_rows, utility
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.publish.base_model import find_base
from rm_ray.scoring.scorer import Scorer
from rm_ray.worker.build import build_compute


@dataclass
class FirstStage:
    """A finished run."""

    rank: PlainRank
    export: Path
    result: dict[str, Any]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def first(
    machine: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[FirstStage]:
    folder = tmp_path_factory.mktemp("first")
    rank = PlainRank.make(folder, small_config(folder, model=ResolvedModel(dtype=request.param)))
    result = rank.train()
    yield FirstStage(rank, Path(result["export"]), result)
    reset_accelerator()  # its precision is the process's


def second_stage(first: FirstStage, folder: Path, head: Head = "auto") -> PlainRank:
    """Prepare a run whose base model is the first one's export."""
    dtype = first.rank.job.config.model.dtype
    model = ResolvedModel(name_or_path=str(first.export), head=head, dtype=dtype)
    return PlainRank.make(folder, small_config(folder, model=model))


def start(rank: PlainRank) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Return the rewards of the reference groups, and the weights, before the first step."""
    reset_accelerator()
    compute = build_compute(rank.job)
    scored = rank.job.reference_groups.score(
        compute.engine,
        compute.collator,
        tokens_per_pass=rank.job.config.batch.tokens_per_micro_batch,
    )
    weights = compute.engine.weights()
    return scored["scored"], {n.removeprefix("classifier."): w for n, w in weights.items()}


def test_the_first_stage_draws_a_head_and_exports_one_to_keep(first: FirstStage):
    assert first.result["head"] == "new"
    base = find_base(ModelConfig(name_or_path=str(first.export), head="keep"))
    assert base is not None and base.head is not None
    assert (base.head.weight, base.head.bias, base.unused) == ("score.weight", None, ())


def test_the_second_stage_starts_with_exactly_the_rewards_of_the_first(
    first: FirstStage, tmp_path: Path
):
    second = second_stage(first, tmp_path)
    assert (
        load_tokenizer(str(first.export)).get_vocab()
        == first.rank.job.tokenizer.get_vocab()
        == second.job.tokenizer.get_vocab()
    )
    rewards, weights = start(second)
    exported = exported_weights(first.rank)
    assert all(torch.equal(weights[name], weight.float()) for name, weight in exported.items())
    if first.rank.job.config.model.dtype == "float32":  # otherwise the export rounds the weights
        assert rewards == first.rank.job.run_folder.read_json("probes.json")["scored"]


def test_a_new_head_starts_with_other_rewards(first: FirstStage, tmp_path: Path):
    rewards, started = start(second_stage(first, tmp_path, "new"))
    for name, weight in exported_weights(first.rank).items():
        assert torch.equal(started[name], weight.float()) == (name != "score.weight")
    assert rewards != first.rank.job.run_folder.read_json("probes.json")["scored"]


def test_the_second_stage_trains_on_and_says_which_head_it_kept(first: FirstStage, tmp_path: Path):
    second = second_stage(first, tmp_path, "keep")
    result = second.train()
    assert result["head"] == "score.weight"
    before, after = exported_weights(first.rank), exported_weights(second)
    assert before.keys() == after.keys()
    assert not torch.equal(before["score.weight"], after["score.weight"])
    started, ended = (
        next(one.metrics["train/rm/loss"] for one in rank.channel.records if one.kind == "train")
        for rank in (first.rank, second)
    )
    assert ended < started


NUM_TRUTH = 500
"""Held-out planted pairs that rewards are compared with the truth on."""


@pytest.fixture(scope="module")
def regression(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstStage]:
    folder = tmp_path_factory.mktemp("regression")
    rank = planted_run(folder, "scores", 400, ObjectiveConfig(loss="regression"))
    result = rank.train()
    yield FirstStage(rank, Path(result["export"]), result)
    reset_accelerator()


def planted_run(
    folder: Path,
    split: str,
    count: int,
    objective: ObjectiveConfig,
    *,
    learning_rate: float = 1e-3,
    **model: Any,
) -> PlainRank:
    """Prepare a run over an epoch of planted preferences."""
    config = small_config(
        folder,
        objective=objective,
        model=ResolvedModel(**model),
        batch=BatchConfig(global_batch_size=16, tokens_per_micro_batch=4_096),
        optimizer=OptimizerConfig(learning_rate=learning_rate, schedule="cosine", warmup_steps=5),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(every_steps=1_000),
    )
    rows = list(generate_rows(split, count)), list(generate_rows("truth", 20))
    return PlainRank.make(folder, config, rows=rows)


def correlation_with_truth(export: str) -> float:
    """Return the rank correlation of the leads of exported rewards with the true ones."""
    scorer = Scorer.load(export, device=torch.device("cpu"), tokens_per_forward=8_192)
    ids, true_leads = [], []
    for row in generate_rows("truth", NUM_TRUTH):
        answers = [row[side] for side in ("chosen", "rejected")]
        asked = {"role": "user", "content": row["prompt"]}
        turns = [[asked, {"role": "assistant", "content": answer}] for answer in answers]
        ids.append([scorer.tokenizer.apply_chat_template(t, return_dict=False) for t in turns])
        better, worse = (utility(row["prompt"], answer) for answer in answers)
        true_leads.append(better - worse)
    leads = [chosen - rejected for chosen, rejected in scorer.score(ids)]
    both = (np.concatenate([values, np.negative(values)]) for values in (leads, true_leads))
    return float(np.corrcoef(*map(mean_ranks, both))[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value; equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def test_scaled_bradley_terry_goes_on_from_regression_and_recovers_no_less_of_the_truth(
    regression: FirstStage, tmp_path: Path
):
    """The recipe of arXiv:2410.01257: scores first, then graded preferences from their export.

    A rank correlation of n pairs has a standard error of about (1 - rho^2) / sqrt(n).
    """
    second = planted_run(
        tmp_path,
        "strengths",
        640,
        ObjectiveConfig(margin="scale"),
        learning_rate=1e-4,
        name_or_path=str(regression.export),
    )
    before = regression.rank.job
    second.job = replace(second.job, reference_groups=before.reference_groups)

    rewards, _ = start(second)
    result = second.train()

    assert rewards == before.run_folder.read_json("probes.json")["scored"]
    assert (regression.result["head"], result["head"]) == ("new", "score.weight")
    first, last = (correlation_with_truth(str(r["export"])) for r in (regression.result, result))
    assert first > 0.5
    assert last >= first - (1 - first**2) / NUM_TRUTH**0.5
