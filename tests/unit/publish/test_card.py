"""The model card, from the records of a run."""

from dataclasses import asdict
from pathlib import Path

import pytest
from audit_report import REPORT
from huggingface_hub import ModelCard
from made_run import make_run
from scored import ranked, scored

from rm_ray.audit.run_summary import summarize_audit
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.evaluation.reports.group_report import group_report
from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.publish.card import CardFacts, write_card
from rm_ray.publish.export_gate import GateResult


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> CardFacts:
    made = make_run(tmp_path_factory.mktemp("made"))
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


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "Its head was newly initialized."),  # as a record of before
        ({"head": "new"}, "Its head was newly initialized."),
        ({"head": "v_head.weight"}, "started from that of the base model (`v_head.weight`)."),
        ({"head": "unknown"}, "if it had one (`model.head` was 'auto')."),
    ],
)
def test_the_card_says_where_the_head_started(facts, tmp_path, known, said):
    card = write(facts, tmp_path / "card", record={**facts.record, **known})
    (line,) = (line for line in card.text.splitlines() if line.startswith("Its head "))
    assert line.endswith(said)


def test_a_card_without_an_evaluation_says_so(facts, tmp_path):
    card = write(facts, tmp_path / "card", evaluation=None)
    assert "Accuracy on the last training batch was 0.750" in card.text
    assert "eval_results" not in card.data.to_dict()
    assert "Lists are prompts" not in card.text


def test_the_card_has_the_figures_of_lists_ties_and_scores(facts, tmp_path):
    triple = ranked([3, 1, 1], [2.0, 1.0, 3.0], scores=[3, 1, 1])
    pair = ScoredGroups.of(scored([1.0, 2.0], [0.0, 1.0]))
    report = group_report(ScoredGroups.join([triple, pair]), ["lists", "pairs", "pairs"], [])
    text = write(facts, tmp_path / "card", evaluation=report).text
    lists = report["overall"]["lists"]
    row = f"| all | 1 | 0.000 | {lists['best_of_k_low']:.3f} to {lists['best_of_k_high']:.3f} |"
    assert f"{row} 0.333 | {lists['kendall_tau']:.3f} |" in text
    assert "| lists | 1 | 0.000 |" in text
    assert "| pairs | 2 | 1.0000 |" in text  # in the table of comparisons
    assert "| | comparisons | accuracy | interval | Bradley-Terry loss | margin |" in text
    assert "Intervals are of\nthe means over lists, at 95%." in text
    assert "\n| pairs | 2 | 1.000 |" not in text
    assert "- Labelled ties: 0.111 of the comparisons" in text
    assert "- Rank correlation of rewards and labelled scores: 0.000 over 3 responses." in text
    assert (
        "On 5 held-out comparisons, counting a tie as half, with 95% intervals that take a\n"
        in text
    )
    assert "prompt's comparisons, which weigh 1 together, as dependent.\n" in text
    assert "Wilson" not in text and "held-out pairs" not in text


def test_a_card_of_pairs_has_no_word_of_lists(facts, tmp_path):
    text = write(facts, tmp_path / "card").text
    assert not any(word in text for word in ("Lists are", "Labelled ties", "labelled scores"))
    assert "held-out pairs, counting a tie as half, with 95% Wilson intervals.\n" in text


def test_a_card_reads_an_evaluation_written_before_there_were_lists(facts, tmp_path):
    overall = {**facts.evaluation["overall"]}
    del overall["labelled_ties"]
    overall["loss"] = overall.pop("bradley_terry_loss")
    evaluation = {**facts.evaluation, "overall": overall}
    before = write(facts, tmp_path / "before").text
    assert write(facts, tmp_path / "card", evaluation=evaluation).text == before


def test_a_card_of_scored_responses_has_their_rank_correlation(facts, tmp_path):
    parts = [
        ScoredGroups.one(rewards=[reward], tokens=[5], better=[], worse=[], scores=[score])
        for reward, score in ((0.1, 1.0), (0.4, 2.0), (0.3, 3.0))
    ]
    report = group_report(ScoredGroups.join(parts), ["a"] * 3, [])
    card = write(facts, tmp_path / "card", evaluation=report)
    assert "Rank correlation of rewards and labelled scores: 0.500 over 3 held-out" in card.text
    assert "eval_results" not in card.data.to_dict()


def trained_with(facts: CardFacts, unit: str = "groups", **objective) -> dict:
    config = {**facts.record["config"], "objective": asdict(ObjectiveConfig(**objective))}
    data = {name: {**each, "unit": unit} for name, each in facts.record["data"].items()}
    return {**facts.record, "config": config, "data": data}


