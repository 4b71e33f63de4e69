"""A chunk of rows -> a file of the same rows with rewards, and one of those that are refused."""

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

from rm_ray.config.scoring import ScoringModel
from rm_ray.config.train_config import ClusterConfig
from rm_ray.data.rows.columns import ColumnRules
from rm_ray.data.rows.contract import Reason, RefusedError
from rm_ray.data.rows.reading import refuse_lost_columns, sum_up
from rm_ray.data.tokens.conversation_tokens import ConversationTokenizer
from rm_ray.data.tokens.template_date import pin_date
from rm_ray.errors import InputError
from rm_ray.scoring.conversations import Conversations, parse_conversations
from rm_ray.scoring.scorer import Ids, Scorer
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

PARTS, REFUSED, READINGS = "rows", "quarantine", "readings"
"""Folders with a file for each chunk: scored rows, refused ones, how often rows were read how."""

ADDED = {
    "conversation": ("reward", "num_tokens"),
    "pair": ("chosen_reward", "rejected_reward", "chosen_tokens", "rejected_tokens"),
    "responses": ("rewards", "best", "best_response", "num_tokens"),
}
"""Columns that a row gets, by its form."""


def file_name(fragment: int, chunk: int) -> str:
    """Return the name of a chunk's files."""
    return f"part-{fragment:05d}-{chunk:08d}.jsonl"


class ChunkScorer:
    """Scores a chunk and writes its file; Ray Data makes one for each worker."""

    def __init__(
        self,
        model: ScoringModel,
        rules: ColumnRules,
        day: date,
        origins: Sequence[str],
        folder: Storage,
        cluster: ClusterConfig,
    ) -> None:
        self._rules, self._day = rules, day
        if not cluster.use_gpu:
            torch.set_num_threads(cluster.cpus_per_worker)
        self._model, self._origins, self._folder = model, origins, folder
        self._device = torch.device("cuda" if cluster.use_gpu else "cpu")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score one chunk; return its counts, or what is the user's to mend."""
        name, error = file_name(int(batch["fragment"][0]), int(batch["chunk"][0])), ""
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
            tokens_per_forward=self._model.tokens_per_forward,
        )

    @functools.cached_property
    def _tokenizer(self) -> ConversationTokenizer:
        assert self._model.max_length is not None
        tokenizer = self._scorer.tokenizer
        if pin_date(tokenizer, self._day):
            logger.info("the chat template asks for the date, and is told %s", self._day)
        return ConversationTokenizer(tokenizer, max_length=self._model.max_length)

    def _score(self, batch: dict[str, np.ndarray], name: str) -> tuple[int, int]:
        """Score one chunk and write its file; return how many rows and tokens it has."""
        origin, texts = self._origins[int(batch["fragment"][0])], batch["json"][0]
        rows = [json.loads(text) for text in texts]
        read = [_read(row, origin, self._rules) for row in rows]
        ids, unwritten = self._tokenize(read)
        readings = _count(read, unwritten)
        refuse_lost_columns([sum_up(origin, readings)], prefix="")
        rewards = self._scorer.score([one for one in ids if not isinstance(one, RefusedError)])
        if not all(np.isfinite(values).all() for values in rewards):
            raise InputError(
                f"the model gives rewards that are not finite numbers, to rows of {origin} from "
                f"row {batch['row'][0][0]} on; its weights are broken, or its dtype overflows"
            )
        scored, refused, tokens = [], [], 0
        left = iter(rewards)
        for number, row, what, found in zip(batch["row"][0], rows, read, ids, strict=True):
            if isinstance(found, RefusedError) or isinstance(what, RefusedError):
                assert isinstance(found, RefusedError)
                about = {"origin": origin, "row": int(number)}
                why = {"reason": str(found.reason), "detail": found.detail}
                refused.append({**about, **why, "raw": row})
            else:
                scored.append(_add(row, what, found, next(left).tolist()))
                tokens += sum(map(len, found))
        if refused:
            self._folder.write_text(f"{REFUSED}/{name}", _lines(refused))
        self._folder.write_text(f"{READINGS}/{name}", json.dumps(readings) + "\n")
        self._folder.write_text(f"{PARTS}/{name}", _lines(scored))  # last: it says that all is done
        return len(rows), tokens

    def _tokenize(
        self, read: Sequence[Conversations | RefusedError]
    ) -> tuple[list[list[list[int]] | RefusedError], list[tuple[str, ...]]]:
        """Return the ids of each row's conversations, or why it is refused.

        Beside them stand the keys of each row that the chat template does not write.
        """
        found = [what for what in read if isinstance(what, Conversations)]
        messages = [m for what in found for m in what.messages]
        contexts = [what.context for what in found for _ in what.messages]
        left = iter(self._tokenizer.read(messages, contexts))
        result: list[list[list[int]] | RefusedError] = []
        unwritten: list[tuple[str, ...]] = []
        for what in read:
            unwritten.append(())
            if isinstance(what, RefusedError):
                result.append(what)
                continue
            each = [next(left) for _ in what.messages]
            refusal = next((one for one in each if isinstance(one, RefusedError)), None)
            whole = [one for one in each if not isinstance(one, RefusedError)]
            result.append(refusal or [one.ids for one in whole])
            unwritten[-1] = tuple(dict.fromkeys(key for one in whole for key in one.unwritten))
        return result, unwritten


def _read(row: Any, origin: str, rules: ColumnRules) -> Conversations | RefusedError:
    if not isinstance(row, dict):
        return RefusedError(Reason.NOT_MESSAGES, f"the row is a {type(row).__name__}")
    try:
        return parse_conversations(row, origin, rules)
    except RefusedError as refusal:
        return refusal


def _count(
    read: Sequence[Conversations | RefusedError], unwritten: Sequence[tuple[str, ...]]
) -> Counter[str]:
    """Count the ways in which rows were read."""
    return Counter(
        replace(what.reading, unwritten=keys).to_json()
        for what, keys in zip(read, unwritten, strict=True)
        if isinstance(what, Conversations)
    )


def _add(
    row: dict[str, Any], what: Conversations, ids: Sequence[Ids], rewards: list[float]
) -> dict[str, Any]:
    """Return the row with its rewards."""
    lengths = [len(one) for one in ids]
    best = int(np.argmax(rewards))
    values: dict[str, tuple[Any, ...]] = {
        "conversation": (rewards[0], lengths[0]),
        "pair": (*rewards[:2], *lengths[:2]),
        "responses": (rewards, best, what.responses[best], lengths),
    }
    added = dict(zip(ADDED[what.form], values[what.form], strict=True))
    if taken := sorted(added.keys() & row.keys()):
        raise InputError(
            f"the rows have a column '{taken[0]}' already, which scoring would write; rename it"
        )
    return {**row, **added}


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode(errors="backslashreplace").decode()  # half a character, as JSON escapes it
