import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_run import make_run
from transformers import BloomConfig, GPT2Config, LlamaConfig

from rm_ray.config.scoring import ScoringModel
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import STATISTICS, RewardStatistics
from rm_ray.serving.question import Question
from rm_ray.serving.refusal import RefusedError
from rm_ray.serving.replica import current_version
from rm_ray.serving.served_model import (
    ServedModel,
    ServedModels,
    find_max_length,
    require_same_tokenizer,
)

CPU = torch.device("cpu")

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def load(folder, **options) -> ServedModel:
    options = ScoringModel(model=str(folder), **options)
    return ServedModel.load(current_version(options), options, device=CPU)


def test_it_has_the_name_of_its_version_and_the_limit_of_its_positions(exported):
    model = load(exported)
    assert (model.name, model.tokens.max_length) == (exported.name, 2048)
    assert load(exported, max_length=100).tokens.max_length == 100


def test_it_encodes_as_the_template_does(exported):
    model = load(exported)
    (ids,) = model.encode(Question(conversations=(MESSAGES,)))
    expected = model.scorer.tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    assert ids.tolist() == expected


def test_what_it_refuses_is_the_clients_to_change(exported):
    model = load(exported, max_length=5)
    with pytest.raises(RefusedError, match="too long") as found:
        model.encode(Question(conversations=(MESSAGES,)))
    assert found.value.refusal.status == 422


def test_ids_that_the_model_does_not_know_are_refused_before_they_reach_others(exported):
    model = load(exported)
    size = model.scorer.model.classifier.get_input_embeddings().weight.shape[0]
    with pytest.raises(RefusedError):
        model.encode(Question(conversations=((5, size),)))


def test_weights_that_give_no_finite_reward_are_refused(exported, tmp_path):
    model = load(exported)
    classifier = model.scorer.model.classifier
    with torch.no_grad():
        classifier.score.weight.fill_(float("inf"))
    classifier.save_pretrained(tmp_path)
    model.scorer.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="gives rewards that are not finite"):
        load(tmp_path)


@pytest.mark.parametrize("where", ["scoring.scorer.Scorer.score", "scoring.scorer.RewardModel.to"])
@pytest.mark.parametrize(
    ("cache_bytes", "advice"), [(0, "memory; take a"), (2**20, "memory; lower --prefix_cache_gib")]
)
def test_a_gpu_that_is_too_small_is_said_with_what_to_do(
    exported, monkeypatch, cache_bytes, advice, where
):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(f"rm_ray.{where}", fail)
    options = ScoringModel(model=str(exported))
    with pytest.raises(InputError, match=f"does not fit into the GPU's {advice}"):
        ServedModel.load(current_version(options), options, device=CPU, cache_bytes=cache_bytes)


def test_rewards_are_the_scorers(exported):
    model = load(exported)
    ids = model.encode(Question(conversations=(MESSAGES, MESSAGES)))
    (rewards,) = model.scorer.score([ids])
    assert rewards == pytest.approx(np.repeat(rewards[0], 2))


def test_one_model_answers_its_own_rewards_without_a_spread(exported):
    models = ServedModels.of([load(exported)])
    ids = models.encode(Question(conversations=(MESSAGES,)))
    scores = models.score([ids])
    found = models.join(scores, ids)
    assert found.rewards == (float(scores[0, 0]),)
    assert (found.model, found.num_tokens, found.spread) == (exported.name, (len(ids[0]),), None)


def test_a_models_shift_is_its_mean_reward_of_the_built_in_responses(exported):
    other = load(exported, max_length=9)
    with torch.no_grad():
        other.scorer.model.classifier.score.weight.mul_(-2)
    first, second = ServedModels.of([load(exported), other]).shifts
    assert first != 0
    assert second == pytest.approx(-2 * first, rel=1e-4)


def test_models_that_differ_by_a_constant_agree(exported):
    loaded = load(exported)
    models = ServedModels(members=(loaded, loaded), shifts=np.array([0.5, 4.5]))
    ids = [np.array([5, 6], dtype=np.int32)] * 2
    found = models.join(np.array([[1, 2], [5, 6]], dtype=np.float32), ids)
    assert (found.rewards, found.spread) == ((3.0, 4.0), (0.0, 0.0))


def test_the_mean_and_the_spread_are_those_over_the_models(exported):
    loaded = load(exported)
    models = ServedModels(members=(loaded,) * 3, shifts=np.array([0.0, 1.0, 2.0]))
    ids = [np.array([5, 6], dtype=np.int32)] * 2
    found = models.join(np.array([[1, 1], [2, 4], [3, 4]], dtype=np.float32), ids)
    assert found.rewards == (2.0, 3.0)
    assert found.spread == pytest.approx((0.0, 1.0))  # of 1, 1, 1 and of 1, 3, 2


IDS = [np.array([5, 6], dtype=np.int32)] * 3


def statistics(mean: float, std: float) -> RewardStatistics:
    return RewardStatistics(mean=mean, std=std, num_responses=10)


