"""The model card: what a version is, how to use it, how good it is, from the run's own records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedTokenizerBase

from rm_ray.config.train_config import BUILTIN, DataConfig, flatten
from rm_ray.data.tokens.rendering import TEMPLATE_FAILURES
from rm_ray.publish.export_gate import GateResult
from rm_ray.runs.history import History
from rm_ray.tracking.plots import plot_run

TEMPLATE = Path(__file__).with_name("card.md.jinja")

CARD, IMAGE = "README.md", "training_over_episodes.png"

_SHOWN = (
    "optimizer.", "batch.", "data.max_", "data.over_length", "model.dtype", "run.seed",
    "cluster.num_workers", "cluster.zero_stage",
)  # fmt: skip
"""Settings in the card's table."""

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
    """What a card is made from."""

    record: Mapping[str, Any]
    """The run's ``run.json``."""
    step: int
    total_steps: int | None
    """Steps of the run; none while that is not over."""
    metrics: Mapping[str, float]
    evaluation: Mapping[str, Any] | None
    """Figures of the held-out pairs at this step."""
    history: History
    gate: GateResult
    tokenizer: PreTrainedTokenizerBase
    is_best: bool = False
    """Whether it is the best of the run, by its metric."""
    place: str
    """A repository on the Hub, or a folder."""
    tag: str | None = None


def write_card(facts: CardFacts, folder: Path) -> None:
    """Write the card and its picture beside a model."""
    title = facts.record["config"]["run"]["name"]
    plot_run(facts.history.records, title, folder, over=("episodes",))
    metadata = describe_metadata(facts).to_yaml()
    (folder / CARD).write_text(f"---\n{metadata}\n---\n\n{write_text(facts)}", encoding="utf-8")


def describe_metadata(facts: CardFacts) -> ModelCardData:
    """Return what the Hub reads from the top of a card."""
    config = facts.record["config"]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "preference", "bradley-terry"],
        base_model=_on_hub(config["model"]["name_or_path"]),
        datasets=_datasets(config["data"]["train"]),
        model_name=config["run"]["name"],
        eval_results=[
            EvalResult(
                task_type="text-classification",
                task_name="Reward modeling",
                dataset_type=name,  # of which the Hub's library keeps one result each
                dataset_name=name,
                dataset_split="held out",
                metric_type="accuracy",
                metric_name="pairwise accuracy",
                metric_value=round(figures["accuracy"], 4),
            )
            for name, figures in _groups(facts.evaluation)
        ]
        or None,
    )


def write_text(facts: CardFacts) -> str:
    """Return the card below its metadata."""
    record, config = facts.record, facts.record["config"]
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    evaluation, data = facts.evaluation, record["data"]
    by_source = [
        {"set": name, "source": source, "pairs": count}
        for name, described in data.items()
        for source, count in described["pairs_by_source"].items()
    ]
    refused = [
        {"set": name, "reason": reason, "rows": count}
        for name, described in data.items()
        for reason, count in described["refused"].items()
    ]
    revision = f', revision="{facts.tag}"' if facts.tag else ""
    settings = {n: v for n, v in flatten(config).items() if n.startswith(_SHOWN)}
    base = config["model"]["name_or_path"]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=config["run"]["name"],
        base="a small Llama with random weights" if base == BUILTIN else f"`{base}`",
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
        evaluation=evaluation,
        overall=evaluation["overall"] if evaluation else {},
        length=evaluation["length"] if evaluation else {},
        groups=_groups(evaluation),
        metrics=facts.metrics,
        number=lambda value: "unknown" if value is None else f"{value:.3f}",
        num_conversations=facts.gate.num_conversations,
        differences=_describe_differences(facts.gate.differences),
        image=IMAGE,
        pairs=by_source,
        sources=[*config["data"]["train"], *_held_out(config["data"])],
        revisions={o: r for each in data.values() for o, r in each.get("revisions", {}).items()},
        data_hash=data["train"]["data_hash"],
        refused=refused,
        settings=settings.items(),
        episodes=f"{facts.metrics.get('episode', 0):,.0f}",
        versions=", ".join(
            f"{name.removeprefix('version.')} {version}"
            for name, version in record["versions"].items()
        ),
        mlflow_run_id=record.get("mlflow_run_id"),
    )


def _groups(evaluation: Mapping[str, Any] | None) -> list[tuple[str, dict[str, float]]]:
    """Return figures of all held-out pairs and, where there are several sources, of each."""
    if evaluation is None:
        return []
    by_source = evaluation["by_source"]
    return [("all", evaluation["overall"]), *(by_source.items() if len(by_source) > 1 else ())]


def _render_example(tokenizer: PreTrainedTokenizerBase) -> str:
    messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
    try:
        return _quote(str(tokenizer.apply_chat_template(messages, tokenize=False)))
    except TEMPLATE_FAILURES:
        return "(it takes no plain conversation of user and assistant)"


def _describe_differences(differences: Mapping[str, float]) -> str:
    """Return how far each client was from training, and which could not be asked."""
    told = ", ".join(f"{client} {difference:.1e}" for client, difference in differences.items())
    if "pipeline" in differences:
        return told
    return f"{told}; the pipeline could not be asked, since no text becomes exactly these tokens"


def _quote(text: str) -> str:
    """Return a text that does not end the block it stands in."""
    return text.replace("```", "` ` `").strip()


def _on_hub(name: str) -> str | None:
    """Return a name that is one of the Hub's, else None."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def _held_out(data: dict[str, Any]) -> tuple[str, ...]:
    """Return the sources of held-out pairs that a run's settings mean."""
    return DataConfig(train=tuple(data["train"]), eval=data["eval"]).held_out


def _datasets(sources: Sequence[str]) -> list[str] | None:
    names = [re.sub(r"(:[^:/=]+){0,2}(=[0-9.]+)?$", "", source) for source in sources]
    is_file = (".jsonl", ".jsonl.gz", ".parquet")
    found = [name for name in names if _on_hub(name) and not name.endswith(is_file)]
    return sorted(set(found)) or None