def test_the_card_says_what_the_model_was_trained_with(facts, tmp_path):
    plain = write(facts, tmp_path / "plain")
    assert "Trained with the Bradley-Terry loss on pairs of responses ([arXiv:2009.01325]" in (
        plain.text
    )
    assert "p. 6) from a small Llama with random weights.\n" in plain.text
    assert "| `objective.loss` | bradley_terry |" in plain.text
    record = trained_with(facts, loss="regression")
    card = write(facts, tmp_path / "card", record=record)
    assert "Trained to predict the scores of responses" in card.text
    assert "is no log-odds of a preference" in card.text
    assert "| `objective.loss` | regression |" in card.text
    assert "regression" in card.data.tags and "bradley-terry" not in card.data.tags
    assert not any(word in card.text for word in ("Trained with", "the log-odds that"))


def test_a_card_of_groups_does_not_call_them_pairs(facts, tmp_path):
    text = write(facts, tmp_path / "card", record=trained_with(facts)).text
    assert "on comparisons within lists of responses" in text
    assert "Trained for 160 groups." in text
    assert "| set | source | groups |" in text
    assert "SHA-256 of the training groups" in text
    assert "pairs" not in text.replace("Trained for 160 groups", "")


def test_the_card_leaves_labelled_ties_out_of_a_tie_model_s_calibration(facts, tmp_path):
    ties = ranked([2, 2, 2], [2.0, 1.0, 3.0])
    report = group_report(ties, ["a"], [], models_ties=True)
    record = trained_with(facts, ties="davidson")
    text = write(facts, tmp_path / "card", record=record, evaluation=report).text
    assert "- Calibration error of margins, labelled ties left out: unknown.\n" in text
    assert "Davidson's model of ties" in text


def test_the_card_has_the_figures_of_named_sets(facts, tmp_path):
    plain = write(facts, tmp_path / "plain").text
    scores = {"Chat": 0.9, "Score": 0.61239}
    sets = {"bench": {**facts.evaluation, "benchmark": scores}}
    text = write(facts, tmp_path / "card", sets=sets).text
    overall = facts.evaluation["overall"]
    assert f"| bench | 8 | {overall['accuracy']:.4f} |" in text
    assert "| bench: colours | 6 |" in text
    assert "own averages on `bench`: Chat 0.9000, Score 0.6124." in text
    added = set(text.splitlines()) - set(plain.splitlines())
    assert not set(plain.splitlines()) - set(text.splitlines())
    assert all("bench" in line or "named sets" in line or "| set |" in line for line in added)
    alone = write(facts, tmp_path / "alone", evaluation=None, sets=sets).text
    assert "It was not evaluated at this step" not in alone
    assert "| bench | 8 |" in alone


def test_the_card_names_the_sources_of_named_sets(facts, tmp_path):
    config = {**facts.record["config"], "evaluation": {"sets": ["bench=org/bench:test"]}}
    text = write(facts, tmp_path / "card", record={**facts.record, "config": config}).text
    assert "`org/bench:test`" in text


def test_the_card_has_what_an_audit_of_the_training_rows_found(facts, tmp_path):
    audit = summarize_audit(REPORT)
    text = write(facts, tmp_path / "audited", audit=audit).text
    assert "An audit of 98 rows of the training sources, before any were excluded" in text
    assert "| duplicates | 5 |\n\nThe prompts of bench (30 rows) were looked for.\n" in text
    assert "Languages: en 89.8%, de 10.2%.\n" in text
    assert "| the longer response is better | 0.600 | 0.500 to 0.700 | 90 |\n\n## Train" in text
    assert "mislabelled" not in text
    assert "audit" not in write(facts, tmp_path / "card").text


def test_a_card_says_that_no_evaluation_set_was_looked_for(facts, tmp_path):
    audit = summarize_audit({**REPORT, "evaluation_sets": {}})
    text = write(facts, tmp_path / "card", audit=audit).text
    assert "| duplicates | 5 |\n\nPrompts of evaluation sets were not looked for.\n" in text


def test_a_card_says_that_the_audit_was_of_what_exclusions_left(facts, tmp_path):
    audit = summarize_audit({**REPORT, "rows_refused": {"excluded": 7}})
    text = write(facts, tmp_path / "card", audit=audit).text
    assert "98 rows of the training sources, without some that were excluded before, fou" in text


def test_a_card_takes_a_summary_that_has_only_counts(facts, tmp_path):
    older = {"rows": 26, "findings": {"duplicates": 0, "mislabelled": 3}}
    text = write(facts, tmp_path / "older", audit=older).text
    assert "| duplicates | 0 |\n| mislabelled | 3 |\n\n## Training" in text
    assert "at most a share that the auditor chose:" in text
