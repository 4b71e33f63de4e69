"""Training and scoring on fake CUDA tensors: devices, dtypes, and what a GPU would be waited for.

A fake tensor has no values: what a kernel computes, and what it refuses, only a GPU shows.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build, lay_out, some_pairs
from torch.utils._python_dispatch import TorchDispatchMode
from varlen_operator import register_varlen_on_cpu

from rm_ray.train.metrics import GroupMetrics

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

Case = dict[str, Any]

LAYERS = 2
TRIMMED = {"llama", "llama-grouped", "mistral", "qwen2", "qwen3"}
"""Families whose last layer is computed at the ends alone, and then is not recomputed either."""

ONE_EACH = [name for name in FAMILIES if name not in ("llama", "mistral", "qwen2")]
"""Each family once, with grouped heads and windows where it may have them."""

SETTINGS = {
    ("packed", "varlen"): ("autocast", "bfloat16 weights"),  # flash attention has no float32
    ("packed", "grouped"): ("float32", "autocast", "bfloat16 weights"),
    ("padded", "grouped"): ("float32", "autocast", "bfloat16 weights"),
}


def case_of(work: str, family: str, place: tuple[str, str], precision: str, **more: Any) -> Case:
    layout, kernel = place
    return {"work": work, "family": family, "layout": layout, "kernel": kernel,
            "precision": precision, "recomputing": False, "micro_batches": 1} | more  # fmt: skip


def name_of(case: Case) -> str:
    parts = [case[part] for part in ("work", "family", "layout", "kernel", "precision")]
    return "-".join([*parts, *["recomputing"] * case["recomputing"]]).replace(" ", "-")


EVERY_STEP = [
    case_of("train", family, place, precision, recomputing=recomputing)
    for family in FAMILIES
    for place, precisions in SETTINGS.items()
    for precision, recomputing in product(precisions, (False, True))
]


def a_few_steps() -> list[Case]:
    """Each family in variable-length attention and in one other place, every setting in turn."""
    chosen = []
    for i, family in enumerate(ONE_EACH):
        others = [("packed", "grouped"), ("padded", "grouped")]
        for place in (("packed", "varlen"), others[i % 2]):
            settings = [case for case in EVERY_STEP if case["family"] == family
                        and (case["layout"], case["kernel"]) == place]  # fmt: skip
            turn = i if place == ("packed", "varlen") else 5 * (i // 2)
            chosen.append(settings[turn % len(settings)])
    return chosen


SOME_STEPS = [
    *a_few_steps(),
    case_of("train", "llama", ("packed", "varlen"), "autocast", micro_batches=2, recomputing=True),
]
OTHER_WORK = [
    case_of(work, family, place, precision)
    for i, family in enumerate(ONE_EACH)
    for work, place, precision in [
        ("evaluate", ("packed", "varlen"), "autocast"),
        ("probe", (("packed", "varlen"), ("padded", "grouped"))[i % 2], "bfloat16 weights"),
        ("score", (("packed", "varlen"), ("packed", "grouped"))[i % 2], "bfloat16 weights"),
    ]
] + [
    case_of("restore", "qwen3", ("packed", "varlen"), "autocast"),
    case_of("restore", "gpt_neox", ("padded", "grouped"), "float32"),
]

Casts = tuple[int, int]
"""How often float32 is cast to bfloat16, and bfloat16 to float32."""

CASTS: dict[str, tuple[Casts, Casts, Casts]] = {
    "llama": ((28, 0), (12, 28), (26, 28)),
    "llama-grouped": ((28, 0), (12, 28), (26, 28)),
    "mistral": ((28, 0), (12, 28), (26, 28)),
    "mistral-window": ((28, 0), (12, 28), (40, 28)),
    "qwen2": ((34, 0), (12, 34), (29, 34)),
    "qwen2-window": ((34, 0), (12, 34), (46, 34)),
    "qwen3": ((32, 4), (12, 32), (28, 34)),
    "olmo2": ((36, 8), (20, 36), (54, 44)),
    "olmo3": ((36, 8), (20, 36), (54, 44)),
    "gemma": ((28, 0), (12, 28), (40, 28)),
    "gpt_neox": ((24, 0), (14, 24), (38, 24)),
}
"""Of a forward pass under autocast with variable-length attention, of a backward pass, and of one
that recomputes; counted. Forward, a Llama's layer casts 7 weights, 5 inputs (of queries, keys,
values, gate and up), and the rotated queries and keys: 14 in each of two layers."""


@functools.cache
def why_not_here() -> str | None:
    """Return why the stand-in cannot be compiled; None where it can."""
    if torch.version.cuda is not None:
        return "this PyTorch has CUDA of its own, and needs no stand-in"
    if compiler() is None:
        return "no C++ compiler (CXX, g++ or c++) is here to compile the stand-in for CUDA"
    header = include() / "ATen" / "detail" / "CUDAHooksInterface.h"
    return None if header.exists() else f"PyTorch's headers are not here ({header})"


def compiler() -> str | None:
    """Return the C++ compiler."""
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def include() -> Path:
    """Return where PyTorch's headers are."""
    return Path(torch.__file__).parent / "include"


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled guard."""
    if reason := why_not_here():
        pytest.skip(reason)
    library = tmp_path_factory.mktemp("stand-in") / "stand_in.so"
    headers = [include(), include() / "torch" / "csrc" / "api" / "include"]
    command = [str(compiler()), "-shared", "-fPIC", "-O1", "-std=c++20",
               *(f"-I{folder}" for folder in headers), str(HERE / "stand_in.cpp"),
               "-o", str(library)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


def run_all(stand_in: Path, cases: list[Case]) -> dict[str, dict[str, Any]]:
    """Run cases in a process of their own, where the guard comes before PyTorch."""
    path = stand_in.parent / "cases.json"
    path.write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, str(HERE / "on_fake_cuda.py"), str(stand_in), str(path)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {name_of(case): result for case, result in zip(cases, found, strict=True)}


@pytest.fixture(scope="module")
def found(stand_in: Path) -> dict[str, dict[str, Any]]:
    return run_all(stand_in, SOME_STEPS + OTHER_WORK)


def check(case: Case, result: dict[str, Any]) -> None:
    """Hold a case to what a GPU asks of it."""
    assert "error" not in result, result["error"]
    unwelcome = [what for what in result["seen"] if what.startswith(("forward", "backward"))]
    assert not unwelcome, "\n".join(f"{what}, at\n{result['where'][what]}" for what in unwelcome)
    assert result["rewards"] == ["torch.float32"]
    trimmed = case["layout"] == "packed" and case["family"] in TRIMMED
    if case["precision"] == "autocast" and case["kernel"] == "varlen":
        forward, backward, again = CASTS[case["family"]]
        assert casts_of(result, "forward") == times(forward, case["micro_batches"])
        if case["work"] == "train":
            expected = again if case["recomputing"] else backward
            assert casts_of(result, "backward") == times(expected, case["micro_batches"])
    if case["precision"] == "float32":
        assert casts_of(result, "forward") == casts_of(result, "backward") == (0, 0)
    if case["work"] == "train":
        calls = LAYERS * case["micro_batches"] * (case["kernel"] == "varlen")
        recomputed = calls // LAYERS * (LAYERS - trimmed) * case["recomputing"]
        assert result["calls"] == {"forward": calls, "backward": recomputed}
        assert result["gradients"] == ["like their weights"]
        assert result["sums"] == "cpu"  # read once, with the norm
        assert result["state"] == ["cuda:0"]


def casts_of(result: dict[str, Any], phase: str) -> Casts:
    down, up = "float32 to bfloat16", "bfloat16 to float32"
    return result["casts"].get(f"{phase}: {down}", 0), result["casts"].get(f"{phase}: {up}", 0)


def times(casts: Casts, count: int) -> Casts:
    return casts[0] * count, casts[1] * count


def by_name(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=name_of)


@by_name(SOME_STEPS)
def test_a_step_stays_on_the_gpu_and_waits_for_nothing_on_the_way(found, case):
    check(case, found[name_of(case)])


def test_a_step_waits_as_often_however_many_micro_batches_it_has(found):
    reads = {
        case["micro_batches"]: {
            what: count
            for what, count in found[name_of(case)]["seen"].items()
            if "read" in what and "cuda" in what
        }
        for case in SOME_STEPS
    }
    # All sums, 2 votes and the norm, in one list; a fake one is read number by number.
    numbers = len(GroupMetrics.zero(torch.device("cpu")).sums) + 2 + 1
    assert reads == {count: {"update: read from cuda": numbers} for count in (1, 2)}


@by_name([case for case in OTHER_WORK if case["work"] != "restore"])
def test_evaluation_probes_and_scoring_wait_for_rewards_alone(found, case):
    result = found[name_of(case)]
    check(case, result)
    assert result["scored"] == {"evaluate": 3, "probe": 4, "score": [1, 2, 3]}[case["work"]]
    assert any("cuda" in what for what in result["seen"] if what.startswith("around: "))


@by_name([case for case in OTHER_WORK if case["work"] == "restore"])
def test_a_restored_engine_holds_its_state_on_the_gpu_and_trains_on(found, case):
    result = found[name_of(case)]
    check(case, result)
    assert result["state"] == ["cuda:0"]
    # A weight and two moments of each parameter, each copied once.
    assert result["seen"]["restore: copy from cpu to cuda"] == 3 * result["parameters"]
    assert not [what for what in result["seen"] if what.startswith("restore: read")]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_family_layout_precision_and_recomputation_does(stand_in):
    for name, result in run_all(stand_in, EVERY_STEP).items():
        check(next(case for case in EVERY_STEP if name_of(case) == name), result)


def test_every_setting_is_among_the_few_that_are_always_run():
    for part in ("family", "layout", "kernel", "precision", "recomputing"):
        assert {case[part] for case in SOME_STEPS} >= {case[part] for case in EVERY_STEP if
                case["family"] in ONE_EACH}, part  # fmt: skip
    kinds = {json.dumps([case["layout"], case["kernel"], case["precision"]]) for case in EVERY_STEP}
    assert kinds == {
        json.dumps([case["layout"], case["kernel"], case["precision"]]) for case in SOME_STEPS
    }


class Reads(TorchDispatchMode):
    """Counts what a GPU would be waited for, on real tensors.

    On fake ones transformers leaves out some of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recomputing", [False, True])
@pytest.mark.parametrize("family", ONE_EACH)
def test_real_tensors_are_not_read_either(tmp_path, family, recomputing):
    """But where padded: transformers asks each mask whether it may be left out."""
    register_varlen_on_cpu()
    seen = {}
    for layout, kernel in SETTINGS:
        model = build(tmp_path, family, layout, gradient_checkpointing=recomputing)
        batch = lay_out(some_pairs(3), layout, kernel)
        with Reads() as reads, torch.autocast("cpu", torch.bfloat16):
            model(batch).square().sum().backward()
        seen[layout, kernel] = dict(reads.seen)
    is_windowed = family == "mistral-window"  # in every layer; such masks are always made
    assert seen == {
        ("packed", "varlen"): {},
        ("packed", "grouped"): {},
        ("padded", "grouped"): {} if is_windowed else {"_local_scalar_dense": 2},
    }
