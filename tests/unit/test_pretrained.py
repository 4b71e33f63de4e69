from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError, first_line
from rm_ray.pretrained import PretrainedName, base_model


def name_of(text: str, revision: str | None = None) -> PretrainedName:
    return PretrainedName(name=text, option="--model", revision=revision)


def test_a_name_is_built_in_a_config_a_folder_or_on_the_hub(tmp_path: Path):
    assert name_of("builtin").kind == "builtin"
    assert name_of(str(tmp_path / "missing.json")).kind == "config"
    assert name_of(str(tmp_path)).kind == "folder"
    assert name_of(str(tmp_path / "missing")).kind == "hub"
    assert name_of("someone/model").kind == "hub"


def test_only_folders_and_hub_models_have_weights(tmp_path: Path):
    names = ["builtin", "model.json", str(tmp_path), "someone/model"]
    assert [name_of(text).has_weights for text in names] == [False, False, True, True]


def test_a_home_folder_is_expanded_and_a_name_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert name_of("~/model").place == str(tmp_path / "model")
    assert name_of("~/missing").place == "~/missing"
    assert name_of("someone/model").place == "someone/model"


def test_the_base_model_is_named_by_its_setting():
    model = base_model(ModelConfig(name_or_path="someone/model", revision="v2"))
    assert (model.text, model.revision) == ("model.name_or_path 'someone/model'", "v2")


@pytest.mark.parametrize(
    "error", [OSError("no route\nto host"), KeyError("no route"), StrictDataclassError("no route")]
)
def test_an_unreadable_model_is_reported_with_its_option_and_what_to_do(error: Exception):
    with pytest.raises(InputError) as refused, name_of("a/b").loading("a folder with config.json"):
        raise error
    assert str(refused.value) == (
        "--model 'a/b' cannot be loaded: it must be a folder with config.json, or a name on the "
        "Hugging Face Hub, which this machine must reach (set HF_TOKEN for a gated or private "
        f"model, HF_ENDPOINT for a mirror). {first_line(error)}"
    )
    assert "\n" not in str(refused.value)


def test_the_error_names_the_revision():
    with (
        pytest.raises(InputError, match=r"^--model 'a/b', revision 'v2' cannot be loaded"),
        name_of("a/b", "v2").loading("a folder"),
    ):
        raise OSError("gone")


def test_a_model_with_custom_code_is_refused():
    with pytest.raises(InputError, match="needs custom code"), name_of("a/b").loading("a folder"):
        raise ValueError("set the option `trust_remote_code=True`")


def test_what_the_tokenizers_library_raises_is_reported_too(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Newer"}}')
    with pytest.raises(InputError, match="cannot be loaded"), name_of("a/b").loading("a folder"):
        Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def test_our_own_bugs_are_not_translated():
    with pytest.raises(AssertionError), name_of("a/b").loading("a folder"):
        raise AssertionError
