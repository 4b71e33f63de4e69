"""The reward function of TRL, against real HTTP servers on loopback."""

import inspect
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from reward_loopback import JsonHandler, handling, reward_of, serving_rewards
from tokenized_groups import BUILTIN, template_ids
from trl.trainer.utils import get_callable_name, is_async_callable

from rm_ray.errors import InputError
from rm_ray.scoring import reward_function as module
from rm_ray.scoring.reward_function import RewardFunction, RewardServerError, reward_function

Request = dict[str, Any]

Answer = Callable[[list[Request]], tuple[int, Any, dict[str, str]]]


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[Request]]]:
    """Serve what ``answer`` makes of the requests so far; yield the address and the requests."""
    requests: list[Request] = []

    class Handler(JsonHandler):
        def do_POST(self) -> None:  # noqa: N802
            token = self.headers.get("Authorization")
            requests.append({"path": self.path, "body": self.body(), "token": token})
            status, found, headers = answer(requests)
            self.answer(status, found, **headers)

    with handling(Handler) as url:
        yield url, requests


def zeros(requests: list[Request]) -> tuple[int, Any, dict[str, str]]:
    return 200, {"rewards": [0.0] * len(requests[-1]["body"]["responses"])}, {}


def test_rewards_are_those_of_the_templates_ids_in_the_order_of_the_completions():
    prompts = [asked("Why?"), asked("Where?"), asked("Why?"), asked("Why?")]
    completions = [said("So."), said("Here."), said(""), said("So.")]
    with serving_rewards(BUILTIN) as url:
        rewards = reward_function(url)(
            prompts=prompts, completions=completions, completion_ids=[[1]] * 4, answer=["x"] * 4
        )
    pairs = zip(prompts, completions, strict=True)
    assert rewards == [reward_of(template_ids(BUILTIN, p + c)) for p, c in pairs]


def test_a_text_is_the_users_turn_and_its_completion_the_assistants():
    with serving_rewards(BUILTIN) as url:
        rewards = reward_function(url)(["Why?", "Why?"], ["So.", "No."])
    texts = ("So.", "No.")
    assert rewards == [reward_of(template_ids(BUILTIN, asked("Why?") + said(t))) for t in texts]


def test_a_prompts_completions_are_one_request():
    tools = [[{"name": "a"}], [{"name": "a"}], [{"name": "b"}], None]
    with answering(zeros) as (url, requests):
        ask = RewardFunction(url=f"{url}/", num_connections=1, token="")
        assert ask(["Why?"] * 4, ["a", "b", "c", "d"], tools=tools) == [0.0] * 4
    assert [request["body"] for request in requests] == [
        {"prompt": "Why?", "responses": ["a", "b"], "tools": [{"name": "a"}]},
        {"prompt": "Why?", "responses": ["c"], "tools": [{"name": "b"}]},
        {"prompt": "Why?", "responses": ["d"]},
    ]
    assert {request["path"] for request in requests} == {"/v1/rewards"}


@pytest.mark.parametrize("served", ["raw", "standardized"])
def test_a_server_of_other_rewards_is_refused(served: str):
    answer: Answer = lambda asked: (200, zeros(asked)[1], {"X_Reward_Scale": served})  # noqa: E731
    other = {"raw": "standardized", "standardized": "raw"}[served]
    with answering(answer) as (url, requests):
        assert reward_function(url, rewards=served)(["Why?"], ["a"]) == [0.0]
        with pytest.raises(InputError, match=f"serves {served} rewards, and rewards is '{other}'"):
            reward_function(url, rewards=other)(["Why?"], ["a"])
    assert len(requests) == 2  # it is not asked again


def test_nothing_to_reward_asks_nothing():
    assert reward_function("http://127.0.0.1:9")([], []) == []


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RM_RAY_SERVE_TOKEN", "secret")
    with answering(zeros) as (url, requests):
        ask = reward_function(url)
        ask(["Why?"], ["a"])
        monkeypatch.delenv("RM_RAY_SERVE_TOKEN")
        reward_function(url)(["Why?"], ["a"])
    assert [request["token"] for request in requests] == ["Bearer secret", None]
    assert "secret" not in repr(ask)


