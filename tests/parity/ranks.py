"""What each process of a parity test runs: our engine and step, without Ray."""

import os
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from tables import builtin_table, lists_table, ready_step
from varlen_operator import register_varlen_on_cpu

from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.build import build_reward_model
from rm_ray.model.export import PREFIX, export_model
from rm_ray.model.tuning.lora import find_adapters
from rm_ray.model.tuning.merge import merge_adapters
from rm_ray.model.tuning.trainable import choose_trained, loads_in_dtype
from rm_ray.objectives.build import build_objective
from rm_ray.objectives.learned_ties import build_tie_parameter
from rm_ray.train import engine
from rm_ray.train.determinism import compute_deterministically
from rm_ray.train.engine import Engine
from rm_ray.train.optimizer import build_optimizer, learning_rate_schedule
from rm_ray.train.slices import read_slices, write_slices
from rm_ray.train.step import NonFiniteLossError, train_step

NUM_PAIRS, SEED = 24, 3
SETTINGS = PlanSettings(
    # 24 = 3 x 7 + 3 and 60 = 2 x 24 + 12: short last steps, and an odd pair on 2 ranks.
    global_batch_size=7,
    tokens_per_micro_batch=260,
    seed=SEED,
    epochs=3,
    max_episodes=60,
)
OF_LISTS = replace(SETTINGS, max_episodes=38)
"""Lists are trained on in 6 steps: 24 = 3 x 7 + 3 and 38 = 24 + 2 x 7."""

OBJECTIVES = {
    "bradley_terry": ObjectiveConfig(),
    "plackett_luce": ObjectiveConfig(loss="plackett_luce"),
    "davidson": ObjectiveConfig(ties="davidson", tie_parameter="learned"),
}
"""What lists are trained with, by name."""

OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3,
    eps=1e-5,  # Adam divides by a gradient's size: without it, rounding of a zero becomes a step
    weight_decay=0.1,
    warmup_steps=3,
    max_grad_norm=0.5,
    schedule="linear",
)


