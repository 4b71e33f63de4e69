"""Starts the application on a Ray cluster, and ends it once accepted requests are answered."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import ReplicaState

from rm_ray.cluster.ray_cluster import fit_to_cluster, ray_cluster
from rm_ray.config.scoring import ScoringModels
from rm_ray.config.serving import Server
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError, TrainingError
from rm_ray.evaluation.reward_statistics import find_statistics
from rm_ray.scoring.scorer import load_architecture, model_name
from rm_ray.serving.app import MODEL, application, require_token
from rm_ray.serving.replica import Report, current_version
from rm_ray.serving.served_model import find_max_length, require_same_tokenizer
from rm_ray.serving.versions import refuse_following_several, require_followable

logger = logging.getLogger(__name__)

APP = "rm_ray"

REPORT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a server has done."""

    requests: int
    refused: int
    """Answers of 4xx or 503."""
    failed: int
    unanswered: int
    """Accepted requests that were not answered in time."""
    rewards: int
    tokens: int
    saved: float
    """Share of the tokens that shared prefixes saved, in the replicas that are there at the end."""
    seconds: float


@dataclass(kw_only=True)
class RunningServer:
    """The application while it answers."""

    server: Server
    _began: float = field(default_factory=time.monotonic)

    @property
    def model(self) -> str:
        """The version that is served, or the versions."""
        reports = self._reports()
        if not reports:
            raise TrainingError("the server started, and no replica answers; see its log")
        return reports[0].model

    def drain(self) -> Totals:
        """Refuse new requests, wait for the accepted ones, and return what was done."""
        waits = self.server.drain_s + REPORT_S
        gateway = serve.get_app_handle(APP)
        counted = gateway.drain.remote(self.server.drain_s).result(timeout_s=waits)
        reports = self._reports()
        computed = sum(report.num_computed for report in reports)
        tokens = sum(report.num_tokens for report in reports)
        return Totals(
            **counted,
            saved=1 - computed / tokens if tokens else 0.0,
            seconds=time.monotonic() - self._began,
        )

    def _reports(self) -> list[Report]:
        handle = serve.get_deployment_handle(MODEL, APP)
        try:
            found = handle.broadcast("report").results(timeout_s=REPORT_S, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError):
            return []
        return [report for report in found if isinstance(report, Report)]


@contextmanager
def serving(model: ScoringModels, server: Server) -> Iterator[RunningServer]:
    """Serve models on the running Ray cluster, or a local one, until the context ends.

    An interrupt ends the start, unless the application may have answered requests already: then
    the context begins, to end as it would later.

    Raises:
        InputError: a model, the port or the cluster cannot be used, or a token is missing.
        TrainingError: the application does not start.
    """
    token = require_token(server, {**os.environ})
    refuse_following_several(model, server)
    versions = check_models(model, server)
    is_shared = ray.is_initialized() or "RAY_ADDRESS" in os.environ
    if not is_shared:
        require_free_port(server)
    logger.info("starting Ray")
    with ray_cluster(server.cluster, imports=("rm_ray.serving.app",)):
        _require_no_serve()
        use_gpu = bool(fit_to_cluster(server.cluster).use_gpu)
        logger.info("loading %s on %s replicas", versions, server.num_replicas)
        for name in ("ray.serve", "ray._private.worker"):
            logging.getLogger(name).setLevel(logging.WARNING)
        serve.start(
            http_options=HTTPOptions(host=server.host, port=server.port),
            proxy_location="HeadOnly",
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        try:
            made = application(model, server, use_gpu=use_gpu, token=token)
            _run(made)
            yield RunningServer(server=server)
        finally:
            if is_shared:  # a local Ray ends with all that runs on it
                serve.shutdown()


def check_models(model: ScoringModels, server: Server) -> str:
    """Check what can be checked of the models without loading them; return their versions' names.

    Raises:
        InputError: one cannot be served or followed, has no statistics to standardize its rewards,
            or their tokenizers differ.
    """
    names, tokenizers = [], []
    for each in model.each():
        version = current_version(each)
        if server.follow:
            require_followable(version, each)
        names.append(version.name)
        if version.checkpoint or "://" in version.place:
            continue  # the replica, which has the files, checks it
        name = model_name(version.place, version.revision)
        find_max_length(load_architecture(name), each)
        find_statistics(name, each.rewards, shown=each.model)
        if len(model.model) > 1:
            tokenizer = load_tokenizer(version.place, revision=version.revision)
            tokenizers.append((each.model, tokenizer))
    if tokenizers:
        require_same_tokenizer(tokenizers)
    return " + ".join(names)


def _run(made: serve.Application) -> None:
    try:
        serve.run(made, name=APP, route_prefix="/")
    except RuntimeError as error:
        raise find_refusal(error, _read_status()) from error
    except KeyboardInterrupt:
        if not _may_have_answered():
            raise


def _may_have_answered() -> bool:
    """Return whether requests may have reached a model; not all replicas need be there for it."""
    try:
        found = serve.status().applications.get(APP)
    except Exception:  # whatever ended the controller: nobody answers without it
        return False
    states = [each.replica_states for each in found.deployments.values()] if found else []
    return bool(states) and all(each.get(ReplicaState.RUNNING) for each in states)


def _read_status() -> str:
    """Return what Serve says of the deployments, which may hold a replica's traceback."""
    found = serve.status().applications.get(APP)
    return "\n".join(each.message for each in found.deployments.values()) if found else ""


def find_refusal(error: RuntimeError, status: str = "") -> InputError | TrainingError:
    """Return why the application does not start: what a replica refuses, or how it fails."""
    refused = re.findall(r"rm_ray\.errors\.InputError: (.+)", f"{error}\n{status}")
    if refused:
        return InputError(refused[-1])
    said = [line.strip() for line in status.splitlines() if line.strip()]
    replica = f" The replica says: {said[-1]}" if said else ""
    return TrainingError(f"the server does not start: {error}{replica}")


def require_free_port(server: Server) -> None:
    """Refuse a port that another program listens on, or an address of another machine.

    Raises:
        InputError: it cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
        except OSError as error:
            raise InputError(
                f"cannot listen on host '{server.host}', port {server.port}: "
                f"{error.strerror or error}; choose another --port"
            ) from None


def _require_no_serve() -> None:
    """Refuse a cluster on which Ray Serve listens already, perhaps elsewhere."""
    if serve.status().proxies:
        raise InputError(
            "Ray Serve already runs on this cluster, with a host and port of its own; stop it with "
            "'serve shutdown', or leave RAY_ADDRESS unset to serve from a local Ray"
        )
