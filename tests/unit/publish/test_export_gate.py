"""The export gate against plain transformers in a fresh process."""

import json
import math
from pathlib import Path

import pytest
import torch
from made_run import make_run
from safetensors.torch import load_file, save_file

from rm_ray.publish.export_gate import ClientsError, compare, run_export_gate


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    made = make_run(tmp_path_factory.mktemp("made"), last_step=10)
    made.save(10)
    made.finish()
    return Path(made.folder) / "export", json.loads(made.run.read_text("probes.json"))


def test_an_export_that_clients_score_as_training_did_passes(exported):
    result = run_export_gate(*exported, "float32")
    assert result.problem == ""
    assert set(result.differences) == {"alone", "padded batch", "pipeline"}
    assert max(result.differences.values()) < 1e-5
    assert result.num_conversations == 16


def copy_of(export: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in export.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_different_weights_and_templates_are_reported(exported, clients_here, tmp_path):
    export, reference = exported
    changed = copy_of(export, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["score.weight"] = weights["score.weight"] + 0.01
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    (changed / "chat_template.jinja").write_text("{{ messages[0].content }}")
    result = run_export_gate(changed, reference, "float32")
    assert "alone: the reward of conversation" in result.problem
    assert "padded batch: the reward" in result.problem
    assert "pipeline: the reward" in result.problem
    assert "tokenizes to different ids" in result.problem


def test_clients_that_do_not_answer_do_not_fail_the_export(exported, tmp_path):
    export, reference = exported
    broken = copy_of(export, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ClientsError, match="plain transformers cannot score"):
        run_export_gate(broken, reference, "float32")


def test_the_tolerance_scales_with_the_rewards():
    assert compare([10.0], [10.0005], 1e-4) == (pytest.approx(5e-4), "")
    assert "differ by 0.01, and 0.0011 is allowed" in compare([10.0], [10.01], 1e-4)[1]
    assert "differ by 0.0005, and 0.0001 is allowed" in compare([0.0], [0.0005], 1e-4)[1]


def test_the_worst_difference_is_reported_and_missing_rewards_are_skipped():
    largest, problem = compare([0.0, 1.0, 2.0, 3.0], [0.5, None, 4.0, 3.1], 1e-4)
    assert largest == 2.0
    assert "conversation 2" in problem


@pytest.mark.parametrize("expected", [[math.nan, 1.0], [math.inf, 1.0]])
def test_non_finite_training_rewards_never_pass(expected):
    for got in (expected, [1.0, 1.0]):
        assert "not finite numbers" in compare(expected, got, 1e-4)[1]


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_non_finite_reward_differs(reward):
    largest, problem = compare([1.0], [reward], 1e-4)
    assert largest == math.inf
    assert problem


def test_bfloat16_may_be_off_by_its_own_spacing():
    rewards = torch.linspace(-16, 16, 100)
    rounded = rewards.bfloat16().float()
    assert not compare(rewards.tolist(), rounded.tolist(), 0.04)[1]
