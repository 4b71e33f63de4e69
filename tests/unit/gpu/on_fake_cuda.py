"""Trains, evaluates, restores, probes and scores on fake CUDA tensors; prints what was seen.

python on_fake_cuda.py STAND_IN.so CASES_JSON
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unit.gpu.fake_cuda import load_stand_in, make_watch

load_stand_in(Path(sys.argv[1]))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from families import PAD, FakeTokenizer, build, some_groups, some_pairs  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import _disable_current_modes  # noqa: E402

from rm_ray.batches.collate import Collator, ReadyMicroBatch, label_groups  # noqa: E402
from rm_ray.batches.loading import LoadedMicroBatch  # noqa: E402
from rm_ray.batches.plan import MicroBatch  # noqa: E402
from rm_ray.config.sections.cluster import ClusterConfig  # noqa: E402
from rm_ray.config.sections.optimizer import OptimizerConfig  # noqa: E402
from rm_ray.data.cache.group_columns import GroupColumns  # noqa: E402
from rm_ray.data.cache.group_tokens import GroupLengths  # noqa: E402
from rm_ray.evaluation.held_out import evaluate_held_out  # noqa: E402
from rm_ray.objectives.bradley_terry import BradleyTerry  # noqa: E402
from rm_ray.scoring.prefix_cache import PrefixCache  # noqa: E402
from rm_ray.scoring.scorer import Scorer  # noqa: E402
from rm_ray.train import slices  # noqa: E402
from rm_ray.train.collectives import split_votes, sum_with_votes  # noqa: E402
from rm_ray.train.engine import Engine  # noqa: E402
from rm_ray.train.reference_rewards import ReferenceGroups  # noqa: E402
from rm_ray.train.slices import Slice, read_slices, write_slices  # noqa: E402
from rm_ray.train.step import accumulate_gradients, check_step, train_step  # noqa: E402

GPU = torch.device("cuda:0")
GROUPS_EACH = 3
VOTES = (True, False)


class Tokenizer(FakeTokenizer):
    """What evaluation asks of a tokenizer, too."""

    def decode(self, ids: Any) -> str:
        """Return the ids as they are."""
        return " ".join(map(str, ids))


class NoValues(FakeTensorMode):
    """Fakes of which none keeps its value, as those of one element otherwise do."""

    def may_turn_const(self, tensor: torch.Tensor) -> bool:
        """Refuse."""
        return False


class Trial:
    """One model, in its layout and precision, on the fake GPU."""

    def __init__(self, case: dict[str, Any], folder: Path) -> None:
        self.case, self.folder = case, folder
        self.watch = make_watch(answer=GROUPS_EACH * case["micro_batches"])
        self.model = build(
            folder, case["family"], case["layout"], gradient_checkpointing=case["recomputing"]
        )
        if case["precision"] == "bfloat16 weights":
            self.model.bfloat16()
        self.model.register_forward_pre_hook(lambda *_: self._enter("forward"))
        self.model.register_forward_hook(lambda *_: self._enter("around"))
        self.collator = Collator(
            layout=case["layout"], kernel=case["kernel"], pad_token_id=PAD, device=GPU
        )
        self.gradients: set[str] = set()
        self.rewards: set[str] = set()
        self.model.classifier.score.register_forward_hook(
            lambda _module, _inputs, rewards: self.rewards.add(f"{rewards.dtype}")
        )

    def _enter(self, phase: str) -> None:
        self.watch.phase = phase

    @contextmanager
    def on_gpu(self) -> Iterator[None]:
        """Make every new tensor a fake, and watch."""
        with NoValues(allow_non_fake_inputs=True), self.watch:
            yield

    def engine(self) -> Engine:
        """Spread the model over the one GPU."""
        return WatchedEngine(self)

    def micro_batches(self) -> list[ReadyMicroBatch]:
        """Lay out a step, without the pinned memory that there is none of."""
        ready, count = [], self.case["micro_batches"]
        for i in range(count):
            groups = some_groups((1, 2, 3), seed=i)
            columns = columns_of(groups.lengths)
            loaded = LoadedMicroBatch(
                plan=MicroBatch(
                    step=0,
                    position=i,
                    num_micro_batches=count,
                    rank=0,
                    groups=np.arange(i * GROUPS_EACH, (i + 1) * GROUPS_EACH),
                    weights=np.ones(GROUPS_EACH),
                ),
                columns=columns,
                tokens=groups.tokens,
            )
            labels = label_groups(columns, loaded.plan.weights)
            laid_out = self.collator.arrange(groups, labels)
            ready.append(ReadyMicroBatch(loaded=loaded, groups=laid_out))
        return self.collator.move(ready)


def columns_of(lengths: GroupLengths) -> GroupColumns:
    """Return columns in which the first group compares nothing, and one comparison is a tie."""
    return GroupColumns.of(
        {
            "num_responses": lengths.num_responses,
            "num_comparisons": [0, 1, 2],
            "prefix_length": lengths.prefix,
            "prompt_length": lengths.prefix,
            "length": lengths.conversations,
            "score": np.full(len(lengths.conversations), np.nan),
            "better": [0, 2, 0],
            "worse": [1, 1, 2],
            "weight": [1.0, 0.5, 0.5],
            "margin": [0.25, 0.0, 0.0],
            "probability": [1.0, 1.0, 0.5],
        }
    )


class WatchedEngine(Engine):
    """The engine of one GPU, which says when it goes backward and when it updates."""

    def __init__(self, trial: Trial) -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        half = trial.case["precision"] == "autocast"
        super().__init__(
            trial.model,
            OptimizerConfig(),
            ClusterConfig(zero_stage=0),
            dtype=torch.bfloat16 if half else torch.float32,
            use_gpu=True,
        )
        self.trial = trial

    def backward(self, loss: torch.Tensor) -> None:
        """Note the phase."""
        with self.trial.watch.during("backward"):
            super().backward(loss)

    def step(self, learning_rate: float, guard: torch.Tensor) -> tuple[list[float], float]:
        """Note the phase, and what gradients there are."""
        for parameter in self.module.parameters():
            gradient = parameter.grad
            is_like = (
                gradient is not None
                and gradient.device == parameter.device == GPU
                and gradient.dtype == parameter.dtype
            )
            self.trial.gradients.add("like their weights" if is_like else "of another make")
        with self.trial.watch.during("update"):
            return super().step(learning_rate, guard)


def train(trial: Trial) -> dict[str, Any]:
    """Take one step as the training loop does, with votes in its all-reduce."""
    with trial.on_gpu():
        engine = trial.engine()
        gradients = accumulate_gradients(
            engine,
            BradleyTerry(),
            trial.micro_batches(),
            num_groups=GROUPS_EACH * trial.case["micro_batches"],
        )
        together = sum_with_votes(gradients.sums, VOTES)
        numbers, grad_norm = engine.step(1e-3, together)
        sums, _ = split_votes(numbers, len(VOTES))
        metrics = check_step(gradients, sums, grad_norm)
        return {
            "gradients": sorted(trial.gradients),
            "sums": str(metrics.groups.sums.device),
            "state": devices_of_state(engine),
        }


def score_held_out(trial: Trial) -> dict[str, Any]:
    """Evaluate one step."""
    with trial.on_gpu():
        steps = [trial.micro_batches()]
        evaluation = evaluate_held_out(
            trial.engine(),
            BradleyTerry(),
            steps,
            Tokenizer(),  # type: ignore[arg-type]
            sample_rows=2,
        )
    assert evaluation is not None
    return {"samples": len(evaluation.samples), "scored": len(evaluation.order)}


def restore(trial: Trial) -> dict[str, Any]:
    """Fill a fresh engine from a file of slices, and train on."""
    path = trial.folder / "slices.safetensors"
    write_slices(
        [
            Slice(
                parameter=name,
                start=0,
                tensors={
                    kind: torch.ones(parameter.numel(), dtype=parameter.dtype)
                    for kind in ("weight", "exp_avg", "exp_avg_sq")
                },
                is_written=True,
            )
            for name, parameter in trial.model.named_parameters()
        ],
        path,
    )
    with trial.on_gpu():
        engine = trial.engine()
        with trial.watch.during("restore"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(slices, "safe_open", RealFile)
            read_slices(engine.slices(), [path])
            engine.resume(7)
        state = devices_of_state(engine)
        train_step(
            engine,
            BradleyTerry(),
            trial.micro_batches(),
            num_groups=GROUPS_EACH * trial.case["micro_batches"],
            learning_rate=1e-3,
        )
    return {"state": state, "parameters": len(list(trial.model.parameters()))}


class RealFile:
    """A file of tensors that reads them as they are, also where every new tensor is a fake."""

    def __init__(self, path: Path, framework: str) -> None:
        self._file = safe_open(path, framework=framework)

    def __enter__(self) -> RealFile:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._file.keys())

    def get_slice(self, name: str) -> RealSlice:
        """Return a tensor that is yet to be read."""
        return RealSlice(self._file.get_slice(name))


class RealSlice:
    """A tensor of such a file."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored

    def get_shape(self) -> list[int]:
        """Return its shape."""
        return list(self._stored.get_shape())

    def __getitem__(self, part: slice) -> torch.Tensor:
        with _disable_current_modes():
            read: torch.Tensor = self._stored[part]
        return read


