"""The model card of a version: description, usage and evaluation, from the run's records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from rm_ray.config.fields import flatten
from rm_ray.config.sections.data import BUILTIN, DataConfig
from rm_ray.data.tokens.chat_renderer import TEMPLATE_FAILURES
from rm_ray.publish.card_metadata import (
    Sets,
    card_metadata,
    figures_by_group,
    figures_of_sets,
)
from rm_ray.publish.card_objective import describe_rewards, describe_training, read_objective
from rm_ray.publish.export_gate import GateResult
from rm_ray.runs.history import History
from rm_ray.tracking.plots import plot_run

TEMPLATE = Path(__file__).with_name("card.md.jinja")

CARD, IMAGE = "README.md", "training_over_episodes.png"

_SHOWN = (
    "objective.", "optimizer.", "batch.", "data.max_", "data.over_length", "model.dtype",
    "run.seed", "cluster.num_workers", "cluster.zero_stage",
)  # fmt: skip
"""Prefixes of the settings in the card's table."""

_SNIPPET = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

name = "{place}"
tokenizer = AutoTokenizer.from_pretrained(name{revision})
model = AutoModelForSequenceClassification.from_pretrained(name{revision})

prompt = {{"role": "user", "content": "How many legs does a spider have?"}}
for answer in ("A spider has eight legs.", "Legs are fun!"):
    conversation = [prompt, {{"role": "assistant", "content": answer}}]
    inputs = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
    print(model(**inputs).logits[0, 0].item(), answer)"""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Inputs of a model card."""

    record: Mapping[str, Any]
    """The run's ``run.json``."""
    step: int
    total_steps: int | None
    """Steps of the run; None while it is running."""
    metrics: Mapping[str, float]
    evaluation: Mapping[str, Any] | None
    """Figures on the held-out pairs at this step, if evaluated."""
    sets: Sets = field(default_factory=dict)
    """Figures on named sets at this step."""
    audit: Mapping[str, Any] | None = None
    """What an audit of the training rows found, if there was one."""
    history: History
    gate: GateResult
    tokenizer: PreTrainedTokenizerBase
    is_best: bool = False
    """Whether this is the run's best version by ``checkpoint.keep_best_by``."""
    place: str
    """Repository on the Hub, or folder."""
    tag: str | None = None


def write_card(facts: CardFacts, folder: Path) -> None:
    """Write the card and its plot into a model's folder."""
    title = facts.record["config"]["run"]["name"]
    plot_run(facts.history.records, title, folder, over=("episodes",))
    metadata = card_metadata(facts.record["config"], facts.evaluation, facts.sets).to_yaml()
    (folder / CARD).write_text(f"---\n{metadata}\n---\n\n{write_text(facts)}", encoding="utf-8")


def write_text(facts: CardFacts) -> str:
    """Return the card's text, without its metadata."""
    record, config = facts.record, facts.record["config"]
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    data = record["data"]
    revision = f', revision="{facts.tag}"' if facts.tag else ""
    settings = {n: v for n, v in flatten(config).items() if n.startswith(_SHOWN)}
    base, objective = config["model"]["name_or_path"], read_objective(config)
    units = {name: described.get("unit", "pairs") for name, described in data.items()}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=config["run"]["name"],
        base="a small Llama with random weights" if base == BUILTIN else f"`{base}`",
        training=describe_training(objective, units["train"]),
        rewards=describe_rewards(objective),
        models_ties=objective.models_ties,
        head=_describe_head(record),
        step=facts.step,
        is_last=facts.step == facts.total_steps,
        total_steps=facts.total_steps,
        best_by=config["checkpoint"]["keep_best_by"] if facts.is_best else None,
        snippet=_SNIPPET.format(place=facts.place, revision=revision),
        pad_token=facts.tokenizer.pad_token,
        max_length=config["data"]["max_length"],
        max_prompt_length=config["data"]["max_prompt_length"],
        example=_render_example(facts.tokenizer),
        chat_template=_quote(str(facts.tokenizer.chat_template)),
        **_evaluated(facts.evaluation, units.get("eval", "pairs")),
        **_evaluated_on_sets(facts.sets),
        metrics=facts.metrics,
        number=lambda value: "unknown" if value is None else f"{value:.3f}",
        num_conversations=facts.gate.num_conversations,
        differences=_describe_differences(facts.gate.differences),
        image=IMAGE,
        **_describe_rows(data),
        audit=facts.audit,
        unit=units["train"],
        listed="pairs" if set(units.values()) == {"pairs"} else "groups",
        sources=[*config["data"]["train"], *_held_out(config)],
        revisions={o: r for each in data.values() for o, r in each.get("revisions", {}).items()},
        data_hash=data["train"]["data_hash"],
        settings=settings.items(),
        episodes=f"{facts.metrics.get('episode', 0):,.0f}",
        versions=", ".join(
            f"{name.removeprefix('version.')} {version}"
            for name, version in record["versions"].items()
        ),
        mlflow_run_id=record.get("mlflow_run_id"),
    )


