"""The reward server beside a plain one, under the load of an RLHF trainer.

64 clients ask for rewards of real conversations (synthetic ones where those are absent): of 16
responses to one prompt in one request, of the same as 16 requests, and of single answers to many
prompts, 16 a request (as OpenRLHF sends them) and one a request (as verl does).
Both servers have the same model and threads and take turns; every reward is compared with that of
the other.

    python tests/benchmarks/serving.py [--runs 3] [--rewards 1024] [--clients 64]
    python tests/benchmarks/serving.py --vllm PYTHON    # beside vLLM's CPU server too
    python tests/benchmarks/serving.py --minutes 60

The second form is an endurance test of the reward server alone: replicas are killed, clients are
slow, vanish, or send too much, and every reward is compared with that of plain transformers.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine
from report import Spread, goal, markdown_table, print_report

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from core import add_model_options, describe_model, write_model  # noqa: E402
from pair_set import SHARED_DATA, TOKENIZERS  # noqa: E402
from servers import end, free_ports, wait_for_answer  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402

from rm_ray.config.scoring import ScoringModels  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.config.serving import Server  # noqa: E402
from rm_ray.data.sources.synthetic import generate_pairs  # noqa: E402
from rm_ray.data.tokens.tokenizer import load_tokenizer  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.model.export import export_model  # noqa: E402

PLAIN, OURS, VLLM = "plain (transformers, batch 8)", "rm_ray", "vLLM"

Ask = Callable[[http.client.HTTPConnection, list[str]], tuple[int, list[float]]]
"""Returns the status and the rewards of some texts."""

BEST_OF = 16

MOST_TOKENS = 1_024

GOALS = {
    "best of 16": 4.0,
    "best of 16, single requests": 4.0,
    "single answers, 16 a request": 1.5,
    "single answers, single requests": 1.5,
}
"""How many times the plain server's rewards per second ours is to reach."""

SAME = 1e-4
"""Most that a reward may differ between the servers, in float32."""

ENDURED = 64
"""Prompts of an endurance test."""

KILL_EVERY_S = 60.0

WARM_UP = 2
"""Requests before a measurement, with prompts of their own."""

PATIENCE_S = 3_600.0
"""How long a client waits for an answer."""

FLAT = 1.1
"""Most that memory may grow from the first quarter of an endurance test to its end."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests in the order in which clients take them, each a list of texts."""

    name: str
    requests: list[list[str]]


@dataclass(kw_only=True)
class Taken:
    """What the clients got."""

    rewards: dict[int, list[float]] = field(default_factory=dict)
    """The last ones, by the number of the request."""
    expected: list[list[float]] | None = None
    """Rewards that every answer is compared with."""
    num_wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, number: int, status: int, rewards: list[float], seconds: float) -> None:
        with self.lock:
            self.statuses[status] += 1
            if status == 200:
                self.rewards[number] = rewards
                self.seconds.append(seconds)
                if self.expected is not None:
                    self.num_wrong += differ(rewards, self.expected[number]) > SAME


def differ(rewards: list[float], others: list[float]) -> float:
    """Return how much two lists of rewards differ at most."""
    return float(np.abs(np.subtract(rewards, others)).max())


def read_prompts(tokens_of: Callable[[str], int], render: Callable[[list[Any]], str],
                 count: int) -> list[list[str]]:  # fmt: skip
    """Return texts of conversations, ``BEST_OF`` responses for each of so many prompts.

    Real prompts have two responses of their own; the others are other prompts' responses.
    """
    path = SHARED_DATA / "train.jsonl.gz"
    if path.exists():
        with gzip.open(path, "rt") as lines:
            pairs = [json.loads(line) for line in itertools.islice(lines, 40 * count)]
    else:
        pairs = list(generate_pairs("train"))[: 40 * count]
    random.Random(0).shuffle(pairs)
    others = itertools.cycle([pair[side][-1] for pair in pairs for side in ("chosen", "rejected")])
    found: list[list[str]] = []
    for pair in pairs:
        turns = [pair["chosen"][-1], pair["rejected"][-1]]
        *prompt, _ = pair["chosen"]
        texts: list[str] = []
        for turn in [*turns, *itertools.islice(others, 3 * BEST_OF)]:
            text = render([*prompt, turn])
            if text not in texts and tokens_of(text) <= MOST_TOKENS:
                texts.append(text)
        if len(texts) >= BEST_OF:
            found.append(texts[:BEST_OF])
        if len(found) == count:
            break
    return found


