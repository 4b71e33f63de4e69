import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_training import PlainRank, exported_weights
from transformers import AutoModelForSequenceClassification

from rm_ray.worker.finish import export, training_result
from rm_ray.worker.loop import TrainingLoop


def test_the_model_is_exported_with_its_reference_rewards(loop: TrainingLoop, rank: PlainRank):
    rewards = loop.saver.score_reference_groups()
    path = export(rank.job, loop.compute.engine, loop.recorder, rewards)
    assert path == rank.job.run_folder.join("export")
    weights = loop.compute.engine.weights()
    for name, weight in exported_weights(rank).items():
        assert torch.equal(weight, weights[f"classifier.{name}"])
    assert rank.job.run_folder.read_json("probes.json") == json.loads(json.dumps(rewards))
    model = AutoModelForSequenceClassification.from_pretrained(path)
    scored = rewards["scored"][0]
    with torch.no_grad():
        reward = model(torch.tensor([scored["ids"]])).logits.item()
    assert reward == pytest.approx(scored["reward"], abs=1e-5)


def test_a_model_above_the_size_of_a_file_is_exported_in_several(
    loop: TrainingLoop, rank: PlainRank
):
    config = replace(rank.job.config.model, max_shard_size="1MB")
    job = replace(rank.job, config=replace(rank.job.config, model=config))
    job.run_folder.write_text("export/model.safetensors", "left by an attempt that was killed")
    path = Path(export(job, loop.compute.engine, loop.recorder, {}))
    index = json.loads((path / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert files == sorted(file.name for file in path.glob("*.safetensors")) and len(files) > 1
    model = AutoModelForSequenceClassification.from_pretrained(path)
    weights = loop.compute.engine.weights()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[f"classifier.{name}"])


def test_nothing_is_left_on_the_machine(loop: TrainingLoop, rank: PlainRank, machine: Path):
    export(rank.job, loop.compute.engine, loop.recorder, {})
    assert not [path for path in machine.rglob("*") if path.is_file()]


def test_the_result_describes_the_run_and_this_attempt(loop: TrainingLoop, rank: PlainRank):
    steps = loop.trainer.stream(rank.context.dataset_shard("train").steps(0, 2))
    for micro_batches in steps:
        loop.trainer.take_or_skip(micro_batches)
    result = training_result(
        loop.state, loop.compute, loop.clocks, loop.checkpointer, exported="/there/export"
    )
    assert (result["steps"], result["episodes"], result["layout"]) == (2, 12, "packed")
    assert result["times_each_pair_was_trained_on"] == {"least": 0, "most": 1}
    assert result["metrics"] == loop.state.history.last("train")
    assert result["attempt"] == {
        "first_step": 0, "startup": result["startup"], "spent": result["spent"],
    }  # fmt: skip
    assert (result["last_checkpoint"], result["best_checkpoint"]) == (None, None)
    assert (result["checkpoints_not_taken"], result["skipped_steps"]) == (0, [])
    assert result["export"] == "/there/export"
    assert result["pairs_per_second"] > 0 and result["matrix_peak_ratio"] > 0
    assert result["history"].count("\n") == 2
    loop.compute.engine.rank = 1
    other = training_result(
        loop.state, loop.compute, loop.clocks, loop.checkpointer, exported="/there/export"
    )
    assert other["history"] == ""
