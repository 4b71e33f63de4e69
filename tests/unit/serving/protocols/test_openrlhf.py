import pytest

from rm_ray.errors import InputError
from rm_ray.serving.protocols.openrlhf import answer, read
from rm_ray.serving.question import Rewards


def test_queries_are_asked_and_prompts_and_labels_are_not():
    question = read({"query": ["a", "b"], "prompts": ["p", "p"], "labels": [None, "4"]})
    assert question.conversations == ("a", "b")
    assert read({"query": "a"}).conversations == ("a",)


def test_the_answer_has_rewards_scores_and_logs_of_one_float_a_query():
    question = read({"query": ["a", "b"]})
    rewards = Rewards(rewards=(0.5, -1.0), num_tokens=(3, 4), model="m")
    assert answer(question, rewards) == {
        "rewards": [0.5, -1.0],
        "scores": [0.5, -1.0],
        "extra_logs": {"num_tokens": [3.0, 4.0]},
    }
    assert all(
        type(each) is float for each in answer(question, rewards)["extra_logs"]["num_tokens"]
    )


def test_the_spread_of_an_ensemble_is_logged():
    rewards = Rewards(rewards=(0.5,), num_tokens=(3,), model="m", spread=(0.25,))
    logs = answer(read({"query": ["a"]}), rewards)["extra_logs"]
    assert logs["reward_spread"] == [0.25]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompts": ["p"]}, "POST /get_reward needs 'query'; got none"),
        ({"query": []}, "'query' is an empty list"),
        ({"query": [["a"]]}, r"'query\[0\]' must be a text, got a list of 1"),
        ({"query": ["a"], "images": []}, "does not know the field 'images'"),
    ],
)
def test_other_bodies_are_refused(body, said):
    with pytest.raises(InputError, match=said):
        read(body)