def _describe_rows(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pairs of each set by source, and its refused rows by reason."""
    return {
        "pairs": [
            {"set": name, "source": source, "pairs": count}
            for name, described in data.items()
            for source, count in described["pairs_by_source"].items()
        ],
        "refused": [
            {"set": name, "reason": reason, "rows": count}
            for name, described in data.items()
            for reason, count in described["refused"].items()
        ],
    }


def _evaluated(evaluation: Mapping[str, Any] | None, unit: str) -> dict[str, Any]:
    """Return the figures of the evaluation at this step, if there is one, of 'pairs' or groups."""
    overall = evaluation["overall"] if evaluation else {}
    groups = figures_by_group(evaluation)
    return {
        "evaluation": evaluation,
        "overall": overall,
        "length": evaluation["length"] if evaluation else {},
        "groups": [(name, row) for name, row in groups if row["pairs"]],
        "lists": [(name, row["lists"]) for name, row in groups if row.get("lists")],
        "are_pairs": unit == "pairs" and not overall.get("lists"),
        "scores": overall.get("scores"),
        "labelled_ties": overall.get("labelled_ties"),
    }


def _evaluated_on_sets(sets: Sets) -> dict[str, Any]:
    """Return the figures of the named sets, with their benchmarks' own averages."""
    rows = figures_of_sets(sets)
    benchmarks = {name: each.get("benchmark") for name, each in sets.items()}
    return {
        "sets": [(name, row) for name, row in rows if row["pairs"]],
        "lists_of_sets": [(name, row["lists"]) for name, row in rows if row.get("lists")],
        "benchmarks": [(name, scores.items()) for name, scores in benchmarks.items() if scores],
    }


def _describe_head(record: Mapping[str, Any]) -> str:
    """Return where the head started; runs whose record does not say always drew a new one."""
    model, head = record["config"]["model"], record.get("head", "new")
    if head == "new":
        return "Its head was newly initialized."
    if head == "unknown":
        return (
            f"Its head started from that of the base model, if it had one (`model.head` was "
            f"'{model['head']}')."
        )
    return f"Its head started from that of the base model (`{head}`)."


def _render_example(tokenizer: PreTrainedTokenizerBase) -> str:
    messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
    try:
        return _quote(str(tokenizer.apply_chat_template(messages, tokenize=False)))
    except TEMPLATE_FAILURES:
        return "(the template rejects a plain conversation of user and assistant)"


def _describe_differences(differences: Mapping[str, float]) -> str:
    """Return each client's difference from training, with a note if the pipeline was skipped."""
    listed = ", ".join(f"{client} {difference:.1e}" for client, difference in differences.items())
    if "pipeline" in differences:
        return listed
    return f"{listed}; the pipeline was skipped, since no text tokenizes to exactly these tokens"


def _quote(text: str) -> str:
    """Return a text that cannot close its surrounding code block."""
    return text.replace("```", "` ` `").strip()


def _held_out(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the sources of held-out pairs for a run's settings."""
    data = config["data"]
    default = DataConfig(train=tuple(data["train"]), eval=data["eval"]).held_out
    named = (entry.partition("=")[2] for entry in config["evaluation"].get("sets", ()))
    return (*default, *(source for source in named if source not in default))
