import pytest

from rm_ray.errors import InputError
from rm_ray.serving.protocols.sglang import answer, is_asked, read
from rm_ray.serving.question import Rewards


def test_a_body_is_sglangs_by_its_text_or_ids():
    assert is_asked({"model": "m", "text": "a"})
    assert not is_asked({"model": "m", "text": None})
    assert is_asked({"input_ids": [1]})
    assert not is_asked({"input": "a"})
    assert not is_asked(["text"])


def test_a_list_is_answered_by_a_list_and_one_text_by_one_object():
    rewards = Rewards(rewards=(0.5, -1.0), num_tokens=(3, 4), model="m")
    question = read({"model": "m", "text": ["a", "b"]})
    assert question.conversations == ("a", "b")
    assert answer(question, rewards) == [
        {"embedding": [0.5], "meta_info": {"prompt_tokens": 3}},
        {"embedding": [-1.0], "meta_info": {"prompt_tokens": 4}},
    ]
    alone = Rewards(rewards=(0.5,), num_tokens=(3,), model="m")
    assert answer(read({"text": "a"}), alone)["embedding"] == [0.5]
    assert answer(read({"text": ["a"]}), alone)[0]["embedding"] == [0.5]
    assert answer(read({"input_ids": [1, 2]}), alone)["embedding"] == [0.5]
    assert answer(read({"input_ids": [[1, 2]]}), alone)[0]["embedding"] == [0.5]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text": "a", "input_ids": [1]}, "needs 'text' or 'input_ids', and only one of them"),
        ({"text": [1]}, r"'text\[0\]' must be a text, got 1"),
        ({"text": "a", "image_data": "x"}, "'image_data' must be null, got 'x'"),
        ({"text": "a", "return_hidden_states": True}, "does not know the field"),
    ],
)
def test_other_bodies_are_refused(body, said):
    with pytest.raises(InputError, match=said):
        read(body)
