"""Rows scored by several models -> the same rows with mean rewards and their spread."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rm_ray.config.column_rules import ColumnRules
from rm_ray.config.scoring import Rows
from rm_ray.data.rows.refusals import RefusedError
from rm_ray.data.sources import mixture
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError
from rm_ray.evaluation.reports.ensemble import spread_over_models
from rm_ray.scoring.chunks import ADDED
from rm_ray.scoring.conversations import (
    SCORED_PARTS,
    Conversations,
    Form,
    parse_conversations,
)
from rm_ray.scoring.output import (
    EVALUATIONS,
    MANIFEST,
    MODELS,
    REFUSED,
    ROWS,
    ScoredRows,
    list_chunks,
    read_lines,
    to_json_lines,
)
from rm_ray.storage import Storage, below

SPREADS: dict[Form, dict[str, str]] = {
    "conversation": {"reward": "reward_spread"},
    "pair": {
        "chosen_reward": "chosen_reward_spread",
        "rejected_reward": "rejected_reward_spread",
    },
    "responses": {"rewards": "reward_spread"},
}
"""Columns of rewards by a row's form, each with the column of its spread."""


def check_ensemble(output: str | None, rows: Rows) -> None:
    """Check, before any model scores the rows, that ``Ensemble.join`` can write them.

    Raises:
        InputError: the folder has the scores of one model, or a column has the name of a spread.
    """
    if output is not None:
        _claim(output)
    specs = [SourceSpec.parse(text) for text in rows.data]
    for selection in mixture.select(specs, rows.seed, any_of=SCORED_PARTS, rules=rows.rules):
        origin = selection.fragment.origin
        for number, text in mixture.read_selected(selection):
            if "reward_spread" not in text:  # parsing costs more
                continue
            row = json.loads(text)
            if isinstance(row, dict) and (taken := _find_spread(row, origin, rows.rules)):
                raise InputError(
                    f"row {number} of {origin} already has a column '{taken}', which scoring would "
                    "overwrite; rename it"
                )


def _find_spread(row: dict[str, Any], origin: str, rules: ColumnRules) -> str | None:
    """Return the column of a row that has the name of a spread, if the row can be scored."""
    try:
        spreads = SPREADS[parse_conversations(row, origin, rules).form].values()
    except RefusedError:
        return None
    return next((name for name in spreads if name in row), None)


def _claim(output: str) -> Storage:
    folder = Storage.open(output)
    folder.check_writable("output")
    if folder.exists(MANIFEST):
        raise InputError(
            f"--output '{folder.path}' has the scores of one model; choose another folder"
        )
    return folder


def member_folder(output: str | None, number: int) -> str | None:
    """Return the output folder of one model of an ensemble; None for its own default folder."""
    return None if output is None else below(output, f"model-{number}")


