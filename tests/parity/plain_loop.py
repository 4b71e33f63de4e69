"""Training as one would write it in plain PyTorch, to hold ours to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nf4
import torch
import torch.nn.functional as F
from ranks import LORA_SETTINGS, NUM_PAIRS, OF_LISTS, OPTIMIZER, SEED, SETTINGS
from tables import builtin_table, lists_table, read_rows
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.lora import ALL_LINEAR, LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.model.build import build_reward_model
from rm_ray.model.tuning.lora import add_adapters

Trained = tuple[list[tuple[float, float]], dict[str, Tensor]]
"""Each step's loss and gradient norm, and the weights after the last."""


Group = dict[str, Any]
"""A group as it is stored: ``ids`` of its conversations, and columns about its comparisons."""

TIE_STEP = 0.01
"""Learning rate of the logarithm of the parameter of ties, at the peak of the other weights'."""


def bradley_terry(rewards: list[Tensor], group: Group, _: Tensor) -> Tensor | None:
    """Weigh every comparison's cross-entropy; only a sure winner is to lead by the margin."""
    losses = []
    for i, j, weight, margin, wins in comparisons_of(group):
        lead = rewards[i] - rewards[j] - (margin if wins == 1 else 0)
        losses.append(weight * -(wins * F.logsigmoid(lead) + (1 - wins) * F.logsigmoid(-lead)))
    return torch.stack(losses).sum() if losses else None


def plackett_luce(rewards: list[Tensor], group: Group, _: Tensor) -> Tensor | None:
    """Each response that beats any is chosen from itself and those; the mean over them."""
    losses = []
    for i, reward in enumerate(rewards):
        beaten = {b for a, b, _, _, wins in comparisons_of(group) if a == i and wins > 0.5}
        if beaten:
            among = torch.stack([reward, *(rewards[j] for j in beaten)])
            losses.append(-among.softmax(0)[0].log())
    return torch.stack(losses).mean() if losses else None


def davidson(rewards: list[Tensor], group: Group, log_nu: Tensor) -> Tensor | None:
    """Weigh every comparison's cross-entropy, where a tie is a third outcome."""
    losses = []
    for i, j, weight, _, wins in comparisons_of(group):
        outcomes = torch.stack([rewards[i], rewards[j], (rewards[i] + rewards[j]) / 2 + log_nu])
        win, loss, tie = outcomes.log_softmax(0)
        losses.append(weight * -(tie if wins == 0.5 else wins * win + (1 - wins) * loss))
    return torch.stack(losses).sum() if losses else None


def comparisons_of(group: Group) -> list[tuple[Any, ...]]:
    """Return a group's comparisons as better, worse, weight, margin and probability."""
    columns = ("better", "worse", "weight", "margin", "probability")
    return list(zip(*(group[name] for name in columns), strict=True))


LOSSES: dict[str, Callable[[list[Tensor], Group, Tensor], Tensor | None]] = {
    "bradley_terry": bradley_terry,
    "plackett_luce": plackett_luce,
    "davidson": davidson,
}
"""The losses of a group by name; None if it has none."""


def train_plainly(
    folder: Path, model_config: ModelConfig, *, frozen: tuple[str, ...] = (), lists: str = ""
) -> Trained:
    """Train with a loop that knows nothing of micro-batches, ranks or engines.

    The rewards are those of transformers' own sequence classifier, one conversation at a time.
    Parameters with any of ``frozen`` in their names are left as they are. ``lists`` names the loss
    if lists are trained on. The reported loss is the mean over groups that have one.
    """
    tokenizer = load_tokenizer("builtin")
    model = build_reward_model(model_config, tokenizer, seed=SEED, layout="padded").classifier
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(part in name for part in frozen)
    measured, log_nu = _train(model, folder, OF_LISTS if lists else SETTINGS, lists)
    weights = {f"classifier.{k}": v for k, v in model.state_dict().items()}
    if lists == "davidson":
        weights["tie.moved"] = log_nu[None] * 1e-3 / TIE_STEP
    return measured, weights


def train_with_peft(folder: Path, lora: LoraConfig, quantization: str = "none") -> Trained:
    """Train peft's own model in the same loop, from the adapters that ours starts from.

    With ``quantization``, on the values that its 4-bit weights stand for. The weights are those
    that peft merges.
    """
    import peft

    tokenizer = load_tokenizer("builtin")
    ours, theirs = (
        build_reward_model(ModelConfig(), tokenizer, seed=SEED, layout="padded") for _ in range(2)
    )
    if quantization == "nf4":
        nf4.round_linear_layers(theirs.classifier.base_model)
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        target_modules=[name for name in lora.targets if name != ALL_LINEAR] or ALL_LINEAR,
        modules_to_save=["score", *["embed_tokens"] * lora.train_embeddings],
    )
    model = peft.get_peft_model(theirs.classifier, config)
    add_adapters(ours, lora, seed=SEED)
    start = {
        f"base_model.model.{name}": value
        for name, value in ours.classifier.state_dict().items()
        if ".lora_" in name
    }
    assert not model.load_state_dict(start, strict=False).unexpected_keys
    measured, _ = _train(model, folder, LORA_SETTINGS)
    merged = model.merge_and_unload().state_dict()
    return measured, {f"classifier.{name}": value for name, value in merged.items()}


def _train(
    model: torch.nn.Module, folder: Path, settings: PlanSettings, lists: str = ""
) -> tuple[list[tuple[float, float]], Tensor]:
    """Return each step's loss and gradient norm, and the logarithm of Davidson's nu."""
    make = lists_table if lists else builtin_table
    table, _ = make(folder / "table", NUM_PAIRS)
    groups, plan = read_rows(table), Plan(lengths=table.lengths, settings=settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2]
    plain = [p for p in trained if p.ndim < 2]
    log_nu = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.1},
            {"params": plain, "weight_decay": 0.0},
            {"params": [log_nu], "weight_decay": 0.0, "lr": TIE_STEP},
        ],
        lr=1e-3,
        eps=1e-5,
    )
    total = plan.steps.total
    schedule = LambdaLR(
        optimizer, lambda step: step / 3 if step < 3 else (total - step) / (total - 3)
    )
    measured = []
    for step in range(total):
        optimizer.zero_grad()
        of_step = [groups[group] for group in plan.groups_of_step(step)]
        losses = []
        for group in of_step:
            rewards = [model(torch.tensor([ids])).logits[0, 0] for ids in group["ids"]]
            loss = LOSSES[lists or "bradley_terry"](rewards, group, log_nu)
            losses += [] if loss is None else [loss]
        total_loss = torch.stack(losses).sum()
        (total_loss / len(of_step)).backward()
        norm = torch.nn.utils.clip_grad_norm_([*trained, log_nu], OPTIMIZER.max_grad_norm)
        optimizer.step()
        schedule.step()
        measured.append((total_loss.item() / len(losses), norm.item()))
    return measured, log_nu.detach()


def check_against(expected: Trained, path: Path, *, num_steps: int = 10) -> None:
    """Hold what a run left in a file to the plain loop: every step, and the last weights."""
    measured, weights = torch.load(path)
    steps, expected_weights = expected
    assert len(steps) in (6, num_steps)
    torch.testing.assert_close(torch.tensor(measured), torch.tensor(steps), rtol=1e-4, atol=1e-5)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=1e-5)
