"""The HTTP side of the server: routes, token, limits and errors."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pickle import PicklingError
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, request_response

from rm_ray.config.serving import Server
from rm_ray.errors import InputError
from rm_ray.scoring.reward_function import SCALE_HEADER
from rm_ray.serving.metrics import RequestMetrics, to_text
from rm_ray.serving.protocols.routes import ROUTES, Protocol
from rm_ray.serving.question import Question, Rewards
from rm_ray.serving.refusal import Refusal, RefusedError, refuse
from rm_ray.serving.replica import Report

logger = logging.getLogger(__name__)

BODY_S = 60.0
"""Seconds in which a client must have sent its request's body."""

RETRY_AFTER_S = 2
"""While no replica is there, or the server ends."""

MOST_NESTED = 100
"""Levels of lists and objects in a body; what reads it and sends it on recurses."""

TOO_DEEP = "a text of JSON in the body holds lists or objects nested too deep"

OPEN = ("/health", "/metrics")
"""Routes that probes and Prometheus ask without the token."""

MODEL_HEADER = "X-Reward-Model"
"""Names the model version of an answer, whatever its protocol."""

Ask = Callable[[Question], Awaitable[Rewards | Refusal]]
Reports = Callable[[], Awaitable[Sequence[Report]]]


class Web:
    """Answers HTTP requests; ``ask`` and ``reports`` reach the replicas."""

    def __init__(
        self, ask: Ask, reports: Reports, server: Server, token_digest: bytes | None
    ) -> None:
        self._ask, self._reports = ask, reports
        self._server, self._token_digest = server, token_digest
        self._metrics = RequestMetrics()
        self._accepted = 0
        self._is_draining = False
        self._routes: Mapping[str, tuple[str, Callable[[Request], Awaitable[Response]]]] = {
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._show_metrics),
            "/v1/models": ("GET", self._list_models),
            **{path: ("POST", self._scorer(protocol)) for path, protocol in ROUTES.items()},
        }

    @property
    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(routes=[Mount("/", request_response(self._answer))])  # any method

    @property
    def totals(self) -> dict[str, int]:
        """Answers sent, what they were, and requests not answered yet."""
        metrics = self._metrics
        return {
            "requests": metrics.num_requests,
            "refused": metrics.num_refused,
            "failed": metrics.num_failed,
            "rewards": metrics.num_rewards,
            "tokens": metrics.num_tokens,
            "unanswered": self._accepted,
        }

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait until those accepted are answered."""
        self._is_draining = True
        deadline = time.monotonic() + seconds
        while self._accepted and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def _answer(self, request: Request) -> Response:
        began = time.monotonic()
        path = request.url.path.rstrip("/")
        method, handle = self._routes.get(path, ("", self._not_found))
        status = 499  # the client is gone
        try:
            response = await self._checked(request, path, method, handle)
            status = response.status_code
        except RefusedError as error:
            status = error.refusal.status
            response = to_response(error.refusal)
            if status == 405:
                response.headers["Allow"] = "GET, HEAD" if method == "GET" else method
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it
        except Exception:  # a bug must not end the server, or show its inside to clients
            logger.exception("%s failed", path)
            status = 500
            message = "an error of the server; its log has the details"
            response = to_response(Refusal(status=500, message=message))
        finally:
            self._metrics.add(path if method else "other", status, time.monotonic() - began)
        return response

    async def _checked(
        self,
        request: Request,
        path: str,
        method: str,
        handle: Callable[[Request], Awaitable[Response]],
    ) -> Response:
        if path not in OPEN:
            self._require_token(request)
        asked = "GET" if request.method == "HEAD" else request.method
        if method and asked != method:
            raise refuse(405, f"{path} takes {method}, not {request.method}")
        return await handle(request)

    def _require_token(self, request: Request) -> None:
        if self._token_digest is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(digest(token.strip()), self._token_digest)
        if scheme.lower() != "bearer" or not is_right:
            raise refuse(
                401,
                "the token is missing or wrong; send the header 'Authorization: Bearer TOKEN' with "
                "the token that the server has in RM_RAY_SERVE_TOKEN",
            )

    async def _not_found(self, request: Request) -> Response:
        known = ", ".join(f"{method} {path}" for path, (method, _) in self._routes.items())
        raise refuse(404, f"there is no {request.url.path}; the routes are {known}")

    def _scorer(self, protocol: Protocol) -> Callable[[Request], Awaitable[Response]]:
        async def score(request: Request) -> Response:
            body = parse_json(await self._read_body(request))
            try:
                question = protocol.read(body)
            except InputError as error:
                raise refuse(422, str(error)) from None
            except RecursionError:
                raise refuse(422, TOO_DEEP) from None
            return await self._score(question, protocol)

        return score

    async def _score(self, question: Question, protocol: Protocol) -> Response:
        count, most = len(question.conversations), self._server.max_conversations
        if count > most:
            raise refuse(
                413,
                f"the request has {count} conversations, and at most {most} are allowed "
                "(--max_conversations); send several requests",
            )
        if self._is_draining:
            raise refuse(503, "the server is ending", retry_after_s=RETRY_AFTER_S)
        self._accepted += 1
        try:
            outcome = await self._ask(question)
        except (RecursionError, PicklingError):  # the question does not reach a replica
            raise refuse(422, TOO_DEEP) from None
        finally:
            self._accepted -= 1
        if isinstance(outcome, Refusal):
            raise RefusedError(outcome)
        try:
            content = protocol.answer(question, outcome)
        except InputError as error:
            raise refuse(422, str(error)) from None
        self._metrics.add_rewards(len(outcome.rewards), sum(outcome.num_tokens))
        about = {MODEL_HEADER: to_header(outcome.model), SCALE_HEADER: outcome.scale}
        return JSONResponse(content, headers=about)

    async def _read_body(self, request: Request) -> bytes:
        most = self._server.max_body_bytes
        declared = request.headers.get("content-length", "")
        parts, size = [], int(declared) if declared.isdigit() else 0
        if size <= most:
            size = 0
            try:
                async with asyncio.timeout(BODY_S):
                    async for part in request.stream():
                        parts.append(part)
                        size += len(part)
                        if size > most:
                            break
            except TimeoutError:
                raise refuse(408, f"the body did not arrive within {BODY_S:.0f} s") from None
        if size > most:
            raise refuse(
                413,
                f"the body has more than {most:,} bytes (--max_body_mib "
                f"{self._server.max_body_mib:g}); send fewer conversations at a time",
            )
        return b"".join(parts)

    async def _health(self, request: Request) -> Response:
        reports = await self._find_reports()
        models = sorted({report.model for report in reports})
        about = {"models": models, "rewards": reports[0].rewards, "replicas": len(reports)}
        return JSONResponse({"status": "ok", **about})

    async def _list_models(self, request: Request) -> Response:
        reports = await self._find_reports()
        longest = {report.model: report.max_length for report in reports}
        about = {"object": "model", "owned_by": "rm_ray", "rewards": reports[0].rewards}
        listed = [{"id": name, **about, "max_model_len": n} for name, n in sorted(longest.items())]
        return JSONResponse({"object": "list", "data": listed})

    async def _find_reports(self) -> Sequence[Report]:
        reports = [] if self._is_draining else await self._reports()
        if not reports:
            what = "the server is ending" if self._is_draining else "no replica is ready"
            raise refuse(503, what, retry_after_s=RETRY_AFTER_S)
        return reports

    async def _show_metrics(self, request: Request) -> Response:
        reports = await self._reports()
        parts = [self._metrics.registry.collect(), *(report.metrics for report in reports)]
        return Response(to_text(parts), media_type="text/plain; version=0.0.4")


def parse_json(body: bytes) -> Any:
    """Return the JSON value of a request's body.

    Raises:
        RefusedError: it is not JSON, or nested too deep.
    """
    try:
        found = json.loads(body)
        is_deep = is_nested(found, MOST_NESTED)
    except RecursionError:
        is_deep = True
    except ValueError as error:
        raise refuse(400, f"the body is not JSON ({error}); send a JSON object") from None
    if is_deep:
        raise refuse(400, f"the body has more than {MOST_NESTED} levels of lists and objects")
    return found


def is_nested(value: Any, depth: int) -> bool:
    """Return whether a JSON value has more than ``depth`` levels of lists and objects."""
    level = [value]
    for _ in range(depth + 1):
        boxes = [each for each in level if isinstance(each, dict | list)]
        if not boxes:
            return False
        parts = (box.values() if isinstance(box, dict) else box for box in boxes)
        level = [each for part in parts for each in part if isinstance(each, dict | list)]
    return True


def to_response(refusal: Refusal) -> Response:
    """Return the answer of a refusal, in OpenAI's form."""
    headers = {}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {"message": refusal.message, "type": kind, "code": refusal.status}
    return JSONResponse({"error": error}, status_code=refusal.status, headers=headers)


def to_header(name: str) -> str:
    """Return a name as a header may have it."""
    return name.encode("ascii", "backslashreplace").decode()


def digest(token: str) -> bytes:
    """Return what the server keeps of a token."""
    return hashlib.sha256(token.encode()).digest()
