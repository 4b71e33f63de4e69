import math

import pytest

from rm_ray.config.serving import Server
from rm_ray.errors import InputError


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("host", "", "an address to listen on"),
        ("port", 0, "from 1 to 65535"),
        ("port", 65536, "from 1 to 65535"),
        ("num_replicas", 0, "at least 1, or a range"),
        ("num_replicas", "3-2", "at least 1, or a range"),
        ("num_replicas", "1-", "at least 1, or a range"),
        ("num_replicas", "many", "at least 1, or a range"),
        ("cpus_per_replica", 0, "at least 1"),
        ("follow_every_s", 0.0, "positive"),
        ("max_pending_tokens", 0, "positive"),
        ("prefix_cache_gib", -0.1, "from 0 to"),
        ("prefix_cache_gib", 1e7, "from 0 to"),
        ("prefix_cache_gib", math.nan, "from 0 to"),
        ("max_body_mib", 0.0, "positive"),
        ("max_body_mib", math.inf, "finite"),
        ("max_body_mib", 1e-9, "at least one byte"),
        ("follow_every_s", math.inf, "finite"),
        ("drain_s", math.nan, "finite"),
        ("max_conversations", 0, "positive"),
        ("drain_s", -1.0, "0 or more"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(option, value, rule):
    with pytest.raises(InputError, match=f"{option} must be .*{rule}.*, got {value!r}"):
        Server(**{option: value})


@pytest.mark.parametrize(
    ("host", "is_loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:8000"),
        ("localhost", True, "http://localhost:8000"),
        ("::1", True, "http://[::1]:8000"),
        ("0.0.0.0", False, "http://127.0.0.1:8000"),
        ("::", False, "http://[::1]:8000"),
        ("10.0.0.5", False, "http://10.0.0.5:8000"),
        ("gpu7.example.com", False, "http://gpu7.example.com:8000"),
    ],
)
def test_a_host_says_who_can_connect_and_how(host, is_loopback, url):
    server = Server(host=host)
    assert (server.is_loopback, server.url) == (is_loopback, url)


def test_replicas_are_a_number_or_a_range():
    assert Server(num_replicas=3).replica_bounds == (3, 3)
    ranged = Server(num_replicas="1-8", use_gpu=True, cpus_per_replica=2)
    assert ranged.replica_bounds == (1, 8)
    cluster = ranged.cluster
    assert (cluster.num_workers, cluster.use_gpu, cluster.cpus_per_worker) == (1, True, 2)


def test_the_largest_body_is_in_bytes():
    assert Server(max_body_mib=0.5).max_body_bytes == 524_288
    assert Server(prefix_cache_gib=0.5).prefix_cache_bytes == 2**29
