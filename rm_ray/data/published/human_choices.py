"""Published sets in which people, or their upvotes, choose one of two responses."""

from __future__ import annotations

from typing import Any

from rm_ray.data.preferences.numbers import read_number
from rm_ray.data.published.published_form import PublishedForm, Row, prefer, require_index, words
from rm_ray.data.rows.refusals import Reason, RefusedError


def read_pku_saferlhf(row: Row) -> Row:
    """Read PKU-SafeRLHF (PKU-Alignment/PKU-SafeRLHF, arXiv:2406.15513): the more helpful response.

    ``safer_response_id``, which may name the other one, is not used.
    """
    better = require_index(row["better_response_id"], "better_response_id")
    return {
        "prompt": row["prompt"],
        **prefer(row["response_0"], row["response_1"], -1 if better else 1),
    }


PKU_SAFERLHF = PublishedForm(
    name="pku_saferlhf",
    dataset="PKU-Alignment/PKU-SafeRLHF",
    columns=("prompt", "response_0", "response_1", "better_response_id"),
    read=read_pku_saferlhf,
    origins={
        "chosen": "response_0' and 'response_1",
        "rejected": "response_0' and 'response_1",
        "preference": "better_response_id",
    },
    harmless=words(
        "safer_response_id prompt_source response_0_source response_1_source is_response_0_safe "
        "is_response_1_safe response_0_harm_category response_1_harm_category "
        "response_0_severity_level response_1_severity_level response_0_sha256 response_1_sha256"
    ),
)


def read_webgpt(row: Row) -> Row:
    """Read WebGPT's comparisons (openai/webgpt_comparisons, arXiv:2112.09332).

    The answer with the higher score is better, and equal scores tie. The quotes, which differ
    between the answers, are not part of the prompt.
    """
    scores = [
        read_number(row[name], name, Reason.BAD_PREFERENCE) for name in ("score_0", "score_1")
    ]
    question = row["question"]
    return {
        "prompt": question.get("full_text") if isinstance(question, dict) else question,
        **prefer(row["answer_0"], row["answer_1"], scores[0] - scores[1]),
    }


WEBGPT = PublishedForm(
    name="webgpt",
    dataset="openai/webgpt_comparisons",
    columns=("question", "answer_0", "answer_1", "score_0", "score_1"),
    read=read_webgpt,
    origins={
        "prompt": "question",
        "chosen": "answer_0' and 'answer_1",
        "rejected": "answer_0' and 'answer_1",
        "preference": "score_0' and 'score_1",
    },
    harmless=words("dataset quotes_0 quotes_1 tokens_0 tokens_1"),
)


def read_shp(row: Row) -> Row:
    """Read SHP (stanfordnlp/SHP): the comment that Reddit's users like more; a label of 1 is A."""
    lead = 1 if require_index(row["labels"], "labels") else -1
    return {"prompt": row["history"], **prefer(row["human_ref_A"], row["human_ref_B"], lead)}


SHP = PublishedForm(
    name="shp",
    dataset="stanfordnlp/SHP",
    columns=("history", "human_ref_A", "human_ref_B", "labels"),
    read=read_shp,
    origins={
        "prompt": "history",
        "chosen": "human_ref_A' and 'human_ref_B",
        "rejected": "human_ref_A' and 'human_ref_B",
        "preference": "labels",
    },
    harmless=words(
        "post_id domain upvote_ratio c_root_id_A c_root_id_B created_at_utc_A created_at_utc_B "
        "score_A score_B seconds_difference score_ratio"
    ),
)


def read_summarize_from_feedback(row: Row) -> Row:
    """Read the comparisons of openai/summarize_from_feedback (arXiv:2009.01325).

    A Reddit post or a news article is the prompt, in the form that the paper's code gives its
    policies.
    """
    summaries = row["summaries"]
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise RefusedError(Reason.NOT_MESSAGES, "summaries is not a list of two")
    if not all(isinstance(each, dict) for each in summaries):
        raise RefusedError(Reason.NOT_MESSAGES, "summaries is not a list of objects")
    lead = -1 if require_index(row["choice"], "choice") else 1
    first, second = (each.get("text") for each in summaries)
    return {"prompt": _query(row["info"]), **prefer(first, second, lead)}


_POST = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
_ARTICLE = "Article:\n{article}\n\nTL;DR:\n"
"""Both from experiment_helpers.py of openai/summarize-from-feedback."""


def _query(info: Any) -> str:
    fields = info if isinstance(info, dict) else {}
    names: tuple[str, ...]
    if fields.get("post"):
        form, names = _POST, ("subreddit", "title", "post")
    elif fields.get("article"):
        form, names = _ARTICLE, ("article",)
    else:
        raise RefusedError(Reason.EMPTY, "info has neither a post nor an article")
    for name in names:
        if not isinstance(fields.get(name), str):
            raise RefusedError(Reason.NOT_MESSAGES, f"info.{name} is not text")
    return form.format(**{name: fields[name] for name in names})


SUMMARIZE_FROM_FEEDBACK = PublishedForm(
    name="summarize_from_feedback",
    dataset="openai/summarize_from_feedback (comparisons)",
    columns=("info", "summaries", "choice"),
    read=read_summarize_from_feedback,
    origins={
        "prompt": "info",
        "chosen": "summaries.text",
        "rejected": "summaries.text",
        "preference": "choice",
    },
    harmless=words("worker batch split extra"),
)


def read_stack_exchange(row: Row) -> Row:
    """Read lvwerra/stack-exchange-paired: ``response_j`` has the more upvotes."""
    return {
        "prompt": row["question"],
        "chosen": row["response_j"],
        "rejected": row["response_k"],
    }


STACK_EXCHANGE = PublishedForm(
    name="stack_exchange",
    dataset="lvwerra/stack-exchange-paired",
    columns=("question", "response_j", "response_k"),
    read=read_stack_exchange,
    origins={"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    harmless=words("qid date metadata"),
)
