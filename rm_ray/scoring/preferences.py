"""Scored rows -> their preferences and rewards, for the evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Protocol

import numpy as np

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.preferences.distinct import identify
from rm_ray.data.preferences.group_reading import has_preference, read_group
from rm_ray.data.rows.refusals import RefusedError
from rm_ray.errors import InputError
from rm_ray.evaluation.reports.preference_report import ScoredPreferences, preference_report
from rm_ray.evaluation.reward_bench import SUBSETS_2, ScoredPrompt
from rm_ray.evaluation.reward_statistics import RewardStatistics
from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.scoring.conversations import Conversations, parse_conversations
from rm_ray.scoring.output import ScoredRows


class RewardedRows(Protocol):
    """Rows with their origins and rewards, in order."""

    @property
    def rules(self) -> ColumnRules:
        """How the rows are read."""
        ...

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each row with its origin."""
        ...


def read_preferences(scored: RewardedRows) -> ScoredPreferences:
    """Return the preferences of the rows that compare or score responses.

    If a row has right responses and wrong ones, every right one is compared with every wrong one.

    Raises:
        InputError: no row compares responses, and none has a score.
    """
    groups, sources, subsets, prompts, rows = [], [], [], [], []
    unusable: Counter[str] = Counter()
    for origin, row in scored:
        parsed = parse_conversations(row, origin, scored.rules)
        try:
            group = compare_responses(row, parsed, origin, scored.rules)
        except RefusedError as refusal:
            unusable[str(refusal.reason)] += 1
            continue
        if group is None:
            continue
        groups.append(group)
        sources.append(parsed.source)
        subsets.append(parsed.subset)
        rows.append(row)
        if 0 < parsed.num_correct < len(parsed.messages):
            rewards, _ = _rewards(row, parsed)
            about = {"subset": parsed.subset, "id": parsed.id}
            prompts.append(ScoredPrompt(rewards=rewards, num_correct=parsed.num_correct, **about))
    if not any(len(group.better) or not np.isnan(group.scores).all() for group in groups):
        refused = ", ".join(f"{count} {reason}" for reason, count in unusable.most_common())
        raise InputError(
            "no row tells which response is better or has a score, so there is nothing to report"
            + (f"; rows that could not be compared: {refused}" if refused else "")
        )
    return ScoredPreferences(
        groups=ScoredGroups.join(groups),
        sources=sources,
        subsets=subsets,
        prompts=prompts,
        rows=rows,
        unusable=dict(unusable.most_common()),
    )


def compare_responses(
    row: dict[str, Any], parsed: Conversations, origin: str, rules: ColumnRules
) -> ScoredGroups | None:
    """Return the group of a scored row's responses; None if nothing is said of them.

    ``parsed`` is what ``parse_conversations`` makes of the row.

    Raises:
        RefusedError: what is said of them cannot be used.
    """
    rewards, tokens = _rewards(row, parsed)
    if _is_reward_bench_2(parsed):  # it repeats responses, which a comparison group does not
        right, wrong = range(parsed.num_correct), range(parsed.num_correct, len(rewards))
        pairs = [*product(right, wrong)]
        better, worse = [right for right, _ in pairs], [wrong for _, wrong in pairs]
        return ScoredGroups.one(rewards=rewards, tokens=tokens, better=better, worse=worse)
    if not has_preference(row, rules):
        return None
    group, _ = read_group(row, origin, rules)
    place_of: dict[str, int] = {}
    for place, messages in enumerate(parsed.messages):
        place_of.setdefault(identify(messages[-1]), place)
    places = [place_of[identify(response)] for response in group.responses]
    compared = group.comparisons
    return ScoredGroups.one(
        rewards=[rewards[place] for place in places],
        tokens=[tokens[place] for place in places],
        better=[each.better for each in compared],
        worse=[each.worse for each in compared],
        weights=[each.weight for each in compared],
        margins=[each.margin for each in compared],
        probabilities=[each.probability for each in compared],
        scores=group.scores,
    )


def _is_reward_bench_2(parsed: Conversations) -> bool:
    """Return whether a row has right and wrong responses like RewardBench 2's, and no margin."""
    is_known = parsed.reading.form == "reward_bench_2" or parsed.subset.lower() in SUBSETS_2
    has_both = parsed.form == "responses" and 0 < parsed.num_correct < len(parsed.messages)
    return is_known and has_both and not parsed.margin


def _rewards(row: dict[str, Any], parsed: Conversations) -> tuple[Sequence[float], Sequence[int]]:
    if parsed.form == "responses":
        return row["rewards"], row["num_tokens"]
    if parsed.form == "conversation":
        return [row["reward"]], [row["num_tokens"]]
    return (
        [row["chosen_reward"], row["rejected_reward"]],
        [row["chosen_tokens"], row["rejected_tokens"]],
    )


def join_raw(
    members: Sequence[ScoredGroups], statistics: Sequence[RewardStatistics | None]
) -> ScoredGroups | None:
    """Return the same groups with the mean of the raw rewards of M models; None if all are raw.

    ``members`` have the models' own rewards, standardized by those ``statistics`` that are not
    None.
    """
    if not any(statistics):
        return None
    rewards = [
        groups.rewards if one is None else one.restore(groups.rewards)
        for groups, one in zip(members, statistics, strict=True)
    ]
    return replace(members[0], rewards=np.mean(rewards, axis=0))


def evaluation_report(
    preferences: ScoredPreferences, scored: ScoredRows, raw: ScoredGroups | None = None
) -> dict[str, Any]:
    """Return ``report.json``: how the rows were read, and all metrics of their preferences.

    ``raw`` has the preferences' groups with raw rewards, if theirs are standardized: Bradley-Terry
    probabilities are those of raw differences.
    """
    return {
        "rows_scored": scored.num_scored,
        "rows_refused": scored.refused,
        "rows_not_compared": preferences.unusable,
        "readings": [reading.to_json() for reading in scored.readings],
        **preference_report(preferences, raw),
    }
