"""The model card, from the records of a run."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from made_run import make_run

from rm_ray.publish.card import CardFacts, write_card
from rm_ray.publish.export_gate import GateResult


@pytest.fixture
def facts(tmp_path: Path) -> CardFacts:
    made = make_run(tmp_path)
    metrics = made.advance(20)
    return CardFacts(
        record=made.run.read_json("run.json") | {"mlflow_run_id": "abc"},
        step=20,
        total_steps=None,
        metrics=metrics,
        evaluation=made.run.read_json("evaluations/step-00000020.json"),
        history=made.history,
        gate=GateResult(differences={"alone": 2e-6, "pipeline": 3e-6}, num_conversations=16),
        tokenizer=made.tokenizer,
        place="someone/rewards",
        tag="step-00000020",
    )


def write(facts: CardFacts, folder: Path, **changes) -> ModelCard:
    folder.mkdir(exist_ok=True)
    write_card(CardFacts(**{**vars(facts), **changes}), folder)
    return ModelCard.load(folder / "README.md")


def test_a_skipped_client_is_named(facts, tmp_path):
    asked = write(facts, tmp_path / "asked")
    assert "Largest differences: alone 2.0e-06, pipeline 3.0e-06." in asked.text
    gate = GateResult(differences={"alone": 2e-6}, num_conversations=16)
    card = write(facts, tmp_path / "card", gate=gate)
    assert "alone 2.0e-06; the pipeline was skipped, since no text" in card.text


def test_hub_datasets_are_named_with_their_revisions(facts, tmp_path):
    config = {**facts.record["config"]}
    config["data"] = {**config["data"], "train": ["allenai/pairs:train=0.5", "more/pairs"]}
    record = {**facts.record, "config": config}
    record["data"] = {"train": {**record["data"]["train"], "revisions": {"more/pairs": "f" * 40}}}
    card = write(facts, tmp_path / "card", record=record)
    assert card.data.datasets == ["allenai/pairs", "more/pairs"]
    assert f"`more/pairs` {'f' * 40}" in card.text


def test_the_card_has_the_figures_of_the_run(facts, tmp_path):
    text = write(facts, tmp_path / "card").text
    overall, length = facts.evaluation["overall"], facts.evaluation["length"]
    assert f"| all | 8 | {overall['accuracy']:.4f} | {overall['accuracy_low']:.4f} to" in text
    assert f"standard deviation {overall['reward_std']:.3f}" in text
    assert f"by {length['reward_with_tokens']:.3f}" in text
    assert "| train | colours | 20 |" in text
    assert "| train | empty | 2 |" in text
    assert "| `optimizer.learning_rate` | 3e-06 |" in text
    assert "alone 2.0e-06, pipeline 3.0e-06" in text
    assert "MLflow run `abc`" in text
    assert "Trained for 160 pairs" in text
    assert (tmp_path / "card" / "training_over_episodes.png").stat().st_size > 1_000
    assert "![training](training_over_episodes.png)" in text


def test_the_card_shows_the_input_as_the_template_renders_it(facts, tmp_path):
    text = write(facts, tmp_path / "card").text
    assert facts.tokenizer.chat_template.strip() in text
    assert f"Pad on the right with `{facts.tokenizer.pad_token}`" in text
    assert 'revision="step-00000020"' in text


@pytest.mark.parametrize(
    ("total", "is_best", "said"),
    [
        (None, False, "a run that was still training"),
        (20, False, "step 20, the last of the run."),
        (20, True, "step 20, the last of the run and the best by `eval/rm/loss`."),
        (40, True, "step 20 of 40, the best by `eval/rm/loss`."),
        (40, False, "step 20 of 40.\n"),
    ],
)
def test_the_card_names_its_step(facts, tmp_path, total, is_best, said):
    assert said in write(facts, tmp_path / "card", total_steps=total, is_best=is_best).text


def test_a_card_without_an_evaluation_says_so(facts, tmp_path):
    card = write(facts, tmp_path / "card", evaluation=None)
    assert "Accuracy on the last training batch was 0.750" in card.text
    assert "eval_results" not in card.data.to_dict()
