import asyncio
import json
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from rm_ray.config.serving import Server
from rm_ray.serving import web
from rm_ray.serving.metrics import BatchMetrics
from rm_ray.serving.question import Question, Rewards
from rm_ray.serving.refusal import Refusal
from rm_ray.serving.replica import Report
from rm_ray.serving.web import Web, digest, parse_json

ANSWERABLE = {"prompt": "Hi", "responses": ["Hello.", "No."]}

REPORT = Report(
    model="mine@step-00000020",
    rewards="raw",
    max_length=2048,
    metrics=BatchMetrics(replica="1").collect(),
    num_rewards=0,
    num_tokens=0,
    num_computed=0,
)


async def lengths(question: Question) -> Rewards:
    """Answer with the number of messages of each conversation."""
    counts = [len(conversation) for conversation in question.conversations]
    return Rewards(rewards=tuple(map(float, counts)), num_tokens=tuple(counts), model=REPORT.model)


async def one_report() -> list[Report]:
    return [REPORT]


async def no_report() -> list[Report]:
    return []


def make(
    ask: Callable[[Question], Awaitable[Rewards | Refusal]] = lengths,
    *,
    reports: Callable[[], Awaitable[list[Report]]] = one_report,
    token: str | None = None,
    **options: Any,
) -> Web:
    return Web(ask, reports, replace(Server(), **options), token and digest(token))


async def asked(made: Web, method: str, path: str, **options: Any) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=made.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.request(method, path, **options)


def ask(made: Web, method: str, path: str, **options: Any) -> httpx2.Response:
    return asyncio.run(asked(made, method, path, **options))


def message(response: httpx2.Response) -> str:
    error = response.json()["error"]
    assert error["code"] == response.status_code
    return error["message"]


def test_a_question_is_answered_and_names_the_model():
    response = ask(make(), "POST", "/v1/rewards", json=ANSWERABLE)
    assert response.status_code == 200
    assert response.json()["rewards"] == [2.0, 2.0]
    assert response.headers["X-Reward-Model"] == "mine@step-00000020"
    assert response.headers["X-Reward-Scale"] == "raw"


def test_a_slash_at_the_end_changes_nothing():
    assert ask(make(), "POST", "/v1/rewards/", json=ANSWERABLE).status_code == 200


def test_an_unknown_route_is_told_the_routes():
    response = ask(make(), "POST", "/v1/reward")
    assert response.status_code == 404
    assert "there is no /v1/reward; the routes are GET /health" in message(response)
    assert "POST /v1/rewards" in message(response)


def test_another_method_is_told_the_right_one():
    for method in ("GET", "OPTIONS", "PUT", "TRACE", "PURGE"):
        response = ask(make(), method, "/v1/rewards")
        assert response.status_code == 405
        assert message(response) == f"/v1/rewards takes POST, not {method}"
        assert response.headers["Allow"] == "POST"
    assert ask(make(), "POST", "/health").headers["Allow"] == "GET, HEAD"
    assert ask(make(), "HEAD", "/health").status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": 1', b"\xff"])
def test_what_is_not_json_is_refused(body):
    response = ask(make(), "POST", "/v1/rewards", content=body)
    assert response.status_code == 400
    assert "the body is" in message(response)


def test_a_field_that_is_wrong_is_named():
    response = ask(make(), "POST", "/v1/rewards", json={"prompt": "Hi", "responses": "yes"})
    assert response.status_code == 422
    assert "'responses'" in message(response)


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_body_that_is_too_large_is_not_read_to_its_end(is_declared):
    sent = []

    async def body():
        for _ in range(1000):
            sent.append(1)
            yield b" " * 1024

    headers = {"Content-Length": str(1000 * 1024)} if is_declared else {}
    made = make(max_body_mib=0.01)
    response = ask(made, "POST", "/v1/rewards", content=body(), headers=headers)
    assert response.status_code == 413
    assert "more than 10,485 bytes (--max_body_mib 0.01)" in message(response)


def test_too_many_conversations_are_refused():
    response = ask(make(max_conversations=1), "POST", "/v1/rewards", json=ANSWERABLE)
    assert response.status_code == 413
    assert "has 2 conversations, and at most 1 are allowed" in message(response)


def test_a_client_that_sends_its_body_too_slowly_is_let_go(monkeypatch):
    monkeypatch.setattr(web, "BODY_S", 0.05)

    async def slow():
        scope = {
            "type": "http", "method": "POST", "path": "/v1/rewards", "headers": [],
            "query_string": b"", "scheme": "http", "server": ("server", 80),
        }  # fmt: skip
        sent = []
        first = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive():
            if first:
                return first.pop()
            await asyncio.sleep(5)

        async def send(part):
            sent.append(part)

        await make().app(scope, receive, send)
        return sent

    start, _ = asyncio.run(slow())
    assert start["status"] == 408


def test_refusals_of_a_replica_reach_the_client_with_the_time_to_wait():
    async def full(question: Question) -> Refusal:
        return Refusal(status=503, message="900 tokens are pending", retry_after_s=7)

    response = ask(make(full), "POST", "/v1/rewards", json=ANSWERABLE)
    assert (response.status_code, message(response)) == (503, "900 tokens are pending")
    assert response.headers["Retry-After"] == "7"