def loads(prompts: list[list[str]]) -> list[Load]:
    """Return the loads, each with prompts of its own, since a policy's answers are always new.

    Single answers are one response of each prompt, then the next of each.
    """
    best, best_single, batched, single = (prompts[i :: len(GOALS)] for i in range(len(GOALS)))
    answers = [texts[i] for i in range(BEST_OF) for texts in batched]
    requests = (
        best,
        [[text] for texts in best_single for text in texts],
        [answers[i : i + BEST_OF] for i in range(0, len(answers), BEST_OF)],
        [[texts[i]] for i in range(BEST_OF) for texts in single],
    )
    return [Load(name=name, requests=asked) for name, asked in zip(GOALS, requests, strict=True)]


def take(
    url: str,
    load: Load,
    *,
    clients: int,
    goes_on: Callable[[int], bool],
    expected: list[list[float]] | None = None,
    ask: Ask | None = None,
) -> Taken:
    """Let the clients ask, each its next request when it has an answer.

    ``goes_on`` says whether a request is still sent, by its number.
    """
    taken, numbers = Taken(expected=expected), itertools.count()

    def work() -> None:
        connection = http.client.HTTPConnection(url.partition("://")[2], timeout=PATIENCE_S)
        while goes_on(count := next(numbers)):
            number = count % len(load.requests)
            began = time.monotonic()
            status, rewards = (ask or ask_for_rewards)(connection, load.requests[number])
            taken.add(number, status, rewards, time.monotonic() - began)

    with ThreadPoolExecutor(clients) as pool:
        for each in [pool.submit(work) for _ in range(clients)]:
            each.result()
    return taken


def post(connection: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, Any]:
    """Ask for rewards; return the status and the answer."""
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body).encode(), headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def ask_for_rewards(
    connection: http.client.HTTPConnection, texts: list[str]
) -> tuple[int, list[float]]:
    """Ask as OpenRLHF does; return the status and the rewards."""
    status, body = post(connection, "/get_reward", {"query": texts})
    return status, body["rewards"] if status == 200 else []


def ask_vllm(connection: http.client.HTTPConnection, texts: list[str]) -> tuple[int, list[float]]:
    """Ask vLLM's own route for raw rewards of the texts as they are."""
    options = {"add_special_tokens": False, "use_activation": False}
    status, body = post(connection, "/classify", {"model": VLLM, "input": texts, **options})
    return status, [each["probs"][0] for each in body["data"]] if status == 200 else []


def vllm_server(python: Path, folder: Path, threads: int) -> AbstractContextManager[str]:
    """Run the server of a Python that has vLLM for CPUs."""
    (port,) = free_ports(1)
    command = [
        str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--runner", "pooling",
        "--dtype", "float32", "--port", str(port), "--max-model-len", str(2 * MOST_TOKENS),
        "--served-model-name", VLLM,
    ]  # fmt: skip
    own = {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
    }
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | own)
    return yielding(process, f"http://127.0.0.1:{port}")


