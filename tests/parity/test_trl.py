"""Evaluation gives the accuracy and loss that TRL's RewardTrainer measures on the same pairs."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from base_models import make
from datasets import Dataset
from tables import make_table, ready_step
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig, ResolvedModel
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.evaluation.held_out import evaluate_held_out
from rm_ray.model.build import build_reward_model
from rm_ray.model.export import PREFIX, export_model
from rm_ray.model.tuning.adapter_folder import write_adapter
from rm_ray.model.tuning.trainable import choose_trained
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.train.engine import Engine

NUM_PAIRS = 48


def evaluate(model: Any, rows: list[dict[str, Any]], folder: Path, **options: Any) -> Any:
    """Return TRL's figures on pairs."""
    pairs = Dataset.from_list([{s: r[s] for s in ("chosen", "rejected")} for r in rows])
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(folder / "trl"),
            per_device_eval_batch_size=8,  # divides the pairs: TRL averages over batches
            eval_strategy="steps",
            use_cpu=True,
            bf16=False,
            report_to=[],
            model_init_kwargs={"dtype": "float32"} if isinstance(model, str) else None,
        ),
        train_dataset=pairs,
        eval_dataset=pairs,
        **options,
    )
    return trainer.evaluate()


def evaluate_ours(folder: Path, rows: list[dict[str, Any]], tokenizer: Any, engine: Engine) -> Any:
    """Return our figures on the same pairs."""
    table = make_table(folder / "table", rows, tokenizer)
    settings = PlanSettings(global_batch_size=10, tokens_per_micro_batch=300, shuffle=False)
    plan = Plan(lengths=table.lengths, settings=settings)
    steps = (ready_step(table, plan, step, tokenizer) for step in range(plan.steps.total))
    return evaluate_held_out(engine, BradleyTerry(), steps, tokenizer, sample_rows=0).metrics


def check_equal(ours: Any, theirs: Any) -> None:
    assert ours["eval/rm/ties"] == 0
    assert 0.2 < ours["eval/rm/accuracy"] < 0.9
    assert ours["eval/rm/accuracy"] == pytest.approx(theirs["eval_accuracy"], abs=1e-6)
    assert ours["eval/rm/loss"] == pytest.approx(theirs["eval_loss"], abs=1e-5)
    assert ours["eval/rm/reward_margin"] == pytest.approx(theirs["eval_margin"], abs=1e-5)


def start(model: Any) -> Engine:
    return Engine(model, OptimizerConfig(), ClusterConfig(), dtype=torch.float32, use_gpu=False)


def test_accuracy_and_loss_equal_those_of_trl(tmp_path):
    tokenizer = load_tokenizer("builtin")
    rows = list(generate_pairs("test", NUM_PAIRS))
    engine = start(build_reward_model(ModelConfig(), tokenizer, seed=0))
    ours = evaluate_ours(tmp_path, rows, tokenizer, engine)
    weights = engine.weights()
    export_model(engine.module, weights, tokenizer, tmp_path / "export", dtype=torch.float32)
    check_equal(ours, evaluate(str(tmp_path / "export"), rows, tmp_path))


def test_trl_evaluates_the_adapter_folder_with_the_head_in_it(tmp_path):
    """By its name, and as peft reads it; the tokenizer is in the folder too."""
    make(tmp_path / "base", "llama")
    tokenizer, lora = load_tokenizer("builtin"), LoraConfig(rank=2, alpha=4.0, export="adapter")
    config = ResolvedModel(name_or_path=str(tmp_path / "base"), tokenizer="builtin")
    model = build_reward_model(config, tokenizer, seed=0)
    choose_trained(model, config, lora, seed=0, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    rows = list(generate_pairs("test", NUM_PAIRS))
    engine = start(model)
    ours = evaluate_ours(tmp_path, rows, tokenizer, engine)
    folder = tmp_path / "adapter"
    folder.mkdir()
    weights = ((n.removeprefix(PREFIX), w) for n, w in engine.stream_weights())
    write_adapter(
        model.classifier,
        weights,
        tokenizer,
        folder,
        lora=lora,
        config=config,
        dtype=torch.float32,
    )
    adapted = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    reader = AutoTokenizer.from_pretrained(folder)
    for given in (str(folder), adapted):
        check_equal(ours, evaluate(given, rows, tmp_path, processing_class=reader))
