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
