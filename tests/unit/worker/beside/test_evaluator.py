import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from late_runs import held_out_streams, pending_of, trained_run
from plain_training import reset_accelerator
from reward_heads import head_weight, save

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ResolvedModel
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.runs.history import History
from rm_ray.runs.manifest import Checkpoint
from rm_ray.worker.beside.evaluator import Evaluator

MODELS = {
    "float32": {},
    "bfloat16": {"model": ResolvedModel(dtype="bfloat16")},
    "last layer": {"model": ResolvedModel(trainable="last:1", dtype="bfloat16")},
    "4 bits": {"model": ResolvedModel(quantization="nf4"), "lora": LoraConfig(rank=2)},
    "ties": {"objective": ObjectiveConfig(ties="davidson", tie_parameter="learned")},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_has_the_figures_and_files_of_an_evaluation_by_the_workers(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    sections: dict[str, Any] = MODELS[name]
    if name == "last layer":  # on layers that no checkpoint has
        base = str(save(tmp_path / "base", {"score.weight": head_weight()}, "sharded"))
        model = replace(sections["model"], name_or_path=base, tokenizer="builtin")
        sections = {**sections, "model": model}
    within = trained_run(tmp_path / "within", "within", **sections)
    beside = trained_run(tmp_path / "beside", "beside", **sections)
    assert [r.kind for r in beside.channel.records] == ["train"] * 4  # nothing was evaluated

    reset_accelerator()
    moved: list[str] = []
    load = Evaluator._load

    def note_loading(evaluator: Evaluator, found: Checkpoint) -> None:
        load(evaluator, found)
        moved.append("loaded")

    monkeypatch.setattr(Evaluator, "_load", note_loading)
    streams = held_out_streams(beside, tmp_path / "cache")
    pending, channel = pending_of(beside, streams, on_progress=lambda: moved.append("."))
    while pending.run_next():
        pass
    (held_out,) = beside.job.held_out
    reading, scoring, last = "".join(moved).split("loaded")  # of two checkpoints
    assert reading and len(scoring) > held_out.steps.total and len(last) >= held_out.steps.total

    expected = [record for record in within.channel.records if record.kind == "eval"]
    assert [r.step for r in expected] == [2, 4]
    assert [(r.step, r.episode, r.metrics) for r in channel.records] == [
        (r.step, r.episode, r.metrics) for r in expected
    ]
    assert channel.tables == within.channel.tables
    merged = pending.late.merge_into(History(list(beside.channel.records))).records
    assert [(r.step, r.kind) for r in merged] == [(r.step, r.kind) for r in within.channel.records]
    hours = {r.step: r.hours for r in beside.channel.records}
    assert [r.hours for r in channel.records] == [pytest.approx(hours[s]) for s in (2, 4)]
    for folder in ("samples", "evaluations"):
        files = files_in(Path(within.job.run_folder.path) / folder)
        assert len(files) == 2
        assert files_in(Path(beside.job.run_folder.path) / folder) == files


def files_in(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
