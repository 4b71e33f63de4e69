"""The memory and time in which ranks get a model from its files and export it, part by part.

A model of random weights is saved in several files. In turns, ranks joined by gloo read it whole
and in float32, as every rank once did, and lean, each its own part; then the optimizer is set up,
they take a step, and export the model. Measured is the resident memory of all ranks together, above
what they had before the model: the sum of each rank's most, in each phase. Both start from the same
bits and so take the same step.

AdamW's state of a billion weights does not fit into 24 GB with what its step takes. ``--sgd`` has
no state, exchanges gradients in small buckets, and gathers no weight ahead of its use. Training
then needs less, which is stricter on loading and exporting.

    python tests/benchmarks/loading.py [--hidden 1024] [--layers 12] [--ranks 4] [--rounds 2]
    python tests/benchmarks/loading.py --hidden 2048 --layers 14 --heads 32 --intermediate 8192 \
        --dtype bfloat16 --sgd --rounds 1
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from machine import ROOT, describe_machine
from report import limit, markdown_table, print_report
from turns import resident_bytes

sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]
os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)  # freed tensors go back to the system

import torch  # noqa: E402
from core import add_model_options, describe_model, write_model  # noqa: E402
from gloo_ranks import spawn  # noqa: E402
from ranks import Case, Trainer  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from rm_ray.config.sections.lora import LoraConfig  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.model.export import export_model  # noqa: E402
from rm_ray.model.lean.sharded_writer import ShardedWriter  # noqa: E402
from rm_ray.train import deepspeed_config  # noqa: E402
from rm_ray.train import engine as engines  # noqa: E402
from rm_ray.train.optimizer import build_optimizer  # noqa: E402

MOST_OF_TRAINING = 1.3
"""Times the memory of training that loading and exporting may take."""

PHASES = ("read", "set up", "train", "export")
"""Reading ends when a lean model has its values; then the optimizer is built, and a whole model is
sharded."""


@dataclass(kw_only=True)
class Meter:
    """The most memory and the time of each phase of this process."""

    before: int = field(default_factory=lambda: resident_bytes("VmRSS"))
    peaks: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Forget the most memory so far."""
        torch.distributed.barrier()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        self.started = time.perf_counter()

    def end(self, phase: str) -> None:
        """Keep what the phase took."""
        self.seconds[phase] = time.perf_counter() - self.started
        self.peaks[phase] = resident_bytes("VmHWM") - self.before

    def watch_optimizer(self) -> None:
        """End one phase and start the next where the engine builds the optimizer."""
        real: Any = engines.build_optimizer

        def build(*arguments: Any, **more: Any) -> Any:
            self.end("read")
            self.start()
            return real(*arguments, **more)

        engines.build_optimizer = build


def train_with_less() -> None:
    """Let engines of this process train by SGD, in small buckets and with little gathered."""

    def build(*arguments: Any, **more: Any) -> Any:
        groups = build_optimizer(*arguments, **more).param_groups
        kept = ("params", "weight_decay")
        return torch.optim.SGD([{key: group[key] for key in kept} for group in groups], lr=0.0)

    engines.build_optimizer = build
    deepspeed_config.BUCKET, deepspeed_config.LIVE = 20_000_000, 1


def measure(rank: int, case: Case, lean: bool, small: ModelConfig, folder: Path, sgd: bool) -> None:
    """Load, train and export in this process, and leave behind what each took."""
    os.dup2(2, 1)
    torch.set_num_threads(1)
    if sgd:
        train_with_less()
    is_cast = lean and (case.zero_stage > 0 or case.lora.is_on)
    loading = getattr(torch, case.dtype) if is_cast else torch.float32
    Trainer(replace(case, model=small), folder, loading=loading, lean=lean).train(0, 1)
    gc.collect()
    meter = Meter()
    meter.watch_optimizer()
    meter.start()
    trainer = Trainer(case, folder, loading=loading, lean=lean)
    meter.end("set up")
    meter.start()
    measured = trainer.train(0, 1)
    meter.end("train")
    meter.start()
    engine = trainer.engine
    weights: Any = engine.stream_weights() if lean else engine.weights()
    if rank == 0 and (lean or case.lora.is_on):
        export_model(
            engine.module, weights, trainer.tokenizer, folder / "out", dtype=torch.bfloat16
        )
    elif rank == 0:  # as it was: all weights, cast, and saved at once
        state = {n.removeprefix("classifier."): w.bfloat16() for n, w in weights.items()}
        engine.module.classifier.save_pretrained(folder / "out", state_dict=state)
    else:
        list(weights)
    meter.end("export")
    found = {"peaks": meter.peaks, "seconds": meter.seconds, "measured": measured}
    (folder / f"{rank}.json").write_text(json.dumps(found))


