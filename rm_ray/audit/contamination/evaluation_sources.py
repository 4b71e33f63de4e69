"""Named sources -> the prompts of evaluation sets."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rm_ray.audit.contamination.evaluation_sets import EvaluationPrompt
from rm_ray.audit.text.messages import leave_out_instructions, read_text
from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.cache.overlap import hash_group
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.sources import mixture
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.scoring.conversations import SCORED_PARTS, Conversations, parse_conversations

logger = logging.getLogger(__name__)

_PARTS = (*SCORED_PARTS, "prompt")


def read_evaluation_prompts(
    sets: Mapping[str, Sequence[str]], rules: ColumnRules, seed: int
) -> Iterator[EvaluationPrompt]:
    """Yield the prompts of named sets, whose rows may have responses or none.

    Raises:
        InputError: a source cannot be read.
    """
    for name, sources in sets.items():
        refused: Counter[str] = Counter()
        specs = [SourceSpec.parse(text) for text in sources]
        rows = 0
        for selection in mixture.select(specs, seed, any_of=_PARTS, rules=rules):
            for number, text in mixture.read_selected(selection):
                try:
                    parsed = _parse(text, selection.fragment.origin, rules)
                except RefusedError as refusal:
                    refused[str(refusal.reason)] += 1
                    continue
                rows += 1
                yield _to_prompt(parsed, name, number)
        logger.info("evaluation set %s: %s rows", name, f"{rows:,}")
        for reason, count in refused.most_common():
            logger.warning("  %d rows cannot be read, and are not looked for: %s", count, reason)


def _parse(text: str, origin: str, rules: ColumnRules) -> Conversations:
    row = json.loads(text)
    if not isinstance(row, dict):
        raise RefusedError(Reason.NOT_MESSAGES, f"the row is a {type(row).__name__}")
    try:
        return parse_conversations(row, origin, rules)
    except RefusedError as refusal:
        if refusal.reason != Reason.MISSING_FIELD:
            raise
        # Benchmarks may have prompts alone, and then any response will do.
        return parse_conversations({**row, "response": "."}, origin, rules)


def _to_prompt(parsed: Conversations, name: str, row: int) -> EvaluationPrompt:
    prompt = parsed.messages[0][:-1]
    responses = [messages[-1] for messages in parsed.messages]
    group = Group(prompt=prompt, responses=responses, comparisons=(), context=parsed.context)
    return EvaluationPrompt(
        name=name,
        row=row,
        key=hash_group(group)["prompt_hash"],
        text="\n".join(read_text(message) for message in leave_out_instructions(prompt)),
    )
