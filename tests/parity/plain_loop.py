"""Training as one would write it in plain PyTorch, to hold ours to."""

from pathlib import Path

import torch
import torch.nn.functional as F
from ranks import NUM_PAIRS, OPTIMIZER, SEED, SETTINGS
from tables import builtin_table, chosen_ids, rejected_ids
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from rm_ray.batches.plan import Plan
from rm_ray.config.sections.model import ModelConfig
from rm_ray.model.build import build_reward_model

Trained = tuple[list[tuple[float, float]], dict[str, Tensor]]
"""Each step's loss and gradient norm, and the weights after the last."""


def train_plainly(
    folder: Path, model_config: ModelConfig, *, frozen: tuple[str, ...] = ()
) -> Trained:
    """Train with a loop that knows nothing of micro-batches, ranks or engines.

    The rewards are those of transformers' own sequence classifier, one pair at a time. Parameters
    with any of ``frozen`` in their names are left as they are.
    """
    table, tokenizer = builtin_table(folder / "table", NUM_PAIRS)
    plan = Plan(lengths=table.lengths, settings=SETTINGS)
    model = build_reward_model(model_config, tokenizer, seed=SEED, layout="padded").classifier
    trained = [p for name, p in model.named_parameters() if not any(f in name for f in frozen)]
    decayed = [p for p in trained if p.ndim >= 2]
    plain = [p for p in trained if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
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
        pairs = plan.pairs_of_step(step)
        losses = []
        for pair in pairs:
            chosen = model(torch.tensor(chosen_ids(table, pair)).long()[None]).logits[0, 0]
            rejected = model(torch.tensor(rejected_ids(table, pair)).long()[None]).logits[0, 0]
            losses.append(-F.logsigmoid(chosen - rejected))
        loss = torch.stack(losses).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.max_grad_norm)
        optimizer.step()
        schedule.step()
        measured.append((loss.item(), norm.item()))
    return measured, {f"classifier.{k}": v for k, v in model.state_dict().items()}


def check_against(expected: Trained, path: Path) -> None:
    """Hold what a run left in a file to the plain loop: every step, and the last weights."""
    measured, weights = torch.load(path)
    steps, expected_weights = expected
    assert len(steps) == 10
    torch.testing.assert_close(torch.tensor(measured), torch.tensor(steps), rtol=1e-4, atol=1e-5)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=1e-5)
