"""Room for the evaluator beside the workers."""

from typing import Any

import pytest

from rm_ray.config.recipe import parse_config
from rm_ray.config.train_config import ResolvedConfig
from rm_ray.preflight.checks.evaluator import check_evaluator, evaluator_weights
from rm_ray.preflight.checks.verdict import Verdict
from rm_ray.preflight.machines import Machine

GIGABYTE = 10**9
EIGHT = 8 * GIGABYTE
"""Parameters of a large model."""


def config_of(where: str = "beside", *, dtype: str = "bfloat16", **cluster: Any) -> ResolvedConfig:
    settings = {"num_workers": 7, "use_gpu": True, "zero_stage": 2}
    return parse_config(
        {
            "data": {"eval": ["a.jsonl"]},
            "model": {"dtype": dtype},
            "cluster": settings | cluster,
            "evaluation": {"where": where, "cpus": 4},
            "checkpoint": {"every_steps": 10},
        }
    ).settle()


def machine(*, gpus: int = 8, memory: float = 1e12) -> Machine:
    return Machine(
        node_id="a", name="a", resources={"CPU": 64.0, "GPU": float(gpus), "memory": memory}
    )


def check(
    config: ResolvedConfig, *machines: Machine, gpu_memory: int | None = 80 * GIGABYTE
) -> Verdict | None:
    return check_evaluator(
        config, machines, num_parameters=EIGHT, num_trained=EIGHT, gpu_memory=gpu_memory
    )


def test_workers_that_evaluate_need_no_evaluator():
    assert check(config_of("within"), machine()) is None


def test_an_evaluator_says_what_it_takes():
    verdict = check(config_of(), machine())
    assert verdict is not None
    assert (verdict.name, verdict.outcome) == ("evaluator", "ok")
    assert verdict.found == "4 CPUs and a GPU and 16.0 GB for weights, beside 7 workers"


@pytest.mark.parametrize(
    ("config", "machines", "gpu_memory", "outcome", "found"),
    [
        (config_of(), [machine()], 16 * GIGABYTE, "failed", "a GPU has 16.0 GB"),
        (config_of(num_workers=8), [machine()], None, "warning", "8 workers, which take every GPU"),
        (
            config_of(use_gpu=False),
            [machine(gpus=0, memory=15e9)],
            None,
            "failed",
            "the largest machine has 15.0 GB",
        ),
        (config_of(), [], None, "ok", "beside 7 workers"),  # another cluster's machines
    ],
)
def test_an_evaluator_must_fit(
    config: ResolvedConfig,
    machines: list[Machine],
    gpu_memory: int | None,
    outcome: str,
    found: str,
):
    verdict = check(config, *machines, gpu_memory=gpu_memory)
    assert verdict is not None
    assert verdict.outcome == outcome
    assert verdict.found.endswith(found)
    assert bool(verdict.remedy) == (outcome != "ok")


@pytest.mark.parametrize(
    ("config", "num_trained", "size"),
    [
        (config_of(), EIGHT, 2 * EIGHT),
        (config_of(zero_stage=0), EIGHT, 4 * EIGHT),
        (config_of(zero_stage=0), GIGABYTE, 4 * GIGABYTE + 2 * (EIGHT - GIGABYTE)),
        (config_of(dtype="float32"), EIGHT, 4 * EIGHT),
    ],
)
def test_weights_are_in_the_precision_that_the_workers_compute_from(
    config: ResolvedConfig, num_trained: int, size: int
):
    assert evaluator_weights(config, num_parameters=EIGHT, num_trained=num_trained) == size
