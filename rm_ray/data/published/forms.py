"""All published forms, and which of them a row has."""

from __future__ import annotations

from functools import lru_cache

from rm_ray.config.column_rules import ALIASES, ColumnRules
from rm_ray.data.published import helpsteer, human_choices, model_rankings, pair_sets, votes
from rm_ray.data.published.published_form import MADE_TOGETHER, PublishedForm

FORMS = {
    form.name: form
    for form in (
        model_rankings.ULTRAFEEDBACK,
        helpsteer.HELPSTEER2,
        helpsteer.HELPSTEER2_PREFERENCE,
        helpsteer.HELPSTEER3,
        model_rankings.NECTAR,
        human_choices.PKU_SAFERLHF,
        votes.ARENA_55K,
        votes.ARENA_100K,
        human_choices.WEBGPT,
        human_choices.SHP,
        human_choices.SUMMARIZE_FROM_FEEDBACK,
        human_choices.STACK_EXCHANGE,
        pair_sets.SKYWORK,
        pair_sets.TULU3,
        pair_sets.REWARD_BENCH_2,
    )
}

_SIDES = frozenset((*ALIASES["chosen"], *ALIASES["rejected"], *ALIASES["responses"]))


@lru_cache(maxsize=1_024)
def find_form(names: tuple[str, ...], rules: ColumnRules) -> PublishedForm | None:
    """Return the published form of a row with these columns; None if it is rm_ray's own.

    ``auto`` finds none if the rules map columns to responses or preferences, or ignore a column
    that the form needs, or if the row has columns of rm_ray's own form that the published one has
    not.
    """
    if rules.form == "documented":
        return None
    if rules.form != "auto":
        return FORMS[rules.form]
    if not MADE_TOGETHER.isdisjoint(rules.columns):
        return None
    for form in FORMS.values():
        present = set(names).difference(set(rules.ignore) - form.optional)
        if form.is_found and present.issuperset(form.columns):
            return None if present & _SIDES.difference(form.columns) else form
    return None