@dataclass(frozen=True)
class Case:
    """One engine to try."""

    zero_stage: int
    dtype: str = "float32"
    model: ModelConfig = field(default_factory=ModelConfig)
    offload: Literal["none", "optimizer", "all"] = "none"
    layout: Layout = "packed"
    secondary: bool = False
    kernel: Kernel = "grouped"
    frozen: tuple[str, ...] = ()
    """Parameters with any of these in their names are not trained."""
    lists: str = ""
    """The name of the objective, if lists are trained on; pairs otherwise."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    settings: PlanSettings = SETTINGS

    @property
    def name(self) -> str:
        """How its results are called."""
        words = "-recomputing" * self.model.gradient_checkpointing + "-secondary" * self.secondary
        words += "-varlen" * (self.kernel == "varlen") + "-frozen" * bool(self.frozen)
        words += f"-{self.lists}" if self.lists else ""
        words += f"-lora-{self.lora.rank}" * self.lora.is_on
        words += f"-{self.model.trainable}" * (self.model.trainable != "all")
        words += f"-{self.model.quantization}" * (self.model.quantization != "none")
        if self.model.name_or_path.endswith(".json"):
            words += f"-{Path(self.model.name_or_path).stem}"
        return f"{self.zero_stage}-{self.dtype}-{self.offload}-{self.layout}{words}"


FROZEN = ("embed_tokens", "layers.0.")

LORA_SETTINGS = replace(SETTINGS, epochs=5, max_episodes=None)
"""20 steps."""


def lora_case(
    stage: int, *, recomputing: bool = False, quantization: Any = "none", **more: Any
) -> Case:
    """Return a training of adapters: of all linear layers, or of those that ``lora`` names."""
    model = ModelConfig(gradient_checkpointing=recomputing, quantization=quantization)
    lora = more.pop("lora", LoraConfig(rank=4, alpha=8.0))
    return Case(stage, model=model, lora=lora, settings=LORA_SETTINGS, **more)


def varlen_case(stage: int, name: str, *, recomputing: bool = False, **more: Any) -> Case:
    """Return a case in which attention goes the way that it goes on a GPU."""
    model = ModelConfig(name_or_path=name, gradient_checkpointing=recomputing)
    return Case(stage, kernel="varlen", model=model, **more)


class Trainer:
    """An engine over generated pairs or lists that takes the plan's steps."""

    def __init__(
        self,
        case: Case,
        folder: Path,
        *,
        loading: torch.dtype = torch.float32,
        lean: bool = False,
    ) -> None:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        table_folder = folder / f"{'lists' if case.lists else 'table'}-{os.getpid()}"
        make = lists_table if case.lists else builtin_table
        self.table, self.tokenizer = (
            make(table_folder, NUM_PAIRS) if not table_folder.exists() else _reopen(table_folder)
        )
        self.case = case
        if case.kernel == "varlen":
            register_varlen_on_cpu()
        settings = OF_LISTS if case.lists else case.settings
        self.plan = Plan(lengths=self.table.lengths, settings=replace(settings, layout=case.layout))
        objective = OBJECTIVES[case.lists or "bradley_terry"]
        self.objective = build_objective(objective)
        model = build_reward_model(
            case.model, self.tokenizer, seed=SEED, layout=case.layout, dtype=loading, lean=lean
        )
        dtype = getattr(torch, case.dtype)
        choose_trained(model, case.model, case.lora, seed=SEED, dtype=dtype)
        model.tie = build_tie_parameter(objective, OPTIMIZER)
        for name, parameter in model.named_parameters():
            parameter.requires_grad &= not any(part in name for part in case.frozen)
        self.engine = Engine(
            model,
            OPTIMIZER,
            ClusterConfig(
                zero_stage=case.zero_stage,
                offload=case.offload,
                zero_secondary_partition=case.secondary,
            ),
            dtype=dtype,
            use_gpu=False,
        )
        self.learning_rate = learning_rate_schedule(OPTIMIZER, self.plan.steps.total)

    def merged_weights(self) -> dict[str, torch.Tensor]:
        """Return the full weights on rank 0, with adapters merged if there are any."""
        weights = self.engine.weights()
        if not weights or not self.case.lora.is_on:
            return weights
        bare = ((name.removeprefix(PREFIX), weight) for name, weight in weights.items())
        adapters = find_adapters(self.engine.module.classifier)
        merged = merge_adapters(bare, adapters, dtype=getattr(torch, self.case.dtype))
        return {f"{PREFIX}{name}": weight for name, weight in merged}

    def export(self, folder: Path) -> None:
        """Write the model on rank 0, as a worker does at the end; every rank calls it."""
        weights = self.engine.stream_weights()
        if self.engine.rank == 0:
            dtype = getattr(torch, self.case.dtype)
            export_model(self.engine.module, weights, self.tokenizer, folder, dtype=dtype)
        else:
            deque(weights, maxlen=0)

    def save(self, folder: Path) -> None:
        """Write every rank's slices, and how often AdamW has updated them."""
        folder.mkdir(exist_ok=True)
        write_slices(self.engine.slices(), folder / f"slices-{self.engine.rank}.safetensors")
        (folder / "num_updates").write_text(str(self.engine.num_updates))
        dist.barrier()

    def load(self, folder: Path) -> None:
        """Read what any number of ranks wrote."""
        read_slices(self.engine.slices(), sorted(folder.glob("*.safetensors")))
        self.engine.resume(int((folder / "num_updates").read_text()))

    def train(
        self, first_step: int, last_step: int, *, margin: float | None = None
    ) -> list[tuple[float, float]]:
        """Take steps; return each one's loss and gradient norm.

        The first pair of this rank has a ``margin`` in each of them, if one is given.
        """
        measured = []
        for step in range(first_step, last_step):
            micro_batches = ready_step(
                self.table,
                self.plan,
                step,
                self.tokenizer,
                rank=self.engine.rank,
                world_size=self.engine.world_size,
                kernel=self.case.kernel,
            )
            if margin is not None:
                micro_batches[0].groups.labels.margin[0] = margin
            metrics = train_step(
                self.engine,
                self.objective,
                micro_batches,
                num_groups=self.plan.steps.size(step),
                learning_rate=self.learning_rate(step),
            )
            measured.append((metrics.groups.means("train")["train/loss"], metrics.grad_norm))
        return measured


