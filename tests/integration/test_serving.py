"""A model of a run that is still training, served on the shared cluster and asked over HTTP."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import ray
import torch
from made_run import MadeRun, make_run
from prometheus_client.parser import text_string_to_metric_families
from ray.util import list_named_actors
from reward_clients import CLIENTS
from servers import free_ports
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_ray.config.scoring import ScoringModels
from rm_ray.config.serving import Server
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.model.export import export_model
from rm_ray.serving.app import MODEL, TOKEN
from rm_ray.serving.server import RunningServer, serving

SECRET = "open-sesame"

FIRST, BETTER = 10, 20  # of a made run, step 20 is the best

PAIRS = list(generate_pairs("test", 48))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server sent."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def model(self) -> str:
        return self.headers["x-reward-model"]


@dataclass(frozen=True, kw_only=True)
class Client:
    """Asks the server, each time over a connection of its own."""

    url: str

    def ask(self, path: str, body: Any = None, *, token: str = SECRET) -> Answer:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)
        headers = {"Authorization": f"Bearer {token}"}
        connection.request("GET" if content is None else "POST", path, content, headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        fields = {name.lower(): value for name, value in response.getheaders()}
        is_json = fields["content-type"].startswith("application/json")
        return Answer(
            status=response.status,
            headers=fields,
            body=json.loads(text) if is_json else text.decode(),
        )

    def ask_all(self, bodies: list[Any], path: str = "/v1/rewards") -> list[Answer]:
        """Ask everything at once."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(lambda body: self.ask(path, body), bodies))

    def pending(self) -> float:
        """Tokens that the replicas have pending."""
        families = text_string_to_metric_families(self.ask("/metrics").body)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "rm_serve_pending_tokens"
        )


class Reference:
    """Rewards by plain transformers, of a version and a text."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, messages: list[dict[str, str]]) -> list[int]:
        found: list[int] = self.tokenizer.apply_chat_template(messages, return_dict=False)
        return found

    def text(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False))

    @torch.no_grad()
    def reward(self, messages: list[dict[str, str]]) -> float:
        return float(self.model(input_ids=torch.tensor([self.ids(messages)])).logits.item())


@dataclass(frozen=True, kw_only=True)
class Served:
    """The server, the run it follows, and what its versions must answer."""

    running: RunningServer
    client: Client
    made: MadeRun
    references: dict[str, Reference]
    folder: Path

    def save(self, step: int) -> str:
        """Let the run leave a checkpoint; return the name of its version."""
        self.made.save(step)
        folder = self.folder / f"step-{step}"
        tokenizer = self.made.tokenizer
        export_model(
            self.made.model, self.made.engine.weights(), tokenizer, folder, dtype=torch.float32
        )
        name = f"made@step-{step:08d}"
        self.references[name] = Reference(folder)
        return name

    def check(self, answer: Answer, conversations: list[list[dict[str, str]]]) -> None:
        """See that the rewards are those of the version that answered."""
        assert answer.status == 200, answer.body
        reference = self.references[answer.model]
        expected = [reference.reward(messages) for messages in conversations]
        np.testing.assert_allclose(answer.body["rewards"], expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def served(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two replicas that follow a run, with room for few tokens."""
    folder = tmp_path_factory.mktemp("served")
    made = make_run(folder)
    made.save(FIRST)  # what Served.save does, before there is a server
    tokenizer = made.tokenizer
    first = folder / f"step-{FIRST}"
    export_model(made.model, made.engine.weights(), tokenizer, first, dtype=torch.float32)
    server = Server(
        port=free_ports(1)[0],
        num_replicas=2,
        follow=True,
        follow_every_s=0.5,
        max_pending_tokens=40_000,
        max_body_mib=1,
        drain_s=30,
    )
    model = ScoringModels(model=(made.folder,), tokens_per_forward=1024)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN, SECRET)
        with serving(model, server) as running:
            yield Served(
                running=running,
                client=Client(url=server.url),
                made=made,
                references={f"made@step-{FIRST:08d}": Reference(first)},
                folder=folder,
            )


