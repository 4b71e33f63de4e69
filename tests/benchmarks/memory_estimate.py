"""The memory that is estimated before a run, beside what processes take that train.

Every case is trained for some steps with the real engine in fresh processes, joined by gloo where
there are two. Measured is the most resident memory of a process, less what it had before the model
was built. A small model is trained first, so that libraries are loaded and set up by then; and
glibc is told to give every freed tensor back to the system. What is left are tensors, which is
what the estimate counts, and the little that is not: the workspace of matrix products, gloo's
buffers, Python's own objects.

    python tests/benchmarks/memory_estimate.py [--hidden 1024] [--layers 8] [--only zero-3]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from machine import ROOT, describe_machine
from report import limit, markdown_table, print_report
from turns import resident_bytes

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# Tensors lie in mappings of their own, which go back to the system when they are freed.
os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
# oneDNN keeps the kernels of bfloat16 products, half a megabyte for each shape of matrices, and
# adapters have many shapes: some 60 MB, however small the model is.
os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = os.environ["LRU_CACHE_CAPACITY"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from core import add_model_options, describe_model, write_model  # noqa: E402
from gloo_ranks import spawn  # noqa: E402
from pair_set import PairSet, pairs_that_share  # noqa: E402

from rm_ray.batches.collate import Collator  # noqa: E402
from rm_ray.batches.loading import load_step  # noqa: E402
from rm_ray.batches.plan import Plan, PlanSettings  # noqa: E402
from rm_ray.config.sections.batch import Layout  # noqa: E402
from rm_ray.config.sections.cluster import ClusterConfig  # noqa: E402
from rm_ray.config.sections.lora import LoraConfig  # noqa: E402
from rm_ray.config.sections.model import ModelConfig, ResolvedModel  # noqa: E402
from rm_ray.config.sections.objective import ObjectiveConfig  # noqa: E402
from rm_ray.config.sections.optimizer import OptimizerConfig  # noqa: E402
from rm_ray.estimate.activations import Attention, ForwardPass  # noqa: E402
from rm_ray.estimate.architecture import Architecture  # noqa: E402
from rm_ray.estimate.memory import estimate  # noqa: E402
from rm_ray.estimate.memory_setting import MemorySetting  # noqa: E402
from rm_ray.estimate.moments import MemoryEstimate  # noqa: E402
from rm_ray.estimate.workload import measure_workload  # noqa: E402
from rm_ray.model.build import build_reward_model, check_architecture  # noqa: E402
from rm_ray.model.liger import apply_liger  # noqa: E402
from rm_ray.model.tuning.trainable import choose_trained, outline_trained  # noqa: E402
from rm_ray.objectives.build import build_objective  # noqa: E402
from rm_ray.train.step import train_step  # noqa: E402

MOST_ERROR = 0.10


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to train."""

    zero_stage: int
    ranks: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    layout: Layout = "packed"
    checkpointing: bool = False
    offload: Literal["none", "optimizer", "all"] = "none"
    pairs: int = 2
    """Pairs of a micro-batch; a step has two on each rank, or one where ``single``."""
    single: bool = False
    tokens: int = 192
    """Of a conversation, on average."""
    on_gpu: bool = False
    """Whether it trains on this machine's GPU, by variable-length attention in bfloat16."""
    liger: bool = False
    rank: int = 0
    """Of adapters in all linear layers."""
    trainable: str = "all"

    @property
    def part(self) -> tuple[ModelConfig, LoraConfig]:
        """What is trained, as settings."""
        return ModelConfig(trainable=self.trainable), LoraConfig(rank=self.rank)

    @property
    def kernel(self) -> Literal["varlen", "grouped"]:
        """The attention of packed pairs."""
        return "varlen" if self.on_gpu and self.dtype == "bfloat16" else "grouped"

    @property
    def a_step(self) -> int:
        """Pairs of a step."""
        return self.pairs * self.ranks * (1 if self.single else 2)

    @property
    def steps(self) -> int:
        """Steps until nothing changes any more.

        DDP makes its buckets anew after the first one, and they are full from the second on;
        ZeRO-3 gathers ahead of use from the third on.
        """
        return 4 if self.zero_stage == 3 else 3

    @property
    def name(self) -> str:
        """What it is called in the table."""
        words = [
            f"zero-{self.zero_stage}",
            self.dtype,
            f"{self.ranks} rank{'s' * (self.ranks > 1)}",
        ]
        words += ["liger"] * self.liger
        words += [f"lora {self.rank}"] * (self.rank > 0)
        words += [self.trainable] * (self.trainable != "all")
        words += [self.layout] * (self.layout != "packed")
        words += ["recomputed"] * self.checkpointing
        words += [f"{self.offload} offloaded"] * (self.offload != "none")
        words += ["1 micro-batch a step"] * self.single
        words += [f"{self.pairs} x {self.tokens} tokens"] * (self.pairs > 2)
        return ", ".join(words)


