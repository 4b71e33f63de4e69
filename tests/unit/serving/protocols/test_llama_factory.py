import pytest

from rm_ray.errors import InputError
from rm_ray.serving.protocols.llama_factory import answer, read
from rm_ray.serving.question import Rewards

REWARDS = Rewards(rewards=(0.5, -1.0), num_tokens=(3, 9), model="m")


def test_messages_are_texts_and_the_answer_has_their_scores():
    question = read({"model": "any", "messages": ["a", "b"], "max_length": 9})
    assert question.conversations == ("a", "b")
    found = answer(question, REWARDS)
    assert found.pop("id").startswith("scoreeval-")
    assert found == {"object": "score.evaluation", "model": "m", "scores": [0.5, -1.0]}


def test_a_text_beyond_the_clients_limit_is_refused_rather_than_cut():
    question = read({"messages": ["a", "b"], "max_length": 8})
    with pytest.raises(InputError, match=r"'messages\[1\]' has 9 tokens, and 'max_length' is 8"):
        answer(question, REWARDS)


def test_messages_with_roles_are_sent_elsewhere():
    with pytest.raises(InputError, match="send messages with roles to POST /classify"):
        read({"messages": [{"role": "user", "content": "a"}]})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "needs 'messages'; got none"),
        ({"messages": ["a"], "max_length": 0}, "'max_length' must be a positive number"),
        ({"messages": ["a"], "template": "qwen"}, "does not know the field 'template'"),
    ],
)
def test_other_bodies_are_refused(body, said):
    with pytest.raises(InputError, match=said):
        read(body)