def run_once(case: Case, lean: bool, small: ModelConfig, ranks: int, sgd: bool) -> dict[str, Any]:
    """Return the ranks' memory together, the longest time of a phase, and the step."""
    with tempfile.TemporaryDirectory(prefix="rm_ray-loading-") as name:
        folder = Path(name)
        spawn(measure, ranks, case, lean, small, folder, sgd, start_method="spawn")
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    return {
        "memory": {p: sum(each["peaks"][p] for each in found) for p in PHASES},
        "largest": {p: max(each["peaks"][p] for each in found) for p in PHASES},
        "seconds": {p: max(each["seconds"][p] for each in found) for p in PHASES},
        "step": found[0]["measured"],
    }


def save_model(config: Path, folder: Path, dtype: torch.dtype) -> ModelConfig:
    """Save random weights, one tensor at a time."""
    architecture = AutoConfig.for_model(**json.loads(config.read_text()))
    with torch.device("meta"):
        shapes = {
            name: weight.shape
            for name, weight in AutoModelForCausalLM.from_config(architecture).state_dict().items()
        }
    folder.mkdir()
    architecture.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    with ShardedWriter(folder, shapes, dtype=dtype, max_shard_size=500_000_000) as writer:
        for name, shape in shapes.items():
            is_norm = len(shape) == 1
            drawn = torch.randn(shape, generator=generator).mul_(0.02)
            writer.write(name, torch.ones(shape) if is_norm else drawn)
    return ModelConfig(name_or_path=str(folder), tokenizer="builtin")


def main() -> None:
    """Measure both ways in turns, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.set_defaults(
        hidden=1024, layers=12, heads=16, key_value_heads=8, intermediate=4096, vocab=32_768
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters of this rank")
    parser.add_argument("--sgd", action="store_true", help="train in as little memory as can be")
    options = parser.parse_args()
    runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="rm_ray-loading-") as name:
        folder = Path(name)
        config = Path(write_model(options, options.vocab, folder))
        model = save_model(config, folder / "model", torch.bfloat16)
        tiny = argparse.Namespace(**{**vars(options), "hidden": 64, "layers": 2, "vocab": 2048})
        (folder / "tiny").mkdir()
        small = Path(write_model(tiny, tiny.vocab, folder / "tiny"))
        warm = save_model(small, folder / "small", torch.bfloat16)
        lora = LoraConfig(rank=options.lora_rank)
        case = Case(options.stage, options.dtype, model, lora=lora)
        for turn in range(2 * options.rounds):
            lean = turn % 2 == 1
            runs[lean].append(run_once(case, lean, warm, options.ranks, options.sgd))
            print(lean, json.dumps(runs[lean][-1]), file=sys.stderr, flush=True)
    assert all(run["step"] == runs[False][0]["step"] for each in runs.values() for run in each)

    def middle(lean: bool, what: str, phase: str) -> float:
        return median(run[what][phase] for run in runs[lean])

    rows = [
        [
            phase,
            *(f"{middle(lean, 'memory', phase) / 1e9:.2f}" for lean in (False, True)),
            *(f"{middle(lean, 'largest', phase) / 1e9:.2f}" for lean in (False, True)),
            *(f"{middle(lean, 'seconds', phase):.1f}" for lean in (False, True)),
        ]
        for phase in PHASES
    ]
    needs = middle(True, "memory", "train")
    over = {
        lean: max(middle(lean, "memory", phase) for phase in PHASES if phase != "train") / needs
        for lean in (False, True)
    }
    loaded = {
        lean: sum(middle(lean, "seconds", phase) for phase in ("read", "set up"))
        for lean in (False, True)
    }
    tuned = f", adapters of rank {options.lora_rank}" if options.lora_rank else ""
    tuned += ", SGD" * options.sgd
    print_report(
        f"{describe_machine()}; {describe_model(options)}; {options.ranks} ranks, ZeRO stage "
        f"{options.stage}, {options.dtype}{tuned}, from files in bfloat16; GB of all ranks",
        markdown_table(
            [
                "phase", "whole, all ranks", "lean, all ranks", "whole, largest rank",
                "lean, largest rank", "whole, s", "lean, s",
            ],
            rows,
        ),
        f"- training needs {needs / 1e9:.2f} GB; read whole, loading and exporting takes "
        f"{over[False]:.2f} times that. Loading takes {loaded[False]:.0f} s whole, and "
        f"{loaded[True]:.0f} s lean",
        f"- {limit('lean loading and exporting over training', over[True], MOST_OF_TRAINING)}",
        figures=[{"lean": lean, **run} for lean, each in runs.items() for run in each],
    )  # fmt: skip
    sys.exit(over[True] > MOST_OF_TRAINING)


if __name__ == "__main__":
    main()