@contextmanager
def plain_server(folder: Path, threads: int) -> Iterator[str]:
    """Run the plain server in a process of its own."""
    (port,) = free_ports(1)
    command = [
        sys.executable, str(ROOT / "tests/benchmarks/plain_reward_server.py"), str(folder),
        str(port), "--threads", str(threads),
    ]  # fmt: skip
    with yielding(subprocess.Popen(command), f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def our_server(folder: Path, threads: int) -> Iterator[str]:
    """Run ``jobs/serve.py`` in a process of its own, with a replica on each core.

    One replica of several threads waits for all of them whenever another process takes a core.
    """
    (port,) = free_ports(1)
    command = [
        sys.executable, str(ROOT / "jobs/serve.py"), "--model", str(folder), "--port", str(port),
        "--num_replicas", str(threads), "--cpus_per_replica", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with yielding(process, f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def yielding(process: subprocess.Popen[bytes], url: str) -> Iterator[str]:
    try:
        wait_for_answer(f"{url}/health")
        yield url
    finally:
        end(process)


def compare(options: argparse.Namespace, folder: Path, prompts: list[list[str]]) -> None:
    """Let the servers take turns under each load, and print what they reached."""
    servers: dict[str, tuple[Callable[[Path, int], AbstractContextManager[str]], Ask]] = {
        PLAIN: (plain_server, ask_for_rewards),
        OURS: (our_server, ask_for_rewards),
    }
    if options.vllm is not None:
        servers[VLLM] = (partial(vllm_server, options.vllm), ask_vllm)
    speeds: dict[tuple[str, str], list[float]] = {}
    latencies: dict[tuple[str, str], list[float]] = {}
    rewards: dict[tuple[str, str], dict[int, list[float]]] = {}
    prompts, warm_up = prompts[:-WARM_UP], Load(name="warm-up", requests=prompts[-WARM_UP:])
    for _ in range(options.runs):
        for server, (run, ask) in servers.items():
            with run(folder, options.threads) as url:
                for load in loads(prompts):
                    each = len(load.requests[0])
                    most = max(1, options.rewards // each)
                    take(url, warm_up, clients=options.clients, goes_on=WARM_UP.__gt__, ask=ask)
                    began = time.monotonic()
                    taken = take(url, load, clients=options.clients, goes_on=most.__gt__, ask=ask)
                    elapsed = time.monotonic() - began
                    assert set(taken.statuses) == {200}, taken.statuses
                    key = (load.name, server)
                    speeds.setdefault(key, []).append(each * len(taken.seconds) / elapsed)
                    latencies.setdefault(key, []).extend(taken.seconds)
                    rewards.setdefault(key, {}).update(taken.rewards)
    rows, goals, figures = [], [], {}
    for name, least in GOALS.items():
        for server in servers:
            key = (name, server)
            p50, p99 = np.percentile(latencies[key], [50, 99])
            rows.append(
                [name, server, Spread.of(speeds[key]).cell(".1f"), f"{p50:.2f}", f"{p99:.2f}"]
            )
            figures[f"{name}, {server}"] = {"rewards/s": speeds[key], "p50": p50, "p99": p99}
        ratio = Spread.of(speeds[name, OURS]).median / Spread.of(speeds[name, PLAIN]).median
        goals.append(goal(f"{name}: rewards/s over the plain server's", ratio, least))
        if options.vllm is not None:
            of_vllm = Spread.of(speeds[name, OURS]).median / Spread.of(speeds[name, VLLM]).median
            goals.append(f"- {name}: rewards/s over vLLM's: {of_vllm:.2f}")
        ours = rewards[name, OURS]
        for server in servers:
            theirs = rewards[name, server]
            furthest = max(differ(ours[i], theirs[i]) for i in ours.keys() & theirs.keys())
            assert furthest <= SAME, f"{name}: {server}'s rewards differ by {furthest}"
    print_report(
        describe_machine(),
        f"{describe_model(options)}, {options.threads} threads, {options.clients} clients, "
        f"{options.runs} turns of {options.rewards:,} rewards",
        markdown_table(["load", "server", "rewards/s", "p50, s", "p99, s"], rows),
        "\n".join(goals),
        figures=figures,
    )


def endure(options: argparse.Namespace, folder: Path, prompts: list[list[str]]) -> None:
    """Load the reward server for so many minutes while replicas die and clients misbehave."""
    import ray
    from ray.util import list_named_actors

    from rm_ray.serving.app import MODEL
    from rm_ray.serving.server import serving

    (port,) = free_ports(1)
    server = Server(port=port, num_replicas=2, max_body_mib=1, drain_s=120)
    seconds, stop, kills = 60.0 * options.minutes, threading.Event(), Counter[str]()
    memory: list[int] = []

    def kill() -> None:
        while not stop.wait(min(KILL_EVERY_S, seconds / 4)):
            actors = list_named_actors(all_namespaces=True)
            replicas = [each for each in actors if f"#{MODEL}#" in each["name"]]
            chosen = random.choice(replicas)
            ray.kill(ray.get_actor(chosen["name"], namespace=chosen["namespace"]))
            kills["replicas"] += 1

    def misbehave() -> None:
        host, body = f"127.0.0.1:{port}", json.dumps({"query": prompts[0]}).encode()
        for turn in itertools.count():
            if stop.wait(0.5):
                return
            memory.append(resident())
            connection = http.client.HTTPConnection(host, timeout=60)
            if turn % 3 == 0:  # too much
                connection.request("POST", "/get_reward", b" " * 2**21)
                assert connection.getresponse().status == 413
                kills["oversized bodies"] += 1
            elif turn % 3 == 1:  # gone before the answer
                connection.request("POST", "/get_reward", body)
                kills["vanished clients"] += 1
            else:  # half a body, and no more
                connection.putrequest("POST", "/get_reward")
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body[:100])
                stop.wait(1)
                kills["slow clients"] += 1
            connection.close()

    load = Load(name="mixed", requests=[*prompts, *([text] for texts in prompts for text in texts)])
    expected = offline(folder, load)
    with serving(ScoringModels(model=(str(folder),)), server):
        helpers = [threading.Thread(target=each) for each in (kill, misbehave)]
        for helper in helpers:
            helper.start()
        ends = time.monotonic() + seconds
        taken = take(
            server.url,
            load,
            clients=options.clients,
            goes_on=lambda _: time.monotonic() < ends,
            expected=expected,
        )
        stop.set()
        for helper in helpers:
            helper.join()
    quarter = max(1, len(memory) // 4)
    growth = statistics.median(memory[-quarter:]) / statistics.median(memory[:quarter])
    lost = sum(count for status, count in taken.statuses.items() if status not in (200, 503))
    print_report(
        describe_machine(),
        f"{describe_model(options)}, {options.minutes:g} minutes, {options.clients} clients; "
        + ", ".join(f"{count} {what}" for what, count in kills.items()),
        f"answers by status: {dict(taken.statuses)}; wrong: {taken.num_wrong}; accepted and lost: "
        f"{lost}; memory in the last quarter over the first: {growth:.3f} (at most {FLAT})",
        figures={"statuses": taken.statuses, "wrong": taken.num_wrong, "memory": memory},
    )
    assert not taken.num_wrong
    assert not lost
    assert growth <= FLAT


def resident() -> int:
    """Return the memory of all processes that this one started, in bytes."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += process.memory_info().rss
    return found


@torch.inference_mode()
def offline(folder: Path, load: Load) -> list[list[float]]:
    """Return the rewards of each request by plain transformers, one conversation at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(str(folder))
    known: dict[str, float] = {}
    for text in {text for texts in load.requests for text in texts}:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        known[text] = float(model(input_ids=ids).logits.item())
    return [[known[text] for text in texts] for texts in load.requests]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="turns of each server")
    parser.add_argument("--rewards", type=int, default=1_024, help="of a load, in a turn")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--vllm", type=Path, help="a Python that has vLLM for CPUs (vllm-cpu)")
    parser.add_argument("--minutes", type=float, help="endurance instead of a comparison")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    is_real = (SHARED_DATA / "train.jsonl.gz").exists()
    tokenizer = load_tokenizer(TOKENIZERS["real" if is_real else "builtin"])

    def render(messages: list[Any]) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))

    def tokens_of(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    compared = len(GOALS) * -(-options.rewards // BEST_OF) + WARM_UP
    count = ENDURED if options.minutes else compared
    prompts = read_prompts(tokens_of, render, count)
    if len(prompts) < count:
        parser.error(f"--rewards {options.rewards} takes {count} prompts; there are {len(prompts)}")
    with tempfile.TemporaryDirectory() as name:
        config = ModelConfig(name_or_path=write_model(options, len(tokenizer), Path(name)))
        model = build_reward_model(config, tokenizer, seed=0)
        folder = Path(name) / "model"
        export_model(model, model.state_dict(), tokenizer, folder, dtype=torch.float32)
        (endure if options.minutes else compare)(options, folder, prompts)


if __name__ == "__main__":
    main()
