"""Checks of model, tokenizer, MLflow and the Hub."""

import huggingface_hub
import pytest

from rm_ray.config.sections.hub import HubConfig
from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.base_check import BaseModel
from rm_ray.model.kept_head import KeptHead
from rm_ray.preflight.checks.services import check_hub, check_mlflow, check_model, check_tokenizer
from rm_ray.storage import Storage


def test_a_base_model_is_checked_by_the_content_of_its_files():
    config = ModelConfig(name_or_path="someone/model")
    for head, said in (
        ({}, "a new head"),
        ({"head": KeptHead(weight="score.weight")}, "its head is kept (score.weight)"),
        ({"replaced": ("score.weight",)}, "its head is replaced (score.weight)"),
    ):
        base = BaseModel(num_weights=291, **head)
        whole = check_model(config, lambda base=base: base)
        assert whole.outcome == "ok"
        assert whole.found.endswith(f"291 weights, complete, in intact files; {said}")
    some = BaseModel(num_weights=291, unused=("a", "b", "c", "d"))
    verdict = check_model(config, lambda: some)
    assert verdict.outcome == "warning"
    assert "4 unused: a, b, c and 1 more" in verdict.found
    assert "checked when it is read" in check_model(config, lambda: None).found
    assert check_model(ModelConfig(), lambda: None).found == "built-in"


def test_a_config_gets_random_weights():
    verdict = check_model(ModelConfig(name_or_path="sizes.json"), lambda: None)
    assert (verdict.outcome, verdict.found) == ("ok", "random weights for sizes.json")
    with pytest.raises(InputError, match=r"'keep', but .*'sizes.json' has random weights"):
        check_model(ModelConfig(name_or_path="sizes.json", head="keep"), lambda: None)


def test_a_chat_template_must_end_the_assistant_s_turn(tokenizer):
    verdict = check_tokenizer(tokenizer)
    assert verdict.outcome == "ok"
    assert verdict.found == f"{len(tokenizer):,} tokens; turns end in an end-of-turn or EOS token"
    endless = load_tokenizer("builtin")
    endless.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    verdict = check_tokenizer(endless)
    assert verdict.outcome == "warning"
    assert "write eos_token after the assistant's turn" in verdict.remedy


def test_without_a_server_mlflow_is_a_file_that_the_run_creates(tmp_path):
    verdict = check_mlflow(MlflowConfig(), Storage.open(str(tmp_path)))
    assert verdict.outcome == "ok"
    assert verdict.found.endswith(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_run_that_publishes_nothing_needs_no_hub():
    assert check_hub(HubConfig()).found == "nothing is published"


def test_a_missing_repository_will_be_created(endpoint, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    verdict = check_hub(HubConfig(repo_id="someone/rewards"))
    assert verdict.outcome == "ok"
    assert verdict.found == "someone/rewards will be created; 'someone' may write to it"


@pytest.mark.parametrize("repo_id", ["other/rewards"])
def test_someone_else_s_repository_fails(endpoint, monkeypatch, repo_id):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    verdict = check_hub(HubConfig(repo_id=repo_id))
    assert verdict.outcome == "failed"
    assert verdict.remedy.endswith("or choose another hub.repo_id")
