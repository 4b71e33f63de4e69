import base64
import struct
from typing import Any

import pytest

from rm_ray.errors import InputError
from rm_ray.serving.protocols.vllm import (
    answer_classify,
    answer_pooling,
    read_classify,
    read_pooling,
)
from rm_ray.serving.question import Rewards

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

REWARDS = Rewards(rewards=(0.5, -1.0), num_tokens=(3, 4), model="m")


@pytest.mark.parametrize("read", [read_classify, read_pooling])
def test_texts_token_ids_and_messages_are_asked(read):
    assert read({"input": "a"}).conversations == ("a",)
    assert read({"input": ["a", "b"]}).conversations == ("a", "b")
    assert read({"input": [[1, 2], [3]]}).conversations == ((1, 2), (3,))
    tool = {"name": "look_up"}
    question = read({"messages": MESSAGES, "tools": [tool]})
    assert (question.conversations, question.tools) == ((tuple(MESSAGES),), (tool,))


def test_what_verl_and_others_send_along_changes_nothing():
    body = {"input": "a", "model": "other", "user": "me", "priority": 0, "request_id": "1"}
    neutral: dict[str, Any] = {
        "activation": False, "use_activation": False, "truncate_prompt_tokens": None,
        "add_special_tokens": False, "add_generation_prompt": False, "chat_template_kwargs": {},
    }  # fmt: skip
    assert read_classify(body | neutral) == read_classify({"input": "a"})
    assert read_classify(body | {"add_special_tokens": True}) == read_classify({"input": "a"})
    body = {"input": "a", "task": "classify", "dimensions": 1, "encoding_format": "float"}
    assert read_pooling(body) == read_pooling({"input": "a"})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("activation", True, "rewards are never put through an activation; apply a sigmoid"),
        ("use_activation", True, "rewards are never put through an activation; apply a sigmoid"),
        ("truncate_prompt_tokens", 512, "conversations are never cut"),
        ("truncate_prompt_tokens", -1, "conversations are never cut"),
        ("add_generation_prompt", True, "a reward is that of a whole conversation"),
        ("continue_final_message", True, "a reward is that of a whole conversation"),
        ("chat_template", "{{ messages }}", "the served model's own chat template"),
        ("chat_template_kwargs", {"enable_thinking": False}, "the served model's own chat"),
        ("padding", "max_length", "without padding"),
        ("documents", ["a"], "does not know the field 'documents'"),
    ],
)
def test_what_would_change_a_reward_is_refused(field: str, value: Any, said: str):
    for read in (read_classify, read_pooling):
        with pytest.raises(InputError, match=said):
            read({"input": "a", field: value})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"model": "m"}, "needs 'input' or 'messages', and only one of them; got none"),
        ({"input": "a", "messages": MESSAGES}, "only one of them; got 'input' and 'messages'"),
        ({"messages": []}, "'messages' is an empty list"),
        ({"messages": "a"}, "'messages' must be a list of objects, got 'a'"),
        ({"messages": ["a"]}, r"'messages\[0\]' must be an object, got 'a'"),
        ({"messages": MESSAGES, "tools": {}}, "'tools' must be a list of objects"),
        ({"input": "a", "tools": []}, "'tools' go with 'messages'"),
        ({"input": "a", "task": "embed"}, "does not know the field 'task'"),
    ],
)
def test_other_bodies_of_classify_are_refused(body, said):
    with pytest.raises(InputError, match=said):
        read_classify(body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": "a", "task": "token_embed"}, "'task' must be null or 'classify' or 'score'"),
        ({"input": "a", "dimensions": 64}, "'dimensions' must be null or 1, got 64"),
        ({"input": "a", "encoding_format": "bytes"}, "'encoding_format' must be 'float' or"),
    ],
)
def test_other_bodies_of_pooling_are_refused(body, said):
    with pytest.raises(InputError, match=said):
        read_pooling(body)


def test_probabilities_of_the_only_class_are_raw_rewards():
    found = answer_classify(read_classify({"input": ["a", "b"]}), REWARDS)
    assert found["id"].startswith("classify-")
    assert (found["object"], found["model"], type(found["created"])) == ("list", "m", int)
    assert found["data"] == [
        {"index": 0, "label": "LABEL_0", "probs": [0.5], "num_classes": 1},
        {"index": 1, "label": "LABEL_0", "probs": [-1.0], "num_classes": 1},
    ]
    usage = {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0}
    assert found["usage"] == usage


def test_pooled_vectors_are_rewards_as_numbers_or_base64():
    found = answer_pooling(read_pooling({"input": ["a", "b"]}), REWARDS)
    assert [each["data"] for each in found["data"]] == [[0.5], [-1.0]]
    body = {"input": ["a", "b"], "encoding_format": "base64"}
    found = answer_pooling(read_pooling(body), REWARDS)
    decoded = [struct.unpack("<f", base64.b64decode(each["data"])) for each in found["data"]]
    assert decoded == [(0.5,), (-1.0,)]
