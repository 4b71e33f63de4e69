"""Pending conversations of all requests -> forward passes, one at a time, in one thread."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from rm_ray.data.cache.group_tokens import shared_prefix_of_arrays
from rm_ray.errors import first_line
from rm_ray.serving.batches import next_batch
from rm_ray.serving.metrics import BatchMetrics
from rm_ray.serving.refusal import RefusedError, refuse
from rm_ray.serving.served_model import ServedModels

logger = logging.getLogger(__name__)

LONGEST_RETRY_S = 60

MOST_FAILURES = 3
"""Forward passes that may fail in a row before the replica counts as broken."""


@dataclass(kw_only=True, eq=False)
class _Request:
    model: ServedModels
    rewards: np.ndarray
    """``[M, conversations]`` float32, of M models."""
    num_left: int
    done: asyncio.Future[None]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pending:
    request: _Request
    position: int
    ids: np.ndarray


def _halves(requests: list[_Request]) -> list[set[_Request]]:
    middle = len(requests) // 2
    return [{*half} for half in (requests[:middle], requests[middle:]) if half]


@dataclass(kw_only=True)
class Batcher:
    """Scores the conversations of all requests together.

    Whenever the model is free, the oldest pending conversations, and those that share a prefix with
    them, make the next forward pass: a request waits only while the model is busy. Conversations
    keep the model that was served when they arrived.
    """

    tokens_per_forward: int
    max_pending_tokens: int
    metrics: BatchMetrics
    _pending: deque[_Pending] = field(default_factory=deque)
    _num_tokens: int = 0
    """Tokens of the pending conversations and of those in the forward pass."""
    _num_arriving: int = 0
    """About how many tokens are being tokenized, or wait for that."""
    _num_failures: int = 0
    _worker: asyncio.Task[None] | None = None
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="model")
    )

    async def score(self, model: ServedModels, conversations: Sequence[np.ndarray]) -> np.ndarray:
        """Return the float32 rewards of conversations by each model, ``[M, conversations]``.

        If it is cancelled, the conversations that still wait are dropped.

        Raises:
            RefusedError: too much is pending, or the model failed.
        """
        num_tokens = sum(map(len, conversations))
        self.refuse_overload(num_tokens)
        request = _Request(
            model=model,
            rewards=np.zeros((len(model.members), len(conversations)), dtype=np.float32),
            num_left=len(conversations),
            done=asyncio.get_running_loop().create_future(),
        )
        self._pending.extend(
            _Pending(request=request, position=i, ids=ids) for i, ids in enumerate(conversations)
        )
        self._count(num_tokens)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            await request.done
        except BaseException:  # the client is gone, or a part of the request failed
            self._drop(request)
            raise
        return request.rewards

    @contextmanager
    def arriving(self, num_tokens: int) -> Iterator[None]:
        """Count a request as pending while it is tokenized, by about how many tokens it has.

        Raises:
            RefusedError: too much is pending.
        """
        pending, most = self._num_tokens + self._num_arriving, self.max_pending_tokens
        if pending + min(max(num_tokens, 1), most) > most:  # a guess does not refuse for good
            raise self._overload(pending)
        self._num_arriving += num_tokens
        self._count(0)
        try:
            yield
        finally:
            self._num_arriving -= num_tokens
            self._count(0)

    def refuse_overload(self, num_tokens: int) -> None:
        """Refuse a request with so many tokens if too much is pending.

        Raises:
            RefusedError: the bound would be passed.
        """
        most = self.max_pending_tokens
        if num_tokens > most:
            raise refuse(
                413,
                f"the request has {num_tokens:,} tokens, and at most {most:,} may be pending "
                "(--max_pending_tokens); send fewer conversations at a time",
            )
        if self._num_tokens + num_tokens > most:
            raise self._overload(self._num_tokens)

    def _overload(self, pending: int) -> RefusedError:
        seconds = pending / self.metrics.tokens_per_second
        return refuse(
            503,
            f"{pending:,} tokens are pending, of at most {self.max_pending_tokens:,}; send the "
            "request again later",
            retry_after_s=min(LONGEST_RETRY_S, max(1, math.ceil(seconds))),
        )

    @property
    def is_broken(self) -> bool:
        """Whether the last forward passes all failed."""
        return self._num_failures >= MOST_FAILURES

    async def _work(self) -> None:
        """Run forward passes until nothing is pending."""
        while self._pending:
            model = self._pending[0].request.model
            same = [each for each in self._pending if each.request.model is model]
            chosen = next_batch(
                [each.ids for each in same], self.tokens_per_forward, model.num_cached
            )
            groups = [[same[i] for i in group] for group in chosen]
            taken = {id(each) for group in groups for each in group}
            self._pending = deque(each for each in self._pending if id(each) not in taken)
            await self._run(model, groups)
            await asyncio.sleep(0)  # let requests that failed drop the rest of their conversations

    async def _run(self, model: ServedModels, groups: list[list[_Pending]]) -> None:
        """Run one forward pass of each model and hand out its rewards.

        If it fails, its requests are computed again in two halves, until only the one at fault
        fails; and so are those whose rewards are not finite, which others may have caused.
        """
        batch = [each for group in groups for each in group]
        if not batch:
            return
        requests = dict.fromkeys(each.request for each in batch)
        prompts = [[each.ids for each in group] for group in groups]
        cached = [
            min(model.num_cached(prompt[0]), shared_prefix_of_arrays(prompt)) for prompt in prompts
        ]
        began, loop = time.monotonic(), asyncio.get_running_loop()
        try:
            rewards = await loop.run_in_executor(self._thread, model.score, prompts)
        except Exception as error:  # a bug or a broken device must not end the server
            again = requests
            if len(requests) > 1:
                logger.warning("a pass of %d requests failed: %s", len(requests), first_line(error))
            else:
                logger.exception("a forward pass failed")
                again = {}
                self._num_failures += 1
                self._fail(batch, refuse(500, f"the model failed: {first_line(error)}"))
                self._count(-sum(len(each.ids) for each in batch))
        else:
            self._num_failures = 0
            seconds = time.monotonic() - began
            is_finite = np.isfinite(rewards).all(axis=0).tolist()
            broken = [each.request for each, ok in zip(batch, is_finite, strict=True) if not ok]
            again = dict.fromkeys(broken) if len(requests) > 1 else {}
            self._hand_out(batch, rewards, but=again)
            self._finish(groups, cached, seconds, but=again)
        for half in _halves([*again]):
            own = ([each for each in group if each.request in half] for group in groups)
            await self._run(model, self._without_answered([group for group in own if group]))

    def _without_answered(self, groups: list[list[_Pending]]) -> list[list[_Pending]]:
        """Leave out requests that have failed or been given up since they were taken."""
        gone = [each for group in groups for each in group if each.request.done.done()]
        self._count(-sum(len(each.ids) for each in gone))
        left = ([each for each in group if not each.request.done.done()] for group in groups)
        return [group for group in left if group]

    def _finish(
        self,
        groups: list[list[_Pending]],
        cached: Sequence[int],
        seconds: float,
        *,
        but: Container[_Request],
    ) -> None:
        """Count a pass, but not some of its requests, which are computed again."""
        own = [[each.ids for each in group if each.request not in but] for group in groups]
        done = [(prompt, count) for prompt, count in zip(own, cached, strict=True) if prompt]
        if not done:
            return
        prompts, cached = zip(*done, strict=True)
        num_tokens = sum(len(ids) for prompt in prompts for ids in prompt)
        self.metrics.add(
            num_conversations=sum(map(len, prompts)),
            num_tokens=num_tokens,
            prompts=prompts,
            cached=cached,
            seconds=seconds,
        )
        self._count(-num_tokens)

    def _hand_out(
        self, batch: list[_Pending], rewards: np.ndarray, *, but: Container[_Request]
    ) -> None:
        for each, by_model in zip(batch, rewards.T, strict=True):
            request = each.request
            if request in but:
                continue
            if not np.isfinite(by_model).all():
                message = "the model's reward is not finite; its weights or its dtype overflow"
                self._fail([each], refuse(500, message))
                continue
            request.rewards[:, each.position] = by_model
            request.num_left -= 1
            if not request.num_left and not request.done.done():
                request.done.set_result(None)

    def _fail(self, batch: list[_Pending], failure: RefusedError) -> None:
        for each in batch:
            if not each.request.done.done():
                each.request.done.set_exception(failure)

    def _drop(self, request: _Request) -> None:
        """Forget the conversations of a request that still wait."""
        dropped = sum(len(each.ids) for each in self._pending if each.request is request)
        self._pending = deque(each for each in self._pending if each.request is not request)
        self._count(-dropped)

    def _count(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        tokens = self._num_tokens + self._num_arriving
        self.metrics.set_pending(tokens=tokens, conversations=len(self._pending))