def test_trl_can_name_copy_and_call_it():
    ask = reward_function("http://127.0.0.1:9", name="mine")
    assert ask.__name__ == get_callable_name(ask) == "mine"
    assert not is_async_callable(ask)
    assert pickle.loads(pickle.dumps(ask)) == ask
    assert list(inspect.signature(ask).parameters) == [
        "prompts", "completions", "completion_ids", "columns",
    ]  # fmt: skip


def busy_first(status: int, **headers: str) -> Answer:
    """Be busy once, and answer from then on."""

    def answer(requests: list[Request]) -> tuple[int, Any, dict[str, str]]:
        return (status, {"error": "full"}, headers) if len(requests) < 2 else zeros(requests)

    return answer


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FIRST_DELAY_S", 0.02)
    with answering(busy_first(status)) as (url, requests):
        assert reward_function(url)(["Why?"], ["a"]) == [0.0]
    assert len(requests) == 2


def test_it_is_asked_again_after_the_delay_that_it_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FIRST_DELAY_S", 0.02)
    with answering(busy_first(503, Retry_After="1")) as (url, requests):
        began = time.monotonic()
        assert reward_function(url)(["Why?"], ["a"]) == [0.0]
        assert time.monotonic() - began >= 1
    assert len(requests) == 2


def test_patience_ends(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]  # seconds of delays alone, however busy the machine is
    clock = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds)
    )
    monkeypatch.setattr(module, "time", clock)
    busy: Answer = lambda _: (503, {"error": {"message": "the queue is full"}}, {})  # noqa: E731
    with answering(busy) as (url, requests):
        with pytest.raises(RewardServerError, match=r"for 10 s; last, status 503: the queue is"):
            reward_function(url, patience_s=10)(["Why?"], ["a"])
        assert (len(requests), now) == (5, [7.5])  # after 0.5, 1, 2 and 4 s
    with pytest.raises(RewardServerError, match=r"gave no rewards for 10 s; last, .*refused"):
        reward_function(url, patience_s=10)(["Why?"], ["a"])


@pytest.mark.parametrize(
    ("status", "found", "error", "text"),
    [
        (400, {"error": {"message": "too long"}}, InputError, r"refuses .*status 400: too long"),
        (422, {"detail": "no"}, InputError, "status 422: no"),
        (401, {"error": "no"}, InputError, "set RM_RAY_SERVE_TOKEN to the server's"),
        (500, "broken", RewardServerError, "fails .*status 500: broken"),
        (200, {"rewards": [1.0]}, RewardServerError, "must answer 2 finite rewards, got 1"),
        (200, {"rewards": [1.0, None]}, RewardServerError, "answers no rewards"),
        (200, {"rewards": [1.0, float("nan")]}, RewardServerError, "2 finite rewards"),
        (200, ["x"], RewardServerError, "answers no rewards"),
    ],
)
def test_other_answers_are_errors_at_once(status: int, found: Any, error: type, text: str):
    served = answering(lambda _: (status, found, {}))
    with served as (url, requests), pytest.raises(error, match=text):
        reward_function(url)(["Why?", "Why?"], ["a", "b"])
    assert len(requests) == 1


def test_what_a_server_says_of_a_completion_reaches_the_user():
    text = r"tokens, and the limit is 8\); conversations are never cut"
    with serving_rewards(BUILTIN, max_length=8) as url, pytest.raises(InputError, match=text):
        reward_function(url)(["Why is that so?"], ["So it is and so it was."])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"url": "127.0.0.1:8000"}, "url must begin with http:// or https://, got '127"),
        ({"url": "http://a", "patience_s": 0}, "patience_s must be positive, got 0"),
        ({"url": "http://a", "num_connections": 0}, "num_connections must be positive, got 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], text: str):
    with pytest.raises(InputError, match=text):
        RewardFunction(**settings)


def test_a_completion_that_is_not_text_is_refused():
    with pytest.raises(InputError, match="a prompt or completion is not text"):
        reward_function("http://127.0.0.1:9")([[{"content": object()}]], ["a"])
