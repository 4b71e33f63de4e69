import pytest

from rm_ray.errors import InputError
from rm_ray.serving.protocols.slime import answer, read
from rm_ray.serving.question import Rewards

ASKED = {"role": "user", "content": "Why?"}


def test_a_rendered_prompt_and_its_response_are_one_text():
    body = {"prompt": "<|user|>Why?<|assistant|>", "response": "So.<|end|>", "label": None}
    assert read(body).conversations == ("<|user|>Why?<|assistant|>So.<|end|>",)


def test_a_response_to_messages_is_the_assistants_turn():
    (messages,) = read({"prompt": [ASKED], "response": "So."}).conversations
    assert messages == (ASKED, {"role": "assistant", "content": "So."})


def test_the_answer_is_the_reward_alone():
    question = read({"prompt": "a", "response": "b", "label": "4"})
    assert answer(question, Rewards(rewards=(0.5,), num_tokens=(3,), model="m")) == 0.5


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "a"}, "'response' of POST /reward must be a text, got None"),
        ({"prompt": "a", "response": ["b"]}, "'response' of POST /reward must be a text, got a"),
        ({"response": "b"}, "'prompt' of POST /reward must be the text of a prompt"),
        ({"prompt": [], "response": "b"}, "'prompt' is an empty list"),
        ({"prompt": ["a"], "response": "b"}, r"'prompt\[0\]' must be an object, got 'a'"),
        ({"prompt": "a", "response": "b", "metadata": {}}, "does not know the field 'metadata'"),
    ],
)
def test_other_bodies_are_refused(body, said):
    with pytest.raises(InputError, match=said):
        read(body)
