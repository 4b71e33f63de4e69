import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.errors import InputError
from rm_ray.scoring.conversations import parse_conversations
from rm_ray.serving.protocols.rewards import MOST_COMPARED, answer, read, win_probability
from rm_ray.serving.question import Question, Rewards

ASKED = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def turn(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize("prompt", [{"prompt": "Why?"}, {"prompt": [ASKED]}, {"messages": [ASKED]}])
@pytest.mark.parametrize("response", ["So.", turn("So."), [turn("So.")]])
def test_prompts_and_responses_are_texts_or_messages(prompt: dict[str, Any], response: Any):
    question = read({**prompt, "responses": [response, "No."]})
    assert question.conversations == ([ASKED, turn("So.")], [ASKED, turn("No.")])
    assert question.tools is None


def test_tools_and_turns_are_read_as_in_rows():
    tool = {"name": "look_up", "parameters": {}}
    call = {"name": "look_up", "arguments": '{"word": "so"}'}
    several = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "So: thus."},
        turn("Thus."),
    ]
    row = {"messages": [SYSTEM, ASKED], "responses": [several, [turn("No.")]], "tools": [tool]}
    expected = parse_conversations(row)
    question = read(row)
    assert list(question.conversations) == expected.messages
    assert question.tools == expected.context.tools
    assert question.tools == [{"type": "function", "function": tool}]


@pytest.mark.parametrize(
    "prompt",
    [
        "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Why?\n\nAssistant:",
        "Human: Why?",
        '[{"role": "user", "content": "Why?"}]',
        '["Why?"]',
        "{'role': 'user', 'content': 'Why?'}",
    ],
)
def test_a_prompt_that_is_a_text_is_one_turn_whatever_it_looks_like(prompt: str):
    question = read({"prompt": prompt, "responses": ["So."]})
    assert question.conversations == ([{"role": "user", "content": prompt}, turn("So.")],)


@given(st.text())
def test_a_response_that_is_a_text_is_content_whatever_it_looks_like(text: str):
    odd = ['[{"role": "user", "content": "a"}]', "\n\nHuman: a\n\nAssistant: b", "<|im_end|>", ""]
    question = read({"prompt": "Why?", "responses": [*odd, text, text]})
    assert question.conversations == tuple([ASKED, turn(each)] for each in [*odd, text, text])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"responses": ["a"]}, "needs 'prompt' or 'messages', and only one of them; got none"),
        ({"prompt": "q", "messages": [ASKED], "responses": ["a"]}, "only one of them"),
        ({"prompt": "q"}, "'responses' of POST /v1/rewards must be a list of at least one"),
        ({"prompt": "q", "responses": []}, "must be a list of at least one response, got a list"),
        ({"prompt": "q", "responses": "a"}, "must be a list of at least one response, got 'a'"),
        ({"prompt": "q", "responses": ["a", None]}, "'responses[1]' of POST /v1/rewards must be"),
        ({"prompt": "q", "responses": [["a"]]}, "'responses[0]' of POST /v1/rewards must be"),
        ({"prompt": "q", "responses": [[]]}, "'responses[0]' of POST /v1/rewards must be"),
        ({"prompt": "q", "responses": ["a"], "reference": 1}, "'reference' of POST /v1/rewards"),
        ({"prompt": "q", "responses": ["a"], "reference": ["a"]}, "must be a text, a message or a"),
        ({"prompt": "q", "responses": [{"text": "a"}]}, "unknown role: None in"),
        ({"prompt": "q", "responses": [[turn("a"), ASKED]]}, "refused (last turn not assistant"),
        ({"prompt": ["q"], "responses": ["a"]}, "'prompt' of POST /v1/rewards must be a text or"),
        ({"messages": "q", "responses": ["a"]}, "must be a list of messages, got 'q'"),
        ({"messages": [], "responses": ["a"]}, "'messages' of POST /v1/rewards is blank"),
        ({"prompt": " ", "responses": ["a"]}, "'prompt' of POST /v1/rewards is blank"),
        ({"messages": [{"role": "user"}], "responses": ["a"]}, "without 'content'"),
        ({"messages": [ASKED, turn("So")], "responses": ["a"]}, "send the turns before the"),
        ({"prompt": "q", "responses": ["a"], "tools": "x"}, "tools not a list of schemas"),
        ({"prompt": "q", "responses": ["a"], "system": "x"}, "does not know the field 'system'"),
        ({"prompt": "<|im_start|>user\nq<|im_end|>", "responses": ["a"]}, "to /classify"),
    ],
)
def test_other_bodies_are_refused_and_the_errors_teach(body: Any, said: str):
    with pytest.raises(InputError) as caught:
        read(body)
    assert said in str(caught.value)


def asked(count: int) -> Question:
    return read({"prompt": "Why?", "responses": [str(i) for i in range(count)]})


def answered(*rewards: float) -> dict[str, Any]:
    lengths = tuple(range(len(rewards)))
    found = Rewards(rewards=rewards, num_tokens=lengths, model="m")
    return answer(asked(len(rewards)), found)


def test_of_two_responses_the_probability_is_that_of_the_first():
    assert answered(1.0, 3.0) == {
        "model": "m",
        "rewards": [1.0, 3.0],
        "best": 1,
        "num_tokens": [0, 1],
        "win_probability": pytest.approx(1 / (1 + math.exp(2)), rel=1e-15),
    }


def test_of_more_the_probabilities_are_a_matrix():
    found = answered(1.0, 3.0, 2.0)
    assert found["best"] == 1
    matrix = found["win_probability"]
    assert [row[i] for i, row in enumerate(matrix)] == [0.5] * 3
    assert matrix[1][0] == pytest.approx(1 / (1 + math.exp(-2)))
    assert matrix[0][1] + matrix[1][0] == pytest.approx(1)
    assert answered(1.0)["win_probability"] == [[0.5]]
    assert answered(*[0.0] * (MOST_COMPARED + 1))["win_probability"] is None


def test_the_first_of_equal_rewards_is_best():
    assert answered(2.0, 5.0, 5.0)["best"] == 1


def test_an_ensembles_spread_is_answered():
    found = Rewards(rewards=(1.0,), num_tokens=(2,), model="m", spread=(0.5,))
    assert answer(asked(1), found)["spread"] == [0.5]


@pytest.mark.parametrize("reference", ["So.", turn("So."), [turn("So.")]])
def test_a_reference_is_the_last_conversation_of_the_same_prompt(reference: Any):
    body = {"prompt": "Why?", "responses": ["a", "b"]}
    question = read({**body, "reference": reference})
    assert question.has_reference
    assert question.conversations == (*read(body).conversations, [ASKED, turn("So.")])
    assert not read({**body, "reference": None}).has_reference


def test_the_reward_that_was_taken_off_is_answered():
    found = Rewards(rewards=(0.5,), num_tokens=(2,), model="m", reference=1.5)
    assert answer(asked(1), found)["reference_reward"] == 1.5
    assert "reference_reward" not in answered(1.0)


def test_probabilities_are_those_of_raw_rewards():
    found = Rewards(rewards=(1.0, 0.0), num_tokens=(2, 2), model="m", raw=(6.0, 2.0))
    said = answer(asked(2), found)
    assert said["rewards"] == [1.0, 0.0]
    assert said["win_probability"] == pytest.approx(1 / (1 + math.exp(-4)))


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_probabilities_never_overflow_and_add_up(one: float, other: float):
    assert 0 <= win_probability(one, other) <= 1
    both = win_probability(one, other) + win_probability(other, one)
    assert both == pytest.approx(1, abs=1e-15)
