import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from rm_ray.serving.metrics import BatchMetrics, RequestMetrics, to_text


def prompts(*groups: list[list[int]]) -> list[list[np.ndarray]]:
    return [[np.array(ids, dtype=np.int32) for ids in group] for group in groups]


def values(text: bytes) -> dict[tuple[str, ...], float]:
    """Samples by their names and the values of their labels, in the order of the labels."""
    families = text_string_to_metric_families(text.decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_two_replicas_and_the_gateway_are_one_page():
    requests = RequestMetrics()
    requests.add("/classify", 200, 0.2)
    requests.add("/classify", 503, 0.001)
    replicas = [BatchMetrics(replica=name) for name in "ab"]
    replicas[0].set_pending(tokens=70, conversations=3)
    group = prompts([[1, 2, 3], [1, 2, 4]], [[7]])
    replicas[1].add(num_conversations=3, num_tokens=7, prompts=group, cached=[2, 0], seconds=0.5)
    text = to_text([requests.registry.collect(), *(each.collect() for each in replicas)])
    found = values(text)
    assert found["rm_serve_requests_total", "/classify", "200"] == 1
    assert found["rm_serve_requests_total", "/classify", "503"] == 1
    assert found["rm_serve_latency_seconds_bucket", "0.1", "/classify"] == 1
    assert found["rm_serve_latency_seconds_count", "/classify"] == 2
    assert found["rm_serve_pending_tokens", "a"] == 70
    assert found["rm_serve_pending_conversations", "a"] == 3
    assert found["rm_serve_tokens_total", "a"] == 0
    assert found["rm_serve_tokens_total", "b"] == 7
    assert found["rm_serve_distinct_tokens_total", "b"] == 5
    assert found["rm_serve_cached_tokens_total", "b"] == 2
    assert found["rm_serve_batch_tokens_sum", "b"] == 3
    assert found["rm_serve_rewards_total", "b"] == 3
    assert found["rm_serve_tokens_per_second", "b"] == 14
    assert found["rm_serve_batch_tokens_count", "b"] == 1
    assert text.count(b"# HELP rm_serve_tokens_total") == 1


def test_the_speed_forgets_its_first_guess_and_then_slowly():
    metrics = BatchMetrics(replica="1")
    for seconds in (1.0, 0.5):
        alone = prompts([[1]])
        metrics.add(num_conversations=1, num_tokens=100, prompts=alone, cached=[0], seconds=seconds)
    assert metrics.tokens_per_second == 0.9 * 100 + 0.1 * 200


def test_refusals_failures_and_clients_gone_are_counted_apart():
    requests = RequestMetrics()
    for status in (200, 400, 422, 499, 499, 500, 503):
        requests.add("/classify", status, 0.1)
    requests.add_rewards(3, 40)
    requests.add_rewards(1, 2)
    assert (requests.num_requests, requests.num_refused, requests.num_failed) == (5, 3, 1)
    assert (requests.num_rewards, requests.num_tokens) == (4, 42)
