"""A chunk of rows -> a file of the same rows with rewards, and a file of the refused rows."""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import torch

from rm_ray.config.column_rules import ColumnRules
from rm_ray.config.scoring import ScoringModel
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.data.rows.column_readings import refuse_lost_columns, sum_up
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.tokens.conversation_tokenizer import ConversationTokenizer
from rm_ray.data.tokens.template_date import pin_date
from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import RewardStatistics
from rm_ray.scoring.conversations import Conversations, parse_conversations
from rm_ray.scoring.output import READINGS, REFUSED, ROWS, chunk_name, to_json_lines
from rm_ray.scoring.scorer import Ids, Scorer
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

ADDED = {
    "conversation": ("reward", "num_tokens"),
    "pair": ("chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens"),
    "responses": ("rewards", "best", "best_response", "num_tokens"),
}
"""Columns added to a row, by its form."""


class ChunkScorer:
    """Scores chunks and writes their files; Ray Data creates one per worker."""

    def __init__(
        self,
        model: ScoringModel,
        rules: ColumnRules,
        day: date,
        origins: Sequence[str],
        folder: Storage,
        cluster: ClusterConfig,
        statistics: RewardStatistics | None = None,
    ) -> None:
        self._rules, self._day, self._statistics = rules, day, statistics
        if not cluster.use_gpu:
            torch.set_num_threads(cluster.cpus_per_worker)
        self._model, self._origins, self._folder = model, origins, folder
        self._device = torch.device("cuda" if cluster.use_gpu else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score one chunk; return its counts, or an error that the user can fix."""
        name, error = chunk_name(int(batch["fragment"][0]), int(batch["chunk"][0])), ""
        num_rows, num_tokens = 0, 0
        try:
            num_rows, num_tokens = self._score(batch, name)
        except InputError as refusal:
            error = str(refusal)
        counts = {"file": name, "rows": num_rows, "tokens": num_tokens, "error": error}
        return {key: np.array([value]) for key, value in counts.items()}

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return Scorer.load(
            self._model.model,
            revision=self._model.revision,
            dtype=self._model.dtype,
            device=self._device,
            tokens_per_forward=self._model.tokens_per_pass(use_gpu=self._device.type == "cuda"),
        )

    @functools.cached_property
    def _tokenizer(self) -> ConversationTokenizer:
        assert self._model.max_length is not None
        tokenizer = self._scorer.tokenizer
        if pin_date(tokenizer, self._day):
            logger.info("the chat template asks for the date and gets %s", self._day)
        return ConversationTokenizer(tokenizer, max_length=self._model.max_length)

    def _score(self, batch: dict[str, np.ndarray], name: str) -> tuple[int, int]:
        """Score one chunk and write its files; return the number of rows and of tokens."""
        origin, texts = self._origins[int(batch["fragment"][0])], batch["json"][0]
        rows = [json.loads(text) for text in texts]
        read = [_read(row, origin, self._rules) for row in rows]
        ids, unwritten = self._tokenize(read)
        readings = _count_readings(read, unwritten)
        refuse_lost_columns([sum_up(origin, readings)], prefix="")
        rewards = self._scorer.score([one for one in ids if not isinstance(one, RefusedError)])
        if not all(np.isfinite(values).all() for values in rewards):
            raise InputError(
                f"the model's rewards are not finite for rows of {origin}, starting at row "
                f"{batch['row'][0][0]}; its weights are broken, or its dtype overflows"
            )
        if self._statistics is not None:
            rewards = [self._statistics.standardize(values) for values in rewards]
        scored, refused, tokens = [], [], 0
        left = iter(rewards)
        for number, row, parsed, found in zip(batch["row"][0], rows, read, ids, strict=True):
            if isinstance(found, RefusedError) or isinstance(parsed, RefusedError):
                assert isinstance(found, RefusedError)
                place = {"origin": origin, "row": int(number)}
                why = {"reason": str(found.reason), "detail": found.detail}
                refused.append({**place, **why, "raw": row})
            else:
                scored.append(_add_rewards(row, parsed, found, next(left).tolist()))
                tokens += sum(map(len, found))
        if refused:
            self._folder.write_text(f"{REFUSED}/{name}", to_json_lines(refused))
        self._folder.write_text(f"{READINGS}/{name}", json.dumps(readings) + "\n")
        # Written last: this file marks the chunk as finished.
        self._folder.write_text(f"{ROWS}/{name}", to_json_lines(scored))
        return len(rows), tokens

    def _tokenize(
        self, read: Sequence[Conversations | RefusedError]
    ) -> tuple[list[list[list[int]] | RefusedError], list[tuple[str, ...]]]:
        """Return the token ids of each row's conversations, or the row's refusal.

        The second list has the keys of each row that the chat template does not render.
        """
        parsed = [row for row in read if isinstance(row, Conversations)]
        messages = [conversation for row in parsed for conversation in row.messages]
        contexts = [row.context for row in parsed for _ in row.messages]
        left = iter(self._tokenizer.read(messages, contexts))
        result: list[list[list[int]] | RefusedError] = []
        unwritten: list[tuple[str, ...]] = []
        for row in read:
            unwritten.append(())
            if isinstance(row, RefusedError):
                result.append(row)
                continue
            each = [next(left) for _ in row.messages]
            refusal = next((one for one in each if isinstance(one, RefusedError)), None)
            written = [one for one in each if not isinstance(one, RefusedError)]
            result.append(refusal or [one.ids for one in written])
            unwritten[-1] = tuple(dict.fromkeys(key for one in written for key in one.unwritten))
        return result, unwritten


def _read(row: Any, origin: str, rules: ColumnRules) -> Conversations | RefusedError:
    if not isinstance(row, dict):
        return RefusedError(Reason.NOT_MESSAGES, f"the row is a {type(row).__name__}")
    try:
        return parse_conversations(row, origin, rules)
    except RefusedError as refusal:
        return refusal


def _count_readings(
    read: Sequence[Conversations | RefusedError], unwritten: Sequence[tuple[str, ...]]
) -> Counter[str]:
    """Count the rows by how they were read."""
    return Counter(
        replace(row.reading, unwritten=keys).to_json()
        for row, keys in zip(read, unwritten, strict=True)
        if isinstance(row, Conversations)
    )


def _add_rewards(
    row: dict[str, Any], parsed: Conversations, ids: Sequence[Ids], rewards: list[float]
) -> dict[str, Any]:
    """Return the row with its rewards."""
    lengths = [len(one) for one in ids]
    best = int(np.argmax(rewards))
    values: dict[str, tuple[Any, ...]] = {
        "conversation": (rewards[0], lengths[0]),
        "pair": (*rewards[:2], *lengths[:2]),
        "responses": (rewards, best, parsed.responses[best], lengths),
    }
    added = dict(zip(ADDED[parsed.form], values[parsed.form], strict=True))
    if taken := sorted(added.keys() & row.keys()):
        raise InputError(
            f"the rows already have a column '{taken[0]}', which scoring would overwrite; rename it"
        )
    return {**row, **added}
