"""Evaluation gives the accuracy and loss that TRL's RewardTrainer measures on the same pairs."""

import pytest
import torch
from datasets import Dataset
from tables import make_table, ready_step
from trl import RewardConfig, RewardTrainer

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.evaluation.held_out import evaluate_held_out
from rm_ray.model.build import build_reward_model
from rm_ray.model.export import export_model
from rm_ray.train.engine import Engine

NUM_PAIRS = 48


def test_accuracy_and_loss_equal_those_of_trl(tmp_path):
    tokenizer = load_tokenizer("builtin")
    rows = list(generate_pairs("test", NUM_PAIRS))
    table = make_table(tmp_path / "table", rows, tokenizer)
    model = build_reward_model(ModelConfig(), tokenizer, seed=0)
    engine = Engine(model, OptimizerConfig(), ClusterConfig(), dtype=torch.float32, use_gpu=False)
    settings = PlanSettings(global_batch_size=10, tokens_per_micro_batch=300, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = (ready_step(table, plan, step, tokenizer) for step in range(plan.steps.total))
    ours = evaluate_held_out(engine, steps, tokenizer, sample_rows=0).metrics
    export_model(model, engine.weights(), tokenizer, tmp_path / "export", dtype=torch.float32)
    trainer = RewardTrainer(
        model=str(tmp_path / "export"),
        args=RewardConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_eval_batch_size=8,  # divides the pairs: TRL averages over batches
            eval_strategy="steps",
            use_cpu=True,
            bf16=False,
            report_to=[],
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_list([{s: r[s] for s in ("chosen", "rejected")} for r in rows]),
        eval_dataset=Dataset.from_list([{s: r[s] for s in ("chosen", "rejected")} for r in rows]),
    )
    theirs = trainer.evaluate()
    assert ours["eval/rm/ties"] == 0
    assert 0.2 < ours["eval/rm/accuracy"] < 0.9
    assert ours["eval/rm/accuracy"] == pytest.approx(theirs["eval_accuracy"], abs=1e-6)
    assert ours["eval/rm/loss"] == pytest.approx(theirs["eval_loss"], abs=1e-5)
    assert ours["eval/rm/reward_margin"] == pytest.approx(theirs["eval_margin"], abs=1e-5)
