"""The Ray Serve application: one gateway for HTTP, and replicas of the model.

``rm_ray.serving.app:build`` is what a Serve config file names.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import pydantic
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from rm_ray.config.scoring import ScoringModels
from rm_ray.config.serving import Server
from rm_ray.errors import InputError
from rm_ray.logs import log_to_stdout
from rm_ray.serving.question import Question, Rewards
from rm_ray.serving.refusal import Refusal
from rm_ray.serving.replica import Replica, Report
from rm_ray.serving.versions import refuse_following_several
from rm_ray.serving.web import RETRY_AFTER_S, Web, digest

logger = logging.getLogger(__name__)

TOKEN = "RM_RAY_SERVE_TOKEN"

MODEL, GATEWAY = "RewardModel", "Gateway"
"""Names of the deployments."""

MOST_REQUESTS = 2**14
"""Requests at a time; --max_pending_tokens is the bound that is meant to be reached."""

TARGET_REQUESTS = 32
"""Requests for each replica at which Serve starts another: conversations of 512 tokens fill a
forward pass of 16,384 on a GPU, and four passes on a CPU."""

MOST_TRIES = 5
"""Replicas that may die under a request before it is given up."""


class RewardModel:
    """A replica, as Serve runs it."""

    def __init__(self, model: ScoringModels, server: Server, *, use_gpu: bool) -> None:
        log_to_stdout()  # Ray shows it with the replica's name
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(model, server, name=name, use_gpu=use_gpu)

    async def score(self, question: Question) -> Rewards | Refusal:
        """Return the rewards of a question's conversations."""
        return await self._replica.score(question)

    async def report(self) -> Report:
        """Return what this replica serves, and what it has done."""
        return await self._replica.report()

    def check_health(self) -> None:
        """Raise if the replica is to be replaced."""
        self._replica.check_health()


@serve.ingress()
class Gateway:
    """Answers HTTP and asks the replicas; asks another one if a replica dies."""

    def __init__(
        self, replicas: DeploymentHandle, server: Server, token_digest: bytes | None
    ) -> None:
        self._replicas = replicas
        self._web = Web(self._ask, self._find_reports, server, token_digest)

    def __serve_build_asgi_app__(self) -> Starlette:  # Serve's name for it
        """Return the ASGI application."""
        return self._web.app

    async def drain(self, seconds: float) -> dict[str, int]:
        """Refuse new requests and wait until those accepted are answered; return the totals."""
        await self._web.drain(seconds)
        return self._web.totals

    async def _ask(self, question: Question) -> Rewards | Refusal:
        for _ in range(MOST_TRIES):
            try:
                outcome: Rewards | Refusal = await self._replicas.score.remote(question)
                return outcome
            except RayActorError:
                logger.warning("a replica died under a request, which another one gets")
            except DeploymentUnavailableError:
                break
        message = "no replica could answer; send the request again later"
        return Refusal(status=503, message=message, retry_after_s=RETRY_AFTER_S)

    async def _find_reports(self) -> Sequence[Report]:
        try:
            found = await self._replicas.broadcast("report").results_async(
                timeout_s=10, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError):
            return []
        return [report for report in found if isinstance(report, Report)]


def application(
    model: ScoringModels, server: Server, *, use_gpu: bool, token: str | None
) -> Application:
    """Return the application that serves a model, or several that judge together."""
    least, most = server.replica_bounds
    scale: dict[str, Any] = {"num_replicas": least}
    if least < most:
        scale = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": TARGET_REQUESTS,
            }
        }
    common: dict[str, Any] = {
        "max_ongoing_requests": MOST_REQUESTS,
        "graceful_shutdown_timeout_s": server.drain_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        # Every answer is in /metrics, and a line for each would be the log.
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }
    replicas = serve.deployment(
        RewardModel,
        name=MODEL,
        ray_actor_options={
            "num_cpus": server.cpus_per_replica,
            "num_gpus": 1 if use_gpu else 0,
        },
        max_constructor_retry_count=1,  # what a model is refused for, a retry does not cure
        **scale,
        **common,
    ).bind(model, server, use_gpu=use_gpu)
    gateway = serve.deployment(
        Gateway, name=GATEWAY, num_replicas=1, ray_actor_options={"num_cpus": 0}, **common
    )
    return gateway.bind(replicas, server, None if token is None else digest(token))


def build(args: dict[str, Any]) -> Application:
    """Return the application of a Serve config file, whose ``args`` are the command's options.

    Others than this machine can ask it, so it needs a token.

    Raises:
        InputError: an option is unknown or breaks its rule, or there is no token.
    """
    model, server = _read_options(args)
    refuse_following_several(model, server)
    token = require_token(server, {**os.environ}, is_open=True)
    return application(model, server, use_gpu=bool(server.use_gpu), token=token)


def require_token(
    server: Server, environment: Mapping[str, str], *, is_open: bool = False
) -> str | None:
    """Return the token that clients must send; None if only this machine can ask.

    Raises:
        InputError: there is none, but others can ask, or no header can carry it.
    """
    token = environment.get(TOKEN, "").strip()
    if not token and (is_open or not server.is_loopback):
        raise InputError(
            f"the server would answer anyone who reaches host '{server.host}'; set {TOKEN} in the "
            "environment to a secret that clients send as 'Authorization: Bearer ...', for example "
            f"with export {TOKEN}=$(openssl rand -hex 32), or leave out --host"
        )
    if not token.isascii() or not token.isprintable():
        raise InputError(
            f"{TOKEN} has characters that an HTTP header cannot carry; use printable ASCII, for "
            f"example export {TOKEN}=$(openssl rand -hex 32)"
        )
    return token or None


def _read_options(args: Mapping[str, Any]) -> tuple[ScoringModels, Server]:
    if isinstance(args.get("model"), str):
        args = {**args, "model": [args["model"]]}
    parts: list[Any] = []
    unknown = set(args)
    for section in (ScoringModels, Server):
        names = {field.name for field in fields(section)}
        unknown -= names
        given = {name: value for name, value in args.items() if name in names}
        try:
            parts.append(pydantic.TypeAdapter(section).validate_python(given))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "args"
            raise InputError(f"{place}: {first['msg']}, got {first['input']!r}") from None
    if unknown:
        raise InputError(f"args has unknown options: {', '.join(sorted(unknown))}")
    return parts[0], parts[1]