def question(pair: dict[str, Any]) -> dict[str, Any]:
    """The body of ``/v1/rewards`` for both responses of a pair."""
    *prompt, chosen = pair["chosen"]
    return {"messages": prompt, "responses": [chosen["content"], pair["rejected"][-1]["content"]]}


def both(pair: dict[str, Any]) -> list[list[dict[str, str]]]:
    return [pair["chosen"], pair["rejected"]]


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_reads_the_rewards_of_plain_transformers(served: Served, client: str) -> None:
    """Asked by each client's own request, re-expressed, over all routes."""
    reference = served.references[f"made@step-{FIRST:08d}"]
    conversations = [messages for pair in PAIRS[:3] for messages in both(pair)]
    found = CLIENTS[client](served.client.url, reference.tokenizer, conversations)
    expected = [reference.reward(messages) for messages in conversations]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_models_and_the_health_of_the_server(served: Served) -> None:
    listed = served.client.ask("/v1/models").body["data"]
    assert [each["id"] for each in listed] == [f"made@step-{FIRST:08d}"]
    assert [each["rewards"] for each in listed] == ["raw"]
    health = served.client.ask("/health", token="").body
    assert (health["status"], health["rewards"], health["replicas"]) == ("ok", "raw", 2)


def test_rewards_are_counted_from_a_reference_of_the_same_prompt(served: Served) -> None:
    reference = served.references[f"made@step-{FIRST:08d}"]
    for pair in PAIRS[:4]:
        body = question(pair)
        chosen, rejected = (reference.reward(messages) for messages in both(pair))
        over = {**body, "responses": body["responses"][:1], "reference": body["responses"][1]}
        answer = served.client.ask("/v1/rewards", over)
        assert answer.headers["x-reward-scale"] == "raw"
        assert answer.body["rewards"] == [pytest.approx(chosen - rejected, abs=1e-5)]
        assert answer.body["reference_reward"] == pytest.approx(rejected, abs=1e-5)
        assert served.client.ask("/v1/rewards", {**over, "responses": [over["reference"]]}).body[
            "rewards"
        ] == [pytest.approx(0, abs=1e-5)]


def test_sixty_four_clients_at_once_get_their_own_rewards(served: Served) -> None:
    asked = [PAIRS[i % len(PAIRS)] for i in range(64)]
    for pair, answer in zip(asked, served.client.ask_all(list(map(question, asked))), strict=True):
        served.check(answer, both(pair))