def probe(trial: Trial) -> dict[str, Any]:
    """Score the pairs that a checkpoint keeps."""
    probes = ReferenceGroups(groups=some_pairs(2), conversations=())
    with trial.on_gpu():
        scored = probes.score(trial.engine(), trial.collator, tokens_per_pass=1_000)
    return {"scored": len(scored["scored"])}


def score(trial: Trial) -> dict[str, Any]:
    """Score conversations of three prompts, with one, two and three each."""
    rng = np.random.default_rng(0)
    prompts = [
        [rng.integers(3, PAD, 9).tolist() for _ in range(num_conversations)]
        for num_conversations in (1, 2, 3)
    ]
    with trial.on_gpu():
        scorer = Scorer(
            model=trial.model.to(GPU).eval(),
            tokenizer=FakeTokenizer(),  # type: ignore[arg-type]
            collator=trial.collator,
            tokens_per_forward=40,
            cache=PrefixCache(200),
        )
        for _ in range(2):  # the second time, with cached keys
            rewards = scorer.score(prompts)
    return {"scored": [len(found) for found in rewards]}


def devices_of_state(engine: Engine) -> list[str]:
    """Return where weights, moments and the counts of updates are."""
    tensors = [t for part in engine.slices() for t in part.tensors.values()]
    counts = [state["step"] for state in engine._adamw.state.values()]
    return sorted({str(tensor.device) for tensor in tensors + counts})


WORK = {
    "train": train,
    "evaluate": score_held_out,
    "restore": restore,
    "probe": probe,
    "score": score,
}


def run(case: dict[str, Any]) -> dict[str, Any]:
    """Do the work of a case, and return what came of it and what was seen."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(case, Path(folder))
        try:
            found |= WORK[case["work"]](trial)
        except Exception:  # the test that reads it fails with it
            found["error"] = traceback.format_exc()
    watch = trial.watch
    return found | {
        "rewards": sorted(trial.rewards),
        "seen": watch.seen,
        "casts": watch.casts,
        "where": watch.where,
        "calls": {
            phase: watch.operators[f"{phase}: _varlen_attn"] for phase in ("forward", "backward")
        },
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.disable()  # a case makes many objects, and a process of some cases may keep them
    for case in json.loads(Path(sys.argv[2]).read_text()):
        print(json.dumps(run(case)), flush=True)