@dataclass(frozen=True, kw_only=True)
class JointRow:
    """A row that every model scored."""

    origin: str
    parsed: Conversations
    each: tuple[dict[str, Any], ...]
    """The row with each model's rewards."""

    @property
    def spreads(self) -> dict[str, str]:
        """The row's columns of rewards, each with the column of its spread."""
        return SPREADS[self.parsed.form]

    @property
    def rewards(self) -> np.ndarray:
        """``[M, K]``: M models, K responses."""
        columns = [np.array([row[name] for row in self.each]) for name in self.spreads]
        return np.concatenate([column.reshape(len(self.each), -1) for column in columns], axis=1)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model's rewards of the rows that every model scored."""

    ensemble: Ensemble
    number: int

    @property
    def rules(self) -> ColumnRules:
        """How the rows are read."""
        return self.ensemble.members[self.number].rules

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each row with its origin, in order."""
        for _, rows in self.ensemble.chunks():
            for row in rows:
                yield row.origin, row.each[self.number]


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The same rows, scored by each of M models into a folder of its own."""

    names: tuple[str, ...]
    """The models."""
    members: tuple[ScoredRows, ...]

    def each(self) -> list[tuple[str, Member]]:
        """Return each model with its rewards of the rows that every model scored."""
        return [(name, Member(ensemble=self, number=i)) for i, name in enumerate(self.names)]

    def join(self, output: str | None) -> ScoredRows:
        """Write the rows with mean rewards and spreads, which ``check_ensemble`` allowed."""
        paths = "\n".join(member.folder.path for member in self.members)
        name = f"ensemble-{hashlib.sha256(paths.encode()).hexdigest()[:16]}"
        folder = _claim(output or f"{EVALUATIONS}/{name}")
        folder.write_json(MODELS, [member.folder.path for member in self.members])
        shifts = self._mean_rewards()
        for name, rows in self.chunks():
            lines = to_json_lines([join_row(row, shifts) for row in rows])
            folder.write_text(f"{ROWS}/{name}", lines)
        first = self.members[0]
        joined = ScoredRows.collect(folder, first.origins, first.rules)
        return replace(joined, refused=self._count_refused(), readings=first.readings)

    def chunks(self) -> Iterator[tuple[str, list[JointRow]]]:
        """Yield each chunk's name, and its rows that every model scored."""
        first = self.members[0]
        for name in list_chunks(first.folder, ROWS):
            origin = first.origin_of(name)
            scored = [_read_chunk(member, name) for member in self.members]
            keys = [key for key, _, _ in scored[0]]
            # A row that occurs twice has the same rewards twice.
            found = [{key: (parsed, row) for key, parsed, row in rows} for rows in scored]
            common = [key for key in keys if all(key in rows for rows in found)]
            yield (
                name,
                [
                    JointRow(
                        origin=origin,
                        parsed=found[0][key][0],
                        each=tuple(rows[key][1] for rows in found),
                    )
                    for key in common
                ],
            )

    def _count_refused(self) -> dict[str, int]:
        """Return the number of rows that not every model scored, by the first refusal's reason."""
        reasons: dict[tuple[str, int], str] = {}
        for member in self.members:
            for name in list_chunks(member.folder, REFUSED):
                for line in read_lines(member.folder, f"{REFUSED}/{name}"):
                    refused = json.loads(line)
                    reasons.setdefault((name, refused["row"]), refused["reason"])
        return dict(Counter(reasons.values()).most_common())

    def _mean_rewards(self) -> np.ndarray:
        """Return each model's mean reward over all responses, ``[M]``."""
        sums, count = np.zeros(len(self.members)), 0
        for _, rows in self.chunks():
            for row in rows:
                sums += row.rewards.sum(axis=1)
                count += row.rewards.shape[1]
        return sums / max(count, 1)


def join_row(row: JointRow, shifts: np.ndarray) -> dict[str, Any]:
    """Return a row with mean rewards over the models, their spread and the best by the mean.

    ``shifts`` are the models' mean rewards, ``[M]``, which are taken off for the spread. Token
    counts are the first model's.
    """
    joined = dict(row.each[0])
    for name, spread_name in row.spreads.items():
        rewards = np.array([one[name] for one in row.each])
        shifted = rewards - shifts.reshape(-1, *[1] * (rewards.ndim - 1))
        joined[name] = rewards.mean(axis=0).tolist()
        joined[spread_name] = spread_over_models(shifted).tolist()
    if row.parsed.form == "responses":
        best = int(np.argmax(joined["rewards"]))
        joined |= {"best": best, "best_response": row.parsed.responses[best]}
    return joined


def _read_chunk(member: ScoredRows, name: str) -> list[tuple[str, Conversations, dict[str, Any]]]:
    """Return the rows of a chunk with their keys and conversations."""
    read = []
    for line in read_lines(member.folder, f"{ROWS}/{name}"):
        row = json.loads(line)
        parsed = parse_conversations(row, member.origin_of(name), member.rules)
        read.append((_key(row, parsed), parsed, row))
    return read


def _key(row: dict[str, Any], parsed: Conversations) -> str:
    """Return what identifies a row: all but what scoring added."""
    added = ADDED[parsed.form]
    return json.dumps({name: value for name, value in row.items() if name not in added})