def cases() -> Iterator[Case]:
    """Yield what is compared: every stage on two ranks, and what makes a difference on one."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        for stage in range(4):
            yield Case(zero_stage=stage, ranks=2, dtype=dtype)
    for dtype in dtypes:
        yield Case(zero_stage=0, ranks=1, dtype=dtype)
        yield Case(zero_stage=3, ranks=1, dtype=dtype)
    many: dict[str, Any] = {"ranks": 1, "pairs": 4, "tokens": 384}
    for dtype in dtypes:
        yield Case(zero_stage=0, dtype=dtype, **many)
        yield Case(zero_stage=0, dtype=dtype, checkpointing=True, **many)
        yield Case(zero_stage=2, dtype=dtype, layout="padded", **many)
    yield Case(zero_stage=3, dtype="bfloat16", checkpointing=True, **{**many, "ranks": 2})
    yield Case(zero_stage=0, single=True, **many)
    for stage in (1, 2, 3):
        yield Case(zero_stage=stage, ranks=2, dtype="bfloat16", offload="optimizer")
    yield Case(zero_stage=3, ranks=2, dtype="bfloat16", offload="all")
    yield from partial_cases()


def partial_cases() -> Iterator[Case]:
    """Yield those that train a part of the model: adapters, the last layers, the head."""
    many: dict[str, Any] = {"pairs": 4, "tokens": 384}
    parts: list[dict[str, Any]] = [{"rank": 8}, {"rank": 64}, {"trainable": "last:2"}]
    for part in (*parts, {"trainable": "head"}):
        for stage in range(4):
            dtype: Literal["float32", "bfloat16"] = "float32" if stage % 2 else "bfloat16"
            yield Case(zero_stage=stage, ranks=2, dtype=dtype, **part, **many)
    for part in parts[1:]:
        yield Case(zero_stage=0, ranks=1, checkpointing=True, **part, **many)
        yield Case(zero_stage=3, ranks=2, dtype="bfloat16", checkpointing=True, **part, **many)
    yield Case(zero_stage=2, ranks=1, layout="padded", rank=64, **many)


def plan_of(case: Case, pairs: PairSet) -> Plan:
    """Return the steps of a case: each rank's micro-batches hold so many pairs."""
    longest = 2 * int(pairs.lengths.longest.max())
    by_distinct = int(pairs.lengths.distinct.max())
    return Plan(
        lengths=pairs.lengths,
        settings=PlanSettings(
            global_batch_size=case.pairs * case.ranks * (1 if case.single else 2),
            tokens_per_micro_batch=case.pairs
            * (longest if case.layout == "padded" else by_distinct),
            layout=case.layout,
            shuffle=False,
        ),
    )


def expect(case: Case, model: str, pairs: PairSet) -> MemoryEstimate:
    """Return the estimate, from the model's config and the pairs' lengths alone."""
    vocabulary: Any = pairs.vocabulary
    classifier = check_architecture(ModelConfig(name_or_path=model), vocabulary)
    classifier = outline_trained(classifier, *case.part)
    attention: Attention = case.kernel if case.layout == "packed" else "sdpa"
    if case.on_gpu and attention == "grouped":
        attention = "repeated"  # keys, which heads share
    workload = measure_workload(plan_of(case, pairs), world_size=case.ranks, most_steps=case.steps)
    return estimate(
        Architecture.of(classifier, vocab_size=len(pairs.vocabulary)),
        ForwardPass.of(workload.largest, layout=case.layout, attention=attention),
        MemorySetting(
            dtype=case.dtype,
            zero_stage=case.zero_stage,
            offload=case.offload,
            checkpointing=case.checkpointing,
            world_size=case.ranks,
            layout=case.layout,
            attention=attention,
            on_gpu=case.on_gpu,
            liger=case.liger,
            accumulates=workload.most_micro_batches > 1,
            from_files=False,
        ),
    )


def measure(rank: int, case: Case, model: str, small: str, pairs_file: str, folder: str) -> None:
    """Train in this process and leave the most that it took behind."""
    os.dup2(2, 1)  # what DeepSpeed prints is no part of the report
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // case.ranks))
    pairs = PairSet.load(Path(pairs_file))
    train(case, small, pairs, steps=2)
    gc.collect()
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most so far
    train(case, model, pairs, steps=case.steps)
    most = resident_bytes("VmHWM") - before
    (Path(folder) / f"{rank}.json").write_text(json.dumps(most))


