import pytest

from rm_ray.data.rows.column_names import classify_name, classify_path, plain_name


def test_usual_column_names_are_classified():
    for name in (
        "prompt_id",
        "num_tokens",
        "score_chosen",
        "chosen-rating",
        "judge_prompt",
        "lang",
    ):
        assert classify_name(name) == "harmless", name
    for name in ("tools", "Images", "userQuestion", "retrieved_documents", "system_prompt"):
        assert classify_name(name) == "part", name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("userQuestion", "user_question"),
        (" Chosen-Response ", "chosen_response"),
        ("meta/data:id", "meta_data_id"),
        ("_prompt_", "prompt"),
    ],
)
def test_names_are_compared_in_lower_case_with_underscores(name: str, plain: str):
    assert plain_name(name) == plain


@pytest.mark.parametrize(
    ("path", "standing"),
    [
        ("question.full_text", "part"),
        ("question.id", "harmless"),
        ("zebra.prompt", "part"),
        ("conversation.0.role", "harmless"),
        ("context.0", "part"),
        ("zebra.stripes", "unknown"),
    ],
)
def test_a_nested_value_is_classified_by_its_own_name_or_the_column_s(path: str, standing: str):
    assert classify_path(path) == standing
