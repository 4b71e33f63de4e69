"""The votes of LMArena's visitors, with ties.

The two conversations of a battle with several turns differ from the first answer on; such a row is
refused, because its responses do not answer the same conversation.
"""

from __future__ import annotations

from typing import Any

from rm_ray.data.preferences.numbers import unwrap_json
from rm_ray.data.published.published_form import PublishedForm, Row, prefer, require_index, words
from rm_ray.data.rows.column_names import is_about
from rm_ray.data.rows.refusals import Reason, RefusedError

_LEADS = {"model_a": 1, "model_b": -1, "tie": 0, "tie (bothbad)": 0, "both_bad": 0}

_ROLES = ("role", "from")

_WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")


def read_arena_55k(row: Row) -> Row:
    """Read Chatbot Arena's 55k votes (lmsys/lmsys-arena-human-preference-55k).

    Prompt and responses are JSON texts of lists with one text a turn.
    """
    flags = [require_index(row[name], name) for name in _WINNERS]
    if sum(flags) != 1:
        raise RefusedError(Reason.BAD_PREFERENCE, f"{sum(flags)} of {', '.join(_WINNERS)} are 1")
    lead = flags[0] - flags[1]
    return {"prompt": row["prompt"], **prefer(row["response_a"], row["response_b"], lead)}


ARENA_55K = PublishedForm(
    name="arena_55k",
    dataset="lmsys/lmsys-arena-human-preference-55k",
    columns=("prompt", "response_a", "response_b", *_WINNERS),
    read=read_arena_55k,
    origins={
        "chosen": "response_a' and 'response_b",
        "rejected": "response_a' and 'response_b",
        "preference": "' and '".join(_WINNERS),
    },
    harmless=words("id model_a model_b"),
)


def read_arena_100k(row: Row) -> Row:
    """Read LMArena's 100k votes (lmarena-ai/arena-human-preference-100k): whole conversations.

    A tie in which both are bad is a tie.
    """
    winner = row["winner"]
    if not isinstance(winner, str) or winner not in _LEADS:
        raise RefusedError(
            Reason.BAD_PREFERENCE,
            f"winner is {str(winner)[:80]!r}; it is one of {', '.join(_LEADS)}",
        )
    first, second = (_without_counts(row[name]) for name in ("conversation_a", "conversation_b"))
    return prefer(first, second, _LEADS[winner])


def _without_counts(conversation: Any) -> Any:
    """Return a conversation without what its messages say about themselves, as ``num_tokens``.

    These differ between the two models even where the conversations are the same.
    """
    messages = unwrap_json(conversation)
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        return conversation
    return [
        {key: value for key, value in each.items() if key in _ROLES or not is_about(key)}
        for each in messages
    ]


ARENA_100K = PublishedForm(
    name="arena_100k",
    dataset="lmarena-ai/arena-human-preference-100k",
    columns=("conversation_a", "conversation_b", "winner"),
    read=read_arena_100k,
    origins={
        "chosen": "conversation_a' and 'conversation_b",
        "rejected": "conversation_a' and 'conversation_b",
        "preference": "winner",
    },
    harmless=words(
        "question_id id model_a model_b judge judge_hash turn anony language tstamp timestamp "
        "conv_metadata is_code is_refusal dedup_tag category_tag openai_moderation toxic_chat_tag"
    ),
)
