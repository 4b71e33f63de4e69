from typing import Any

import pytest

from rm_ray.data.rows.column_hints import suggest_columns


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (
            ["model_a", "model_b", "prompt", "response_a", "response_b"],
            "chosen=response_a rejected=response_b",
        ),
        (
            ["model_a", "model_b", "conversation_a", "conversation_b"],
            "chosen=conversation_a rejected=conversation_b",
        ),
        (
            ["judge_output_1", "judge_output_2", "prompt", "output_1", "output_2"],
            "chosen=output_1 rejected=output_2",
        ),
        (
            ["c_root_id_A", "c_root_id_B", "history", "human_ref_A", "human_ref_B"],
            "chosen=human_ref_A rejected=human_ref_B",
        ),
        (["prompt", "answer0", "answer1"], "chosen=answer0 rejected=answer1"),
        (
            ["chosen_model", "rejected_model", "prompt", "chosen_text", "rejected_text"],
            "chosen=chosen_text rejected=rejected_text",
        ),
        (["prompt", "response_j", "response_k"], "chosen=response_j rejected=response_k"),
    ],
)
def test_likely_response_columns_are_proposed(names: list[str], hint: str):
    assert f"--data.columns {hint}" in suggest_columns(dict.fromkeys(names, "A text."))


@pytest.mark.parametrize(
    "names",
    [
        ["model_a", "model_b"],
        ["conversation_id_a", "conversation_id_b"],
        ["score_1", "score_2"],
        ["image_1", "image_2"],
        ["winner_model", "loser_model"],
    ],
)
def test_columns_about_responses_are_not_proposed(names: list[str]):
    hint = suggest_columns(dict.fromkeys(["prompt", *names], "A text."))

    assert hint == "If they have other names, name them with data.columns, as in chosen=COLUMN"


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        (
            {"prompt": "q", "completions": ["a", "b"], "ratings": [3, 4.5]},
            "If the highest is the best, use --data.columns responses=completions scores=ratings",
        ),
        (
            {"query": "q", "model_answers": ["a", "b"], "human_ranking": [2, 1]},
            "If 1 is the best, use --data.columns responses=model_answers ranks=human_ranking",
        ),
        (
            {"prompt": "q", "responses": ["a", "b"], "lengths": [3]},
            "'responses' needs a column 'ranks' (1 is the best) or 'scores'",
        ),
    ],
)
def test_a_list_of_responses_is_proposed_with_its_labels(row: dict[str, Any], hint: str):
    assert suggest_columns(row).startswith(hint)


def test_lists_of_other_texts_are_not_proposed():
    row = {"prompt": ["a", "b"], "tags": ["x", "y"], "counts": [1, 2]}

    assert "responses=" not in suggest_columns(row)


def test_responses_with_a_number_each_are_not_taken_for_sorted_ones():
    rated = [{"text": "a", "overall_rating": 1}, {"text": "b", "overall_rating": 2}]
    hint = suggest_columns({"prompt": "q", "outputs": rated})
    assert "'responses' with each 'text', and 'scores' (the highest is the best)" in hint
    assert "with each 'overall_rating'" in hint
    assert "best response first" not in hint
