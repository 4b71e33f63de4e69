"""Published sets in which a model ranks or scores several responses."""

from __future__ import annotations

from typing import Any

from rm_ray.data.published.published_form import PublishedForm, Row, words
from rm_ray.data.rows.refusals import Reason, RefusedError


def read_ultrafeedback(row: Row) -> Row:
    """Read UltraFeedback (openbmb/UltraFeedback, arXiv:2310.01377): scored completions.

    The score is ``overall_score``, GPT-4's from 1 to 10. The system prompts that the completions
    were sampled with differ and are not part of the prompt.
    """
    completions = _objects(row["completions"], "completions")
    return {
        "prompt": row["instruction"],
        "responses": [each.get("response") for each in completions],
        "scores": [each.get("overall_score") for each in completions],
    }


ULTRAFEEDBACK = PublishedForm(
    name="ultrafeedback",
    dataset="openbmb/UltraFeedback",
    columns=("instruction", "completions"),
    read=read_ultrafeedback,
    origins={
        "prompt": "instruction",
        "responses": "completions.response",
        "scores": "completions.overall_score",
    },
    harmless=words("models correct_answers incorrect_answers"),
)


def read_nectar(row: Row) -> Row:
    """Read Nectar (berkeley-nest/Nectar): seven answers with GPT-4's ranks, 1 the best."""
    answers = _objects(row["answers"], "answers")
    return {
        "prompt": row["prompt"],
        "responses": [each.get("answer") for each in answers],
        "ranks": [each.get("rank") for each in answers],
    }


NECTAR = PublishedForm(
    name="nectar",
    dataset="berkeley-nest/Nectar",
    columns=("prompt", "answers", "num_responses"),
    read=read_nectar,
    origins={"responses": "answers.answer", "ranks": "answers.rank"},
    optional=words("num_responses"),
    harmless=words("turns source good_natured"),
)


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise RefusedError(Reason.NOT_MESSAGES, f"{name} is not a list of objects")
    return value