def train(case: Case, model_path: str, pairs: Any, *, steps: int) -> None:
    """Take steps as a worker does."""
    from accelerate.state import AcceleratorState, GradientState

    from rm_ray.train.engine import Engine

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    config = ResolvedModel(name_or_path=model_path, gradient_checkpointing=case.checkpointing)
    dtype = getattr(torch, case.dtype)
    model = build_reward_model(
        config,
        pairs.vocabulary,
        seed=0,
        layout=case.layout,
        lean=True,
    )
    choose_trained(model, *case.part, seed=0, dtype=dtype)
    apply_liger(model, "on" if case.liger else "off", on_gpu=case.on_gpu)
    optimizer = OptimizerConfig(learning_rate=1e-5)
    cluster = ClusterConfig(zero_stage=case.zero_stage, offload=case.offload)
    engine = Engine(model, optimizer, cluster, dtype=dtype, use_gpu=case.on_gpu)
    plan = plan_of(case, pairs)
    collator = Collator(
        layout=case.layout,
        kernel=case.kernel,
        pad_token_id=pairs.vocabulary.pad_token_id,
        device=engine.device,
    )
    for step in range(steps):
        loaded = load_step(pairs, plan, step, rank=engine.rank, world_size=engine.world_size)
        batches = collator.move(collator.lay_out(loaded))
        train_step(
            engine,
            build_objective(ObjectiveConfig()),
            batches,
            num_groups=plan.steps.size(step),
            learning_rate=1e-5,
        )


def compare(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Estimate, train and measure one case."""
    # Every step has the same pairs: oneDNN keeps the kernels that it makes for each new shape of
    # bfloat16 matrices, half a megabyte a time.
    size = case.a_step
    pairs = pairs_that_share(0.4, count=size, tokens=case.tokens, vocabulary=options.vocab)
    pairs = pairs.select(np.tile(np.arange(size), case.steps))
    model = write_model(options, pairs.vocabulary.size, folder)
    tiny = argparse.Namespace(**{**vars(options), **TINY})
    (folder / "tiny").mkdir(exist_ok=True)
    small = write_model(tiny, pairs.vocabulary.size, folder / "tiny")
    expected = expect(case, model, pairs)
    file = str(pairs.save(folder / "pairs.npz"))
    arguments = (case, model, small, file, str(folder))
    spawn(measure, case.ranks, *arguments, start_method="spawn")  # forks would share memory
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(case.ranks)]
    return {
        **asdict(case),
        "name": case.name,
        "estimated": expected.device,
        "measured": max(found),
        "by_rank": found,
        "peak": expected.peak.name,
        "moments": [asdict(moment) | {"device": moment.device} for moment in expected.moments],
    }


TINY = {"hidden": 64, "layers": 2, "heads": 1, "key_value_heads": 1, "intermediate": 128}


def error(figures: dict[str, Any]) -> float:
    """Return how far the estimate is off, as a share of what was measured."""
    return figures["estimated"] / figures["measured"] - 1


def main() -> None:
    """Compare all cases and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.set_defaults(
        hidden=1024, layers=8, heads=16, key_value_heads=8, intermediate=2816, vocab=8192
    )
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose names hold all this")
    options = parser.parse_args()
    results = []
    for case in cases():
        if not all(word in case.name for word in options.only):
            continue
        with tempfile.TemporaryDirectory(prefix="rm_ray-memory-") as name:
            results.append(compare(case, options, Path(name)))
        print(f"{results[-1]['name']}: {error(results[-1]):+.1%}", file=sys.stderr, flush=True)
    rows = [
        [
            figures["name"],
            figures["peak"],
            f"{figures['estimated'] / 1e9:.3f}",
            f"{figures['measured'] / 1e9:.3f}",
            f"{error(figures):+.1%}",
        ]
        for figures in results
    ]
    worst = max(abs(error(figures)) for figures in results)
    print_report(
        f"{describe_machine()}; {describe_model(options)}; resident memory of a process above what "
        "it had before the model, the most of some steps and of the ranks",
        markdown_table(["training", "peak at", "estimated GB", "measured GB", "error"], rows),
        f"- {limit('largest error', worst, MOST_ERROR)}",
        figures=results,
    )
    sys.exit(worst > MOST_ERROR)


if __name__ == "__main__":
    main()