@pytest.mark.parametrize(
    ("path", "body", "token", "status", "message"),
    [
        ("/v1/rewards", {}, "wrong", 401, "Authorization: Bearer"),
        ("/v1/rewards", b"{", SECRET, 400, "not JSON"),
        ("/v1/rewards", {"prompt": "a"}, SECRET, 422, "responses"),
        ("/v1/rewards", b" " * (2**20 + 1), SECRET, 413, "--max_body_mib"),
        ("/v1/reward", {}, SECRET, 404, "POST /v1/rewards"),
        ("/classify", {"model": "a", "input": [5] * 3000}, SECRET, 422, "limit is 2,048"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_what_to_do(
    served: Served, path: str, body: Any, token: str, status: int, message: str
) -> None:
    answer = served.client.ask(path, body, token=token)
    assert answer.status == status, answer.body
    assert message in answer.body["error"]["message"]


def test_too_many_tokens_at_once_are_refused_for_a_while_and_the_rest_is_right(
    served: Served,
) -> None:
    pair = PAIRS[0]
    body = question(pair)
    many = {**body, "responses": [f"{body['responses'][0]} {'x ' * i}" for i in range(120)]}
    answers = served.client.ask_all([many] * 24)
    statuses = {answer.status for answer in answers}
    assert statuses == {200, 503}
    conversations = [
        [*body["messages"], {"role": "assistant", "content": text}] for text in many["responses"]
    ]
    served.check(next(answer for answer in answers if answer.status == 200), conversations)
    refused = next(answer for answer in answers if answer.status == 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert "tokens are pending, of at most 40,000" in refused.body["error"]["message"]
    served.check(served.client.ask("/v1/rewards", body), both(pair))


def test_what_a_client_that_is_gone_asked_for_is_not_computed(served: Served) -> None:
    body = question(PAIRS[1])
    many = {**body, "responses": [f"{body['responses'][0]} {'x ' * i}" for i in range(120)]}
    content = json.dumps(many).encode()
    before = total(served, "rm_serve_rewards_total")
    for _ in range(4):
        connection = http.client.HTTPConnection(urlsplit(served.client.url).netloc, timeout=60)
        headers = {"Authorization": f"Bearer {SECRET}"}
        connection.request("POST", "/v1/rewards", content, headers)
        connection.close()
    wait_until(lambda: served.client.pending() == 0)
    served.check(served.client.ask("/v1/rewards", body), both(PAIRS[1]))
    assert total(served, "rm_serve_rewards_total") - before < 4 * 120 + 2


def test_the_prompt_of_responses_that_come_one_after_another_is_cached(served: Served) -> None:
    body, before = question(PAIRS[2]), total(served, "rm_serve_cached_tokens_total")
    words = len(body["messages"][-1]["content"].split())  # has no fewer tokens
    for i in range(3):  # so that one of two replicas has it twice
        responses = [f"{'x ' * i}{body['responses'][0]}"]
        conversation = [*body["messages"], {"role": "assistant", "content": responses[0]}]
        answer = served.client.ask("/v1/rewards", {**body, "responses": responses})
        served.check(answer, [conversation])
    assert total(served, "rm_serve_cached_tokens_total") >= before + words


def total(served: Served, name: str) -> float:
    """Return a metric of all replicas."""
    families = text_string_to_metric_families(served.client.ask("/metrics").body)
    return sum(
        sample.value for family in families for sample in family.samples if sample.name == name
    )


def test_a_killed_replica_costs_no_accepted_request_and_no_reward_is_wrong(
    served: Served,
) -> None:
    asked = [PAIRS[i % len(PAIRS)] for i in range(96)]
    replica = next(
        each for each in list_named_actors(all_namespaces=True) if f"#{MODEL}#" in each["name"]
    )
    killer = threading.Timer(
        0.1, lambda: ray.kill(ray.get_actor(replica["name"], namespace=replica["namespace"]))
    )
    killer.start()
    answers = served.client.ask_all(list(map(question, asked)))
    killer.join()
    for pair, answer in zip(asked, answers, strict=True):
        served.check(answer, both(pair))


def test_a_better_model_is_taken_over_without_a_dropped_request(served: Served) -> None:
    answers: list[Answer] = []
    pair, done = PAIRS[2], threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            answers.append(served.client.ask("/v1/rewards", question(pair)))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    better = served.save(BETTER)
    try:
        wait_until(lambda: bool(answers) and answers[-1].model == better)
    finally:
        done.set()
        asking.join()
    for answer in answers:
        served.check(answer, both(pair))
    served.made.save(30)  # worse
    time.sleep(1)
    assert served.client.ask("/v1/rewards", question(pair)).model == better


def test_at_the_end_accepted_requests_are_answered_and_others_refused(served: Served) -> None:
    asked = [PAIRS[i % len(PAIRS)] for i in range(48)]
    with ThreadPoolExecutor(64) as pool:
        sent = [pool.submit(served.client.ask, "/v1/rewards", question(pair)) for pair in asked]
        time.sleep(0.1)
        totals = served.running.drain()
        answers = [each.result() for each in sent]
    for pair, answer in zip(asked, answers, strict=True):
        if answer.status == 503:
            assert answer.body["error"]["message"] == "the server is ending"
        else:
            served.check(answer, both(pair))
    late = served.client.ask("/v1/rewards", question(asked[0]))
    assert (late.status, late.headers["retry-after"]) == (503, "2")
    assert totals.unanswered == 0
    assert totals.rewards > 200
    assert totals.saved > 0
