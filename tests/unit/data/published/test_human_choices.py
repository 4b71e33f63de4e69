from typing import Any

import pytest
from published_rows import ROWS, A, B, Q

from rm_ray.data.preferences.group_reading import parse_group
from rm_ray.data.published.human_choices import read_summarize_from_feedback
from rm_ray.data.rows.refusals import Reason, RefusedError


def order(row: dict[str, Any]) -> tuple[list[str], float]:
    group = parse_group(row)
    (comparison,) = group.comparisons
    assert (comparison.better, comparison.worse) == (0, 1)
    return [message["content"] for message in group.responses], comparison.probability


@pytest.mark.parametrize(
    ("name", "changed", "expected"),
    [
        ("pku_saferlhf", {"better_response_id": 0}, ([B, A], 1.0)),
        ("pku_saferlhf", {"better_response_id": 1}, ([A, B], 1.0)),
        ("webgpt", {"score_0": 0.5, "score_1": -0.5}, ([A, B], 1.0)),
        ("webgpt", {"score_0": -0.5, "score_1": 0.5}, ([B, A], 1.0)),
        ("webgpt", {"score_0": 0.0, "score_1": 0.0}, ([A, B], 0.5)),
        ("shp", {"labels": 1}, ([A, B], 1.0)),
        ("shp", {"labels": 0}, ([B, A], 1.0)),
        ("summarize_from_feedback", {"choice": 0}, ([B, A], 1.0)),
        ("summarize_from_feedback", {"choice": 1}, ([A, B], 1.0)),
        ("stack_exchange", {}, ([A, B], 1.0)),
    ],
)
def test_the_label_says_which_response_is_better(
    name: str, changed: dict[str, Any], expected: tuple[list[str], float]
):
    assert order({**ROWS[name], **changed}) == expected


def test_the_question_of_webgpt_may_be_text():
    assert parse_group({**ROWS["webgpt"], "question": Q}) == parse_group(ROWS["webgpt"])


def test_a_post_or_an_article_is_asked_for_as_the_paper_does():
    row = ROWS["summarize_from_feedback"]

    assert read_summarize_from_feedback(row)["prompt"] == (
        "SUBREDDIT: r/AskReddit\n\nTITLE: Why?\n\nPOST: It is so.\n\nTL;DR:"
    )
    braces = {**row, "info": {**row["info"], "post": "{title} {0}"}}
    assert "POST: {title} {0}\n\nTL;DR:" in read_summarize_from_feedback(braces)["prompt"]
    news = {**row, "info": {"id": "a", "article": "It is so.", "site": "cnn", "post": None}}
    assert read_summarize_from_feedback(news)["prompt"] == "Article:\nIt is so.\n\nTL;DR:\n"


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("pku_saferlhf", {"better_response_id": 2}, Reason.BAD_PREFERENCE),
        ("webgpt", {"score_0": float("nan")}, Reason.BAD_PREFERENCE),
        ("webgpt", {"score_1": "0.5"}, Reason.BAD_PREFERENCE),
        ("webgpt", {"question": {"id": "a"}}, Reason.EMPTY),
        ("shp", {"labels": "A"}, Reason.BAD_PREFERENCE),
        ("summarize_from_feedback", {"choice": None}, Reason.BAD_PREFERENCE),
        ("summarize_from_feedback", {"summaries": [{"text": "a"}]}, Reason.NOT_MESSAGES),
        ("summarize_from_feedback", {"summaries": ["a", "b"]}, Reason.NOT_MESSAGES),
        ("summarize_from_feedback", {"info": {"id": "a"}}, Reason.EMPTY),
        ("summarize_from_feedback", {"info": None}, Reason.EMPTY),
        (
            "summarize_from_feedback",
            {"info": {"post": "a", "title": "b", "subreddit": None}},
            Reason.NOT_MESSAGES,
        ),
        ("summarize_from_feedback", {"info": {"article": ["a"]}}, Reason.NOT_MESSAGES),
        ("stack_exchange", {"response_k": A}, Reason.IDENTICAL_RESPONSES),
    ],
)
def test_a_row_without_a_label_or_text_is_refused(
    name: str, changed: dict[str, Any], reason: Reason
):
    with pytest.raises(RefusedError) as caught:
        parse_group({**ROWS[name], **changed})
    assert caught.value.reason == reason