def test_each_model_is_standardized_by_its_own_statistics_before_mean_and_spread(exported):
    loaded = load(exported)
    first, second = (replace(loaded, statistics=statistics(*s)) for s in ((1, 2), (10, 5)))
    models = ServedModels.of([first, second])
    assert models.shifts.tolist() == [0.0, 0.0]
    found = models.join(np.array([[1, 3, 5], [10, 10, 25]], dtype=np.float32), IDS)
    assert found.rewards == (0.0, 0.5, 2.5)  # of 0, 1, 2 and of 0, 0, 3
    assert found.spread == pytest.approx([0.0, 0.5**0.5, 0.5**0.5])
    assert (found.raw, found.scale) == ((5.5, 6.5, 15.0), "standardized")


def test_one_standardized_model_keeps_the_raw_rewards_beside(exported):
    models = ServedModels.of([replace(load(exported), statistics=statistics(1, 2))])
    found = models.join(np.array([[1, 3, -1]], dtype=np.float32), IDS)
    assert (found.rewards, found.spread, found.raw) == ((0.0, 1.0, -1.0), None, (1.0, 3.0, -1.0))


def test_the_references_reward_is_taken_off_in_each_model(exported):
    loaded = load(exported)
    models = ServedModels(members=(loaded, loaded), shifts=np.array([7.0, -7.0]))
    scores = np.array([[1, 3, 2], [4, 8, 5]], dtype=np.float32)
    found = models.join(scores, IDS, has_reference=True)
    assert found.rewards == (-1.0, 2.0)  # of -1, 1 and of -1, 3
    assert found.spread == pytest.approx([0.0, 2**0.5])
    assert (found.reference, found.num_tokens) == (3.5, (2, 2))
    one = ServedModels.of([replace(loaded, statistics=statistics(1, 2))])
    found = one.join(scores[:1], IDS, has_reference=True)
    assert (found.rewards, found.reference, found.raw) == ((-0.5, 0.5), 0.5, (1.0, 3.0))


def test_statistics_come_with_the_model_or_it_is_refused(exported, tmp_path):
    with pytest.raises(InputError, match=f"--model '{exported}' has no reward_statistics.json"):
        load(exported, rewards="standardized")
    shutil.copytree(exported, tmp_path / "with")
    (tmp_path / "with" / STATISTICS).write_text(json.dumps(statistics(1, 2).to_json()))
    assert load(tmp_path / "with", rewards="standardized").statistics == statistics(1, 2)
    assert load(tmp_path / "with").statistics is None


def test_a_checkpoint_of_a_run_has_those_of_its_step(tmp_path):
    made = make_run(tmp_path)
    made.save(10)
    report = made.run.read_json("evaluations/step-00000010.json")
    loaded = load(made.folder, rewards="standardized")
    assert loaded.statistics.to_json() == report["rewards"]
    made.run.delete_file("evaluations/step-00000010.json")
    with pytest.raises(InputError, match=r"evaluated on data\.eval, as --rewards standardized"):
        load(made.folder, rewards="standardized")


def test_several_models_take_what_all_of_them_take(exported):
    models = ServedModels.of([load(exported), load(exported, max_length=9)])
    assert models.max_length == 9
    with pytest.raises(RefusedError, match="the limit is 9"):
        models.encode(Question(conversations=([5] * 10,)))


def test_a_model_of_a_smaller_vocabulary_is_asked_too(exported):
    small = load(exported)
    models = ServedModels.of([load(exported), small])
    last = models.members[0].tokens.num_ids - 1
    small.scorer.model.classifier.resize_token_embeddings(last)
    with pytest.raises(RefusedError, match=f"the token id {last}"):
        models.encode(Question(conversations=((5, last),)))


def test_models_of_different_tokenizers_cannot_judge_together():
    same, other = load_tokenizer("builtin"), load_tokenizer("builtin")
    require_same_tokenizer([("a", same), ("a", other)])
    other.chat_template = same.chat_template.replace("|>", ">")
    message = r"--model 'a' and 'b' differ in their tokenizers \(chat template\)"
    with pytest.raises(InputError, match=message):
        require_same_tokenizer([("a", same), ("a", same), ("b", other)])


def test_the_limit_is_the_models_positions_by_any_name():
    options = ScoringModel(model="m")
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    limits = [
        (GPT2Config(n_positions=64), 64),
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (LlamaConfig(max_position_embeddings=2048, rope_parameters=scaled), 8192),
        (BloomConfig(seq_length=128), 2**31),
    ]
    for config, limit in limits:
        assert find_max_length(config, options) == limit


def test_a_limit_beyond_the_models_positions_is_refused():
    config = GPT2Config(n_positions=64)
    assert find_max_length(config, ScoringModel(model="m", max_length=64)) == 64
    with pytest.raises(InputError, match="--max_length is 65, but --model 'm' has 64 positions"):
        find_max_length(config, ScoringModel(model="m", max_length=65))


def test_a_model_is_not_loaded_with_a_limit_beyond_its_positions(exported):
    with pytest.raises(InputError, match="--max_length is 4096"):
        load(exported, max_length=4096)