def _reopen(folder: Path) -> Any:
    from rm_ray.data.cache.token_table import map_table
    from rm_ray.data.tokens.tokenizer import load_tokenizer

    return map_table(folder), load_tokenizer("builtin")


def train_all(rank: int, cases: list[Case], folder: Path) -> None:
    """Train every case to the end; rank 0 leaves losses, norms and weights behind, merged."""
    for case in cases:
        trainer = Trainer(case, folder)
        measured = trainer.train(0, trainer.plan.steps.total)
        weights = trainer.merged_weights()
        if rank == 0:
            torch.save((measured, weights), folder / f"{case.name}.pt")


def interrupt_all(rank: int, cases: list[Case], folder: Path) -> None:
    """Train every case with a save, a fresh engine and a load in the middle.

    Operations without a deterministic implementation raise.
    """
    compute_deterministically()
    for case in cases:
        before = Trainer(case, folder)
        total = before.plan.steps.total
        measured = before.train(0, total // 2)
        before.save(folder / f"saved-{case.name}")
        after = Trainer(case, folder)
        after.load(folder / f"saved-{case.name}")
        measured += after.train(total // 2, total)
        weights = after.merged_weights()
        if rank == 0:
            torch.save((measured, weights), folder / f"resumed-{case.name}.pt")


def meet_infinite_losses(rank: int, cases: list[Case], folder: Path) -> None:
    """Train every case, between its steps on one whose loss is infinite on the last rank.

    The margin of a pair is, so that the gradient is finite. Rank 0 leaves what the other steps
    measured, how many updates there were, and the pairs that were named.
    """
    for case in cases:
        trainer = Trainer(case, folder)
        is_last = rank == trainer.engine.world_size - 1
        measured = trainer.train(0, 2)
        try:
            trainer.train(2, 3, margin=float("inf") if is_last else None)
            named: tuple[int, ...] = ()
        except NonFiniteLossError as error:
            named = error.groups
        measured += trainer.train(2, 4)
        if rank == 0:
            torch.save(
                (measured, trainer.engine.num_updates, named), folder / f"infinite-{case.name}.pt"
            )


def resume_fused(rank: int, cases: list[Case], folder: Path) -> None:
    """Train and resume with fused AdamW, as workers with GPUs do; leave both halves' ends."""

    def build_fused(model: Any, config: OptimizerConfig, **_: Any) -> torch.optim.AdamW:
        return build_optimizer(model, config, fused=True)

    engine.build_optimizer = build_fused
    for case in cases:
        before = Trainer(case, folder)
        before.train(0, 2)
        before.save(folder / f"fused-{case.name}")
        after = Trainer(case, folder)
        after.load(folder / f"fused-{case.name}")
        ends = [(one.train(2, 4), one.engine.weights()) for one in (before, after)]
        torch.save(ends, folder / f"fused-{case.name}.pt")


def train_third(rank: int, third: int, moves: list[tuple[Case, ...]], folder: Path) -> None:
    """Go on from where other ranks, at perhaps another stage, stopped; leave a third more."""
    for i, cases in enumerate(moves):
        trainer = Trainer(cases[third], folder)
        total = trainer.plan.steps.total
        if third > 0:
            trainer.load(folder / f"third-{third - 1}-{i}")
        measured = trainer.train(third * total // 3, (third + 1) * total // 3)
        trainer.save(folder / f"third-{third}-{i}")
        weights = trainer.engine.weights()
        if rank == 0:
            torch.save((measured, weights), folder / f"third-{third}-{i}.pt")


def gather_head(rank: int, model: ModelConfig, folder: Path) -> None:
    """Shard a model under ZeRO-3 and leave its gathered head behind."""
    weights = Trainer(Case(zero_stage=3, model=model), folder).engine.weights()
    if rank == 0:
        torch.save(weights["classifier.score.weight"], folder / "head.pt")


def train_over_nodes(rank: int, wide: ModelConfig, files: ModelConfig, folder: Path) -> None:
    """Do what shows on more than two ranks, or on several machines, alone."""
    resume_settled(rank, folder)
    gather_over_nodes(rank, wide, folder)
    masters = [
        {
            part.parameter: part.tensors["weight"].clone()
            for part in Trainer(
                Case(stage, "bfloat16", files), folder, loading=dtype
            ).engine.slices()
        }
        for stage in (2, 3)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    torch.save(masters, folder / f"masters-{rank}.pt")


def resume_settled(rank: int, folder: Path) -> None:
    """Train and resume under DDP; rank 0 leaves what each measured and the weights."""
    measured: list[Any] = []
    for first_step in (0, 3):
        trainer = Trainer(Case(0), folder)
        groups = ready_step(trainer.table, trainer.plan, 0, trainer.tokenizer)[0].groups
        before = {k: v.clone() for k, v in trainer.engine.module.state_dict().items()}
        trainer.engine.settle(groups)
        assert all(torch.equal(v, before[k]) for k, v in trainer.engine.module.state_dict().items())
        if first_step:
            trainer.load(folder / "settled")
        steps = trainer.train(first_step, 3)
        if not first_step:
            trainer.save(folder / "settled")
        measured += [steps + trainer.train(3, 5), trainer.engine.weights()]
    if rank == 0:
        torch.save(measured, folder / "settled.pt")


def gather_over_nodes(rank: int, model: ModelConfig, folder: Path) -> None:
    """Train and resume at stage 3, without and with a second partition in each node.

    Rank 0 leaves what was measured, the weights, and how much of them a step gathered from how
    many ranks.
    """
    from deepspeed.runtime.zero import partition_parameters

    from rm_ray.train import deepspeed_config

    real, gathered = partition_parameters._dist_allgather_fn, Counter[int]()

    def count(mine: torch.Tensor, whole: torch.Tensor, group: Any = None) -> Any:
        gathered[dist.get_world_size(group)] += whole.numel()
        return real(mine, whole, group)

    partition_parameters._dist_allgather_fn = count
    deepspeed_config.LIVE = 1  # nothing stays gathered, as where the model is larger than that
    for secondary in (False, True):
        case = Case(3, model=model, secondary=secondary)
        before = Trainer(case, folder)
        measured = before.train(0, 1)
        before.save(folder / f"saved-{case.name}")
        gathered.clear()
        measured += before.train(1, 2)
        in_a_step = dict(gathered)
        after = Trainer(case, folder)
        after.load(folder / f"saved-{case.name}")
        again = after.train(1, 2)
        weights = [trainer.engine.weights() for trainer in (before, after)]
        if rank == 0:
            torch.save((measured, again, *weights, in_a_step), folder / f"{case.name}.pt")


def _held(parameter: Any, rank: int) -> torch.Tensor:
    """Return what a rank holds of a parameter, without the padding of ZeRO-3's last part."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach().clone()
    part = parameter.ds_tensor.detach().view(-1)
    return part[: max(0, parameter.ds_numel - rank * len(part))].clone()


def place_leanly(rank: int, cases: list[Case], folder: Path) -> None:
    """Start every case from a whole model and from a lean one, and take two steps with each.

    Every rank leaves its slices of the weights before, its frozen weights and buffers, and rank 0
    its random numbers, what was measured, and the weights afterwards, merged; those of adapters
    also as an export.
    """
    for i, case in enumerate(cases):
        is_cast = case.zero_stage > 0 or loads_in_dtype(case.model, case.lora)
        loading = getattr(torch, case.dtype) if is_cast else torch.float32
        found: list[Any] = []
        for lean in (False, True):
            trainer = Trainer(case, folder, loading=loading, lean=lean)
            starts = {
                (part.parameter, part.start): part.tensors["weight"].clone()
                for part in trainer.engine.slices()
            }
            module: torch.nn.Module = trainer.engine.module
            others = {k: v.clone() for k, v in module.named_buffers()}
            others |= {
                name: _held(parameter, rank)
                for name, parameter in module.named_parameters()
                if not parameter.requires_grad
            }
            if rank == 0:  # which alone draws what is random
                others["random"] = torch.get_rng_state()
            found.append((starts, others, trainer.train(0, 2), trainer.merged_weights()))
            if lean and case.lora.is_on:
                trainer.export(folder / f"export-{i}")
        torch.save(found, folder / f"lean-{i}-{rank}.pt")
