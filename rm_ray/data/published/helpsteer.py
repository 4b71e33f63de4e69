"""The HelpSteer sets: attribute scores, and preferences with a strength."""

from __future__ import annotations

import re
from typing import Any

from rm_ray.data.published.published_form import PublishedForm, Row, prefer, words
from rm_ray.data.rows.refusals import Reason, RefusedError

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

_SPEAKER = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
"""Begins every turn but the first one of a prompt in HelpSteer2."""


def read_helpsteer2(row: Row) -> Row:
    """Read HelpSteer2 (nvidia/HelpSteer2, arXiv:2406.08673): one response with five attributes.

    Two consecutive rows have the same prompt; each is a group of one response. Its score is its
    helpfulness: a mean of all would count complexity and verbosity as merits.
    """
    return {
        "prompt": read_turns(row["prompt"]),
        "response": row["response"],
        "scores": {name: row[name] for name in ATTRIBUTES if name in row},
    }


HELPSTEER2 = PublishedForm(
    name="helpsteer2",
    dataset="nvidia/HelpSteer2",
    columns=("prompt", "response", *ATTRIBUTES),
    read=read_helpsteer2,
    origins={"scores": "helpfulness"},
    optional=frozenset(ATTRIBUTES),
    default_score="helpfulness",
)


def read_helpsteer2_preference(row: Row) -> Row:
    """Read the preferences of HelpSteer2 (folder preference, arXiv:2410.01257).

    The strength goes from -3, the first response is much better, to 3; 0 is a tie. The margin of a
    pair is the size of its strength.
    """
    strength = _strength(row["preference_strength"], "preference_strength")
    sides = prefer(row["response_1"], row["response_2"], -strength)
    return {"prompt": read_turns(row["prompt"]), **sides, "margin": abs(strength)}


HELPSTEER2_PREFERENCE = PublishedForm(
    name="helpsteer2_preference",
    dataset="nvidia/HelpSteer2 (preference)",
    columns=("prompt", "response_1", "response_2", "preference_strength"),
    read=read_helpsteer2_preference,
    origins={
        "chosen": "response_1' and 'response_2",
        "rejected": "response_1' and 'response_2",
        "preference": "preference_strength",
        "margin": "preference_strength",
    },
    harmless=words(
        "split preference_statement preference_elaboration three_most_similar_preferences "
        "all_preferences_unprocessed"
    ),
)


def read_helpsteer3(row: Row) -> Row:
    """Read the preferences of HelpSteer3 (nvidia/HelpSteer3, arXiv:2505.11475).

    A negative preference, down to -3, means that the first response is better; 0 is a tie. The
    margin of a pair is the size of its preference.
    """
    strength = _strength(row["overall_preference"], "overall_preference")
    sides = prefer(row["response1"], row["response2"], -strength)
    return {"prompt": row["context"], **sides, "margin": abs(strength)}


HELPSTEER3 = PublishedForm(
    name="helpsteer3",
    dataset="nvidia/HelpSteer3 (preference)",
    columns=("context", "response1", "response2", "overall_preference"),
    read=read_helpsteer3,
    origins={
        "prompt": "context",
        "chosen": "response1' and 'response2",
        "rejected": "response1' and 'response2",
        "preference": "overall_preference",
        "margin": "overall_preference",
    },
    harmless=words("domain language individual_preference"),
)


def read_turns(prompt: Any) -> Any:
    """Return a prompt of several turns as messages, and any other value as it is."""
    if not isinstance(prompt, str) or not _SPEAKER.search(prompt):
        return prompt
    first, *rest = _SPEAKER.split(prompt)
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    return [{"role": speaker.lower(), "content": text} for speaker, text in turns]


def _strength(value: Any, name: str) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value not in range(-3, 4):
        raise RefusedError(
            Reason.BAD_PREFERENCE,
            f"{name} is {str(value)[:80]!r}; it is a whole number from -3 to 3",
        )
    return int(value)
