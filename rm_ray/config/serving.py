"""Settings of the reward server: where it listens, its replicas and its limits."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

from rm_ray.config.checks import require
from rm_ray.config.sections.cluster import ClusterConfig


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the server listens, its replicas and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but a loopback one needs a token in RM_RAY_SERVE_TOKEN."""

    port: int = 8000
    """TCP port to listen on."""

    num_replicas: int | str = 1
    """Copies of the model. With a range ('1-8'), as many as the requests that wait need."""

    use_gpu: bool | None = None
    """Give each replica a GPU; by default if the cluster has GPUs."""

    cpus_per_replica: int = 1
    """CPU cores, and compute threads, per replica."""

    follow: bool = False
    """Take over each new best model of the run, or each new commit of the repository, between two
    batches. ``--model`` is then a run's folder, or a name on the Hub."""

    follow_every_s: float = 30.0
    """Seconds between two looks for a new model."""

    prefix_cache_gib: float = 1.0
    """Memory of each replica for the KV cache of recent prefixes, in GiB: a prompt whose keys and
    values are still there is not computed again. The least recently used are evicted. 0: no cache.
    """

    max_pending_tokens: int = 1_000_000
    """Tokens that may wait for a replica. Requests beyond are answered 503 with Retry-After."""

    max_body_mib: float = 32.0
    """Largest request, in MiB."""

    max_conversations: int = 1024
    """Most conversations of a request."""

    drain_s: float = 60.0
    """At the end, seconds for the requests that were accepted."""

    def __post_init__(self) -> None:
        require(bool(self.host), "host", self.host, "an address to listen on, such as 127.0.0.1")
        require(0 < self.port < 2**16, "port", self.port, "from 1 to 65535")
        rule = "a number of at least 1, or a range such as '1-8'"
        try:
            least, most = self.replica_bounds
        except ValueError:
            least, most = 1, 0
        require(1 <= least <= most, "num_replicas", self.num_replicas, rule)
        require(self.cpus_per_replica >= 1, "cpus_per_replica", self.cpus_per_replica, "at least 1")
        for name in ("follow_every_s", "max_pending_tokens", "max_body_mib", "max_conversations"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "positive and finite")
        cache = self.prefix_cache_gib
        require(0 <= cache <= 2**20, "prefix_cache_gib", cache, f"from 0 to {2**20}")
        require(self.max_body_bytes > 0, "max_body_mib", self.max_body_mib, "at least one byte")
        require(0 <= self.drain_s < math.inf, "drain_s", self.drain_s, "0 or more, and finite")

    @property
    def replica_bounds(self) -> tuple[int, int]:
        """Return the minimum and maximum number of replicas."""
        least, dash, most = str(self.num_replicas).partition("-")
        return int(least), int(most if dash else least)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """Where a client on this machine asks."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        is_ipv6 = ":" in host and not host.startswith("[")
        return f"http://{f'[{host}]' if is_ipv6 else host}:{self.port}"

    @property
    def prefix_cache_bytes(self) -> int:
        """Memory of a replica for keys and values of earlier passes, in bytes."""
        return int(self.prefix_cache_gib * 2**30)

    @property
    def max_body_bytes(self) -> int:
        """Largest request, in bytes."""
        return int(self.max_body_mib * 2**20)

    @property
    def cluster(self) -> ClusterConfig:
        """The same settings as a run's cluster section, for the least number of replicas."""
        return ClusterConfig(
            num_workers=self.replica_bounds[0],
            use_gpu=self.use_gpu,
            cpus_per_worker=self.cpus_per_replica,
        )