def test_an_error_of_the_server_is_no_reward(caplog):
    async def broken(question: Question) -> Rewards:
        raise KeyError("a bug")

    response = ask(make(broken), "POST", "/v1/rewards", json=ANSWERABLE)
    assert response.status_code == 500
    assert "a bug" not in message(response)
    assert "a bug" in caplog.text


@pytest.mark.parametrize("header", [None, "Bearer wrong", "secret", "Basic secret", "Bearer"])
def test_a_wrong_token_is_refused(header):
    headers = {} if header is None else {"Authorization": header}
    made = make(token="secret")
    response = ask(made, "POST", "/v1/rewards", json=ANSWERABLE, headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert "RM_RAY_SERVE_TOKEN" in message(response)
    assert "secret" not in message(response)


def test_the_right_token_is_accepted_and_probes_need_none():
    made = make(token="secret")
    headers = {"Authorization": "Bearer secret"}
    assert ask(made, "POST", "/v1/rewards", json=ANSWERABLE, headers=headers).status_code == 200
    assert ask(made, "GET", "/v1/models").status_code == 401
    assert ask(made, "GET", "/health").status_code == 200
    assert ask(made, "GET", "/metrics").status_code == 200


def test_health_and_models_name_what_is_served():
    assert ask(make(), "GET", "/health").json() == {
        "status": "ok", "models": ["mine@step-00000020"], "rewards": "raw", "replicas": 1,
    }  # fmt: skip
    (listed,) = ask(make(), "GET", "/v1/models").json()["data"]
    assert (listed["id"], listed["max_model_len"]) == ("mine@step-00000020", 2048)
    assert listed["rewards"] == "raw"


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_without_a_replica_the_server_is_not_healthy(path):
    response = ask(make(reports=no_report), "GET", path)
    assert (response.status_code, message(response)) == (503, "no replica is ready")


def test_answers_are_counted_by_route_and_status():
    made = make()
    for path in ("/v1/rewards", "/v1/rewards", "/nothing", "/other"):
        ask(made, "POST", path, json=ANSWERABLE)
    text = ask(made, "GET", "/metrics").text
    assert 'rm_serve_requests_total{route="/v1/rewards",status="200"} 2.0' in text
    assert 'rm_serve_requests_total{route="other",status="404"} 2.0' in text
    assert "rm_serve_pending_tokens{" in text
    assert made.totals == {
        "requests": 5, "refused": 2, "failed": 0, "rewards": 4, "tokens": 8, "unanswered": 0,
    }  # fmt: skip


def test_draining_answers_what_was_accepted_and_refuses_the_rest():
    async def run():
        may_answer = asyncio.Event()

        async def held(question: Question) -> Rewards:
            await may_answer.wait()
            return await lengths(question)

        made = make(held)
        accepted = asyncio.create_task(asked(made, "POST", "/v1/rewards", json=ANSWERABLE))
        while not made.totals["unanswered"]:
            await asyncio.sleep(0.01)
        draining = asyncio.create_task(made.drain(30))
        await asyncio.sleep(0.01)
        late = await asked(made, "POST", "/v1/rewards", json=ANSWERABLE)
        assert not draining.done()
        may_answer.set()
        await draining
        return await accepted, late, made

    accepted, late, made = asyncio.run(run())
    assert accepted.status_code == 200
    assert (late.status_code, message(late)) == (503, "the server is ending")
    assert "Retry-After" in late.headers
    assert made.totals["unanswered"] == 0


def test_draining_ends_in_time_though_something_is_not_answered():
    async def run():
        async def never(question: Question) -> Rewards:
            await asyncio.sleep(60)
            raise AssertionError

        made = make(never)
        waiting = asyncio.create_task(asked(made, "POST", "/v1/rewards", json=ANSWERABLE))
        while not made.totals["unanswered"]:
            await asyncio.sleep(0.01)
        await made.drain(0.1)
        unanswered = made.totals["unanswered"]
        waiting.cancel()
        await asyncio.wait([waiting])
        return unanswered, made.totals["unanswered"]

    assert asyncio.run(run()) == (1, 0)


def test_json_is_parsed():
    assert parse_json(json.dumps({"a": "é"}).encode()) == {"a": "é"}


def nested(depth: int) -> bytes:
    return b"[" * depth + b'{"x": 1}' + b"]" * depth


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_a_body_that_is_nested_too_deep_is_refused(depth):
    response = ask(make(), "POST", "/classify", content=nested(depth))
    assert response.status_code == 400
    assert message(response) == "the body has more than 100 levels of lists and objects"
    assert parse_json(nested(99)) is not None


def test_so_is_json_in_a_text():
    deep = '{"x": ' * 900 + "1" + "}" * 900
    tools = f'[{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}]'
    response = ask(make(), "POST", "/v1/rewards", json={**ANSWERABLE, "tools": tools})
    assert response.status_code == 422
    assert "nested too deep" in message(response)


def test_so_is_what_cannot_be_sent_to_a_replica():
    async def pickled(question: Question) -> Rewards:
        pickle.dumps(question)
        raise AssertionError

    deep = '{"x": ' * 900 + "1" + "}" * 900
    calls = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}]
    turns = [{"role": "user", "content": "Hi"}, *calls, {"role": "tool", "content": "So."}]
    body = {"messages": turns, "responses": ["Hello."]}
    response = ask(make(pickled), "POST", "/v1/rewards", json=body)
    assert response.status_code == 422
    assert "nested too deep" in message(response)
