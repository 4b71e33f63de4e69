"""Large recipes on their hardware, by preflight's own functions: predictions, without a network."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from planned_runs import resolve_run
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_ray.data.cache.group_tokens import GroupLengths
from rm_ray.estimate.gpu_memory import GIGABYTE, usable_memory
from rm_ray.estimate.gpu_speed import COMPUTE_SHARE, GPU_PEAK, TERA, Compute
from rm_ray.estimate.prediction import prefer
from rm_ray.preflight.auto_settings import Hardware, predict_ways
from rm_ray.preflight.checks.memory import check_gpu_memory, check_machine_memory
from rm_ray.preflight.checks.resources import sizes_of
from rm_ray.preflight.machines import Machine
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.preflight.run_estimate import estimate_run

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "benchmarks")]

import predict  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The model, pairs and GPUs that a recipe is for."""

    model: dict[str, Any]
    gpu_memory_gb: int
    num_pairs: int = 270_000
    peak: float = GPU_PEAK
    """FLOP/s of the data sheet, in bfloat16."""

    @property
    def compute(self) -> Compute:
        """The assumed speed."""
        return Compute.of(peak=self.peak, share=COMPUTE_SHARE, measured=None)


LLAMA_70B = json.loads((ROOT / "tests/benchmarks/llama_70b.json").read_text())
RECIPES = {
    "tulu3_8b_lora": Wanted(model=predict.LLAMA_8B, gpu_memory_gb=80),
    "qlora_8b": Wanted(model=predict.LLAMA_8B, gpu_memory_gb=24, peak=165 * TERA),
    "llama70b": Wanted(model=LLAMA_70B, gpu_memory_gb=80, num_pairs=411_000),
}


def read(name: str) -> str:
    return (ROOT / "jobs" / "recipes" / f"{name}.yaml").read_text()


def lengths(num_pairs: int, longest: int) -> GroupLengths:
    """Return the assumed lengths, and a pair of maximum length without a shared prefix."""
    some = predict.assumed_lengths(longest, num_pairs=num_pairs - 1)
    return GroupLengths(
        num_responses=np.append(some.num_responses, 2),
        prefix=np.append(some.prefix, 0),
        conversations=np.append(some.conversations, [longest, longest]),
    )


def resolve(name: str, wanted: Wanted, folder: Path, **more: Any) -> ResolvedRun:
    settings = yaml.safe_load(read(name))
    del settings["run"]
    (folder / "config.json").write_text(json.dumps(wanted.model))
    settings["model"] |= {"name_or_path": str(folder), "revision": None}
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(**wanted.model)
        )
    return resolve_run(
        folder,
        classifier=classifier,
        lengths=lengths(wanted.num_pairs, settings["data"]["max_length"]),
        **settings | more,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_gpus_and_its_comments_give_memory_time_and_sizes(name, tmp_path):
    wanted, resolved = RECIPES[name], resolve(name, RECIPES[name], tmp_path)
    text = " ".join(read(name).replace("#", "").split())
    gpu_memory = wanted.gpu_memory_gb * GIGABYTE

    estimate = estimate_run(resolved, least_workers=None, gpu_memory=gpu_memory, most_steps=5)

    assert estimate.chosen is not None
    assert estimate.chosen.fits(gpu_memory)
    memory, room = estimate.chosen.memory, usable_memory(gpu_memory)
    assert check_gpu_memory(memory, gpu_memory, advice="").outcome == "ok"
    assert f"{memory.device / 1e9:.1f} of {room / 1e9:.1f} usable GB" in text
    assert f"each takes {sizes_of(resolved).checkpoint / 1e9:.0f} GB" in text

    choices = predict_ways(
        resolved,
        Hardware(gpu_memory=gpu_memory, network=predict.NETWORK, compute=wanted.compute),
        num_workers=estimate.num_workers,
    )
    best = prefer(choices)
    assert best is not None
    assert best.setting == estimate.chosen.setting
    hours = f"{best.time.hours(estimate.num_steps):.1f} hours"
    assert hours in text
    page = (ROOT / "rm_ray" / "estimate" / "README.md").read_text()
    (row,) = re.findall(rf"^\| `{name}`, .*", page, re.M)
    for figure in (
        f"{memory.device / 1e9:.1f} GB",
        f"{memory.machine / 1e9:.0f} GB",
        hours,
    ):
        assert f" {figure} " in row


def test_the_rayjob_has_memory_for_its_workers_also_with_adapters(tmp_path):
    wanted = Wanted(model=predict.LLAMA_8B, gpu_memory_gb=80)
    manifest = yaml.safe_load((ROOT / "cluster" / "kuberay-rayjob.yaml").read_text())
    gpu, _ = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = gpu["template"]["spec"]
    (asked,) = (c["resources"]["requests"]["memory"] for c in pod["containers"])
    shm = pod["volumes"][1]["emptyDir"]["sizeLimit"]
    free = sum(sign * int(size.removesuffix("Gi")) for sign, size in ((1, asked), (-1, shm)))
    # The processes and Ray Data take at most half of what the object store leaves.
    node = Machine(node_id="a", name="node", resources={"memory": free * 2**29, "GPU": 8.0})
    needed = {}
    for rank in (0, 64):
        resolved = resolve("tulu3_8b", wanted, tmp_path, lora={"rank": rank})
        estimate = estimate_run(resolved, least_workers=None, gpu_memory=None, most_steps=1)
        assert estimate.chosen is not None
        memory = estimate.chosen.memory
        assert check_machine_memory(memory, [node], num_workers=64, places=[8]).outcome == "ok"
        needed[rank] = round(memory.machine / 1e9, 1)
    assert needed == {0: 2.1, 64: 2.8}
