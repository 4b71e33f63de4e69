import base64
import struct

import pytest

from rm_ray.errors import InputError
from rm_ray.serving.protocols.embeddings import answer, read
from rm_ray.serving.question import Rewards

REWARDS = Rewards(rewards=(0.1,), num_tokens=(3,), model="m")


def test_the_last_number_of_an_embedding_is_the_reward():
    found = answer(read({"model": "any", "input": "a"}), REWARDS)
    assert found["data"] == [{"index": 0, "object": "embedding", "embedding": [0.1]}]
    assert (found["object"], found["model"], found["usage"]["prompt_tokens"]) == ("list", "m", 3)


def test_base64_is_little_endian_float32():
    found = answer(read({"input": ["a"], "encoding_format": "base64"}), REWARDS)
    data = base64.b64decode(found["data"][0]["embedding"])
    assert data == struct.pack("<f", 0.1)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "POST /v1/embeddings needs 'input'; got none"),
        ({"input": "a", "dimensions": 256}, "'dimensions' must be null or 1, got 256"),
        ({"input": "a", "encoding_format": "int8"}, "'encoding_format' must be 'float' or"),
        ({"input": "a", "messages": []}, "does not know the field 'messages'"),
    ],
)
def test_other_bodies_are_refused(body, said):
    with pytest.raises(InputError, match=said):
        read(body)
