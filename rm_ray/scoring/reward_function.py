"""A reward server as a reward function for TRL's ``GRPOTrainer(reward_funcs=...)``."""

from __future__ import annotations

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rm_ray.config.scoring import RewardScale
from rm_ray.errors import InputError

TOKEN_VARIABLE = "RM_RAY_SERVE_TOKEN"
"""Environment variable with the server's token."""

ROUTE = "/v1/rewards"

SCALE_HEADER = "X-Reward-Scale"
"""Header that says whether an answer's rewards are 'raw' or 'standardized'."""

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
"""Delays before a request is repeated, unless the server names one; each doubles the last."""

BUSY = frozenset((408, 429, 502, 503, 504))
"""Statuses after which the same request may succeed."""


class RewardServerError(RuntimeError):
    """A reward server does not answer, or answers something that is no rewards."""


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """Rewards of completions from a server; called by TRL with a batch's columns.

    A prompt's completions are one request, so that the server computes the prompt once.
    """

    url: str
    """Address of the server, as ``http://127.0.0.1:8000``."""
    name: str = "rm_ray"
    """What TRL calls the reward in its metrics."""
    rewards: RewardScale = "raw"
    """What the server must serve, as its ``--rewards`` says."""
    patience_s: float = 600.0
    """How long a request is repeated while the server is away or busy."""
    timeout_s: float = 180.0
    """How long an answer may take."""
    num_connections: int = 8
    """Requests under way at once."""
    token: str = field(default_factory=lambda: os.environ.get(TOKEN_VARIABLE, ""), repr=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"url must begin with http:// or https://, got {self.url!r}")
        for what in ("patience_s", "timeout_s", "num_connections"):
            if not getattr(self, what) > 0:
                raise InputError(f"{what} must be positive, got {getattr(self, what)}")

    @property
    def __name__(self) -> str:
        """The name by which TRL logs the rewards."""
        return self.name

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return the reward of each completion.

        Prompts are messages, or texts that become the user's turn; completions are messages or
        texts. ``tools`` is the only other column that the chat template takes.

        Raises:
            InputError: the server refuses a prompt or a completion, or the token, or serves other
                rewards than ``rewards``.
            RewardServerError: the server does not answer within ``patience_s``.
        """
        bodies, members = _group(prompts, completions, columns.get("tools"))
        rewards = [math.nan] * len(completions)
        with ThreadPoolExecutor(min(self.num_connections, len(bodies) or 1)) as pool:
            for places, answer in zip(members, pool.map(self._ask, bodies), strict=True):
                for place, reward in zip(places, answer, strict=True):
                    rewards[place] = reward
        return rewards

    def _ask(self, body: dict[str, Any]) -> list[float]:
        """Return the rewards of a request's responses; repeat it while the server is busy."""
        try:
            data = json.dumps(body).encode()
        except (TypeError, ValueError) as error:
            raise InputError(f"a prompt or completion is not text: {error}") from None
        deadline, delay = time.monotonic() + self.patience_s, FIRST_DELAY_S
        while True:
            wait, cause = delay, ""
            try:
                return _read_rewards(self._post(data), len(body["responses"]), self.url)
            except urllib.error.HTTPError as error:
                cause = f"status {error.code}: {_read_message(error)}"
                if error.code not in BUSY:
                    raise self._refusal(error.code, cause) from None
                wait = _read_delay(error) or delay
            except (OSError, http.client.HTTPException) as error:
                cause = str(error) or type(error).__name__
            if time.monotonic() + wait > deadline:
                raise RewardServerError(
                    f"{self.url} gave no rewards for {self.patience_s:g} s; last, {cause}"
                )
            time.sleep(wait)
            delay = min(2 * delay, LONGEST_DELAY_S)

    def _post(self, data: bytes) -> bytes:
        """Return the answer to a request.

        Raises:
            InputError: the rewards are not those that are wanted.
        """
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}{ROUTE}", data, headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
            found: bytes = answer.read()
            scale = answer.headers.get(SCALE_HEADER, "raw")
        if scale != self.rewards:
            raise InputError(
                f"{self.url} serves {scale} rewards, and rewards is {self.rewards!r}; start the "
                f"server with --rewards {self.rewards}, or ask with rewards={scale!r}"
            )
        return found

    def _refusal(self, status: int, cause: str) -> Exception:
        if status in (401, 403):
            return InputError(
                f"{self.url} refuses the token ({cause}); set {TOKEN_VARIABLE} to the server's"
            )
        if 400 <= status < 500:
            return InputError(f"{self.url} refuses a request ({cause})")
        return RewardServerError(f"{self.url} fails ({cause})")


def _group(
    prompts: Sequence[Any], completions: Sequence[Any], tools: Sequence[Any] | None
) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Return a request for each distinct prompt, and the places of its completions."""
    bodies: dict[str, dict[str, Any]] = {}
    members: dict[str, list[int]] = {}
    each_tools = [None] * len(prompts) if tools is None else tools
    rows = zip(prompts, completions, each_tools, strict=True)
    for place, (prompt, completion, its_tools) in enumerate(rows):
        key = repr((prompt, its_tools))
        if key not in bodies:
            name = "prompt" if isinstance(prompt, str) else "messages"
            with_tools = {"tools": its_tools} if its_tools else {}
            bodies[key] = {name: prompt, "responses": [], **with_tools}
            members[key] = []
        bodies[key]["responses"].append(completion)
        members[key].append(place)
    return list(bodies.values()), list(members.values())


def _read_rewards(data: bytes, count: int, url: str) -> list[float]:
    try:
        found = json.loads(data)["rewards"]
        rewards = [float(reward) for reward in found]
    except (ValueError, TypeError, KeyError):
        raise RewardServerError(f"{url} answers no rewards: {data[:200]!r}") from None
    if len(rewards) != count or not all(map(math.isfinite, rewards)):
        raise RewardServerError(
            f"{url} must answer {count} finite rewards, got {len(rewards)}: {data[:200]!r}"
        )
    return rewards


def _read_message(error: urllib.error.HTTPError) -> str:
    """Return what a server says about an error, in any of the usual forms."""
    try:
        text = error.read().decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        found: Any = json.loads(text)
    except ValueError:
        return text[:500]
    while isinstance(found, dict):
        inside = next((found[key] for key in ("error", "message", "detail") if key in found), None)
        if inside is None:
            break
        found = inside
    return str(found)[:500]


def _read_delay(error: urllib.error.HTTPError) -> float | None:
    """Return the seconds in ``Retry-After``; None without, and for dates."""
    value = error.headers.get("Retry-After", "")
    return min(float(value), LONGEST_DELAY_S) if value.isdecimal() else None


def reward_function(
    url: str, *, name: str = "rm_ray", rewards: RewardScale = "raw", patience_s: float = 600.0
) -> RewardFunction:
    """Return a reward function that asks a server, with the token in ``RM_RAY_SERVE_TOKEN``.

    For ``GRPOTrainer(reward_funcs=reward_function("http://127.0.0.1:8000"))``. A server with other
    ``rewards`` is refused.

    Raises:
        InputError: the address is not one, or patience is not positive.
    """
    return RewardFunction(url=url, name=name, rewards=rewards, patience_s=patience_s)
