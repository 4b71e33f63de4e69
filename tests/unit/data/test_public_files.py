"""Rows in the schemas of public preference sets and usual exports: read correctly, or refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.rows.column_hints import suggest_columns
from rm_ray.data.rows.column_readings import refuse_lost_columns, sum_up
from rm_ray.data.rows.pairs import parse_pair, read_pair
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message
from rm_ray.data.sources.csv_rows import read_csv
from rm_ray.data.sources.mixture import SourceSpec, select
from rm_ray.errors import InputError

Row = dict[str, Any]

ASKED = {"role": "user", "content": "Why is it so?"}
SO = {"role": "assistant", "content": "So it is."}
NO = {"role": "assistant", "content": "It is not."}
REPLIES = {"chosen": "So it is.", "rejected": "It is not."}
BOTH = {"chosen": [ASKED, SO], "rejected": [ASKED, NO]}
Q = "Why is it so?"

READ: list[tuple[Row, list[str]]] = [
    ({"instruction": Q, "chosen_response": "So it is.", "rejected_response": "It is not."}, []),
    ({"input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
      "preferred_output": [SO], "non_preferred_output": [NO]}, []),
    ({"id": 1, "model_a": "a", "prompt": json.dumps([Q]), "response_a": json.dumps(["So it is."]),
      "response_b": json.dumps(["It is not."]), "winner_model_a": 1},
     ["chosen=response_a", "rejected=response_b"]),
    ({"prompt": [Q], "chosen": ["So it is."], "rejected": ["It is not."]}, []),
    ({"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "turns": 1, "source": ["lmsys"],
      "answers": [{"answer": "So it is.", "rank": 1.0}, {"answer": "It is not.", "rank": 2.0}]},
     ["chosen=answers.0.answer", "rejected=answers.1.answer"]),
    ({"question": {"dataset": "eli5", "id": "x 1", "full_text": Q}, "score_0": 1.0,
      "answer_0": "So it is.", "answer_1": "It is not.", "tokens_0": {"prefix": [1]}},
     ["prompt=question.full_text", "chosen=answer_0", "rejected=answer_1"]),
    ({"domain": "general", "context": [ASKED], "response1": "So it is.", "response2": "It is not.",
      "overall_preference": -2, "individual_preference": [{"score": -2, "reasoning": "Clear."}]},
     ["prompt=context", "chosen=response1", "rejected=response2"]),
    ({"post_id": "a", "history": Q, "human_ref_A": "So it is.", "human_ref_B": "It is not.",
      "labels": 1, "created_at_utc_A": 1}, ["chosen=human_ref_A", "rejected=human_ref_B"]),
    ({"prompt": Q, "prompt_id": "p", **BOTH, "score_chosen": 8.5,
      "messages": [{**ASKED, "model": "m 1", "id": 1}, SO]}, []),
    ({"prompt": None, "chosen": f"Human: {Q}\n\nAssistant: So it is.",
      "rejected": f"Human: {Q}\n\nAssistant: It is not."}, []),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns"), READ, ids=range(len(READ)))
def test_rows_of_public_sets_become_the_pair_without_stopping_the_run(row: Row, columns: list[str]):
    pair, reading = read_pair(row, "", ColumnRules.of(columns, []))

    assert (pair.chosen, pair.rejected) == ([ASKED, SO], [ASKED, NO])
    assert reading.lost == ()


def test_lists_of_turns_take_turns():
    row = {"prompt": ["Hi", Q], "chosen": ["Hello", "So it is."], "rejected": ["Hello", "Not."]}

    hello = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert parse_pair(row).chosen == [*hello, ASKED, SO]


def refusal(row: Row) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse_pair(row)
    return caught.value


MESSAGES = json.dumps([SO])
REFUSED: list[tuple[Row, Reason, str]] = [
    ({"prompt": None, "system": "Be brief.", **REPLIES}, Reason.EMPTY, "the prompt"),
    ({"prompt": [Q], **REPLIES}, Reason.NOT_MESSAGES, "prompt=prompt.0"),
    ({"prompt": Q, "chosen": ["So it is."], "rejected": ["a", "b"]}, Reason.NOT_MESSAGES,
     "chosen=chosen.0"),
    ({"prompt": ["Hi", Q], "chosen": ["Hello", "a"], "rejected": ["Hey", "b"]},
     Reason.PROMPTS_DIFFER, ""),
    ({"prompt": json.dumps([Q]), "chosen": "[null]", "rejected": '["So."]'}, Reason.EMPTY, "turn"),
    ({"chosen": [ASKED, SO], "rejected": "It is not."}, Reason.PROMPTS_DIFFER, "without its"),
    ({"prompt": "Give messages.", "chosen": MESSAGES, "rejected": "I cannot."},
     Reason.NOT_MESSAGES, "the other one is plain text"),
    ({"prompt": f"<|prompter|>{Q}<|endoftext|>", **REPLIES}, Reason.TEMPLATED, ""),
    ({"prompt": [{"role": "user", "text": Q}], **REPLIES}, Reason.NOT_MESSAGES, "'content'"),
    ({"prompt": Q, "chosen": "So.<|im_end|>", "rejected": "No.<|im_end|>"}, Reason.TEMPLATED, ""),
    ({"chosen": f"Be brief.\n\nHuman: {Q}\n\nAssistant: So.",
      "rejected": f"Be brief.\n\nHuman: {Q}\n\nAssistant: No."}, Reason.SPEAKER_TAG, "Be brief."),
    ({"prompt": f"A chat. USER: {Q} ASSISTANT:", **REPLIES}, Reason.SPEAKER_TAG, "USER"),
    ({"prompt": f"Below is a task.\n\n### Instruction:\n{Q}\n\n### Response:\n", **REPLIES},
     Reason.SPEAKER_TAG, "Below"),
    ({"input": json.dumps({"messages": [ASKED]}), **REPLIES}, Reason.NOT_MESSAGES,
     "store the object itself"),
    ({"prompt": Q, "chosen": {"model": "m", "text": "So."}, "rejected": {"text": "No."}},
     Reason.NOT_MESSAGES, "chosen=chosen.text"),
    ({"prompt": Q, "tools": str([{"name": "f"}]), **REPLIES}, Reason.BAD_TOOLS, "json.dumps"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "detail"), REFUSED, ids=range(len(REFUSED)))
def test_rows_that_could_be_misread_are_refused(row: Row, reason: Reason, detail: str):
    found = refusal(row)

    assert found.reason == reason
    assert detail in found.detail


@pytest.mark.parametrize(
    ("row", "guess"),
    [
        ({"question": Q, "context": "So it is.", **REPLIES}, "documents=context"),
        ({"context": [ASKED], **REPLIES}, "prompt=context"),
        ({"ask": Q, **REPLIES}, "prompt=ask"),
        ({"raw_prompt": Q, "system": "Be brief.", **REPLIES}, "prompt=raw_prompt"),
        ({"prompt": Q, "chat_history": "Earlier talk.", **REPLIES}, "history=chat_history"),
        ({"prompt": Q, "chosen_thinking": "Let me think.", **REPLIES}, "=chosen_thinking"),
        ({"instruction": "Square it.", "input": 42, **REPLIES}, "prompt=input"),
    ],
)
def test_an_unused_part_stops_the_run_with_a_fitting_example(row: Row, guess: str):
    with pytest.raises(InputError, match=guess):
        refuse_lost_columns([sum_up("here", {read_pair(row)[1].to_json(): 1})])


def test_a_value_inside_a_column_is_left_out_by_its_path():
    row = {"question": {"text": Q, "body": "It has a body too."}, **REPLIES}

    for ignore, lost in ((), ("question.body",)), (("question.body",), ()):
        rules = ColumnRules.of(["prompt=question.text"], ignore)
        assert read_pair(row, "", rules)[1].lost == lost


def test_the_line_warns_if_another_column_decides_which_response_is_chosen():
    row = {"prompt": Q, "response_0": "So it is.", "response_1": "No.", "better_response_id": 1}
    rules = ColumnRules.of(["chosen=response_0", "rejected=response_1"], [])

    (line,) = [sum_up("here", {read_pair(row, "", rules)[1].to_json(): 1}).describe()]

    assert "'response_0' IS CHOSEN IN EVERY ROW, and 'better_response_id' may say otherwise" in line


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["ask", "response_j", "response_k"], "chosen=response_j rejected=response_k"),
        (["prompt", "chosen_text", "rejected_text"], "chosen=chosen_text rejected=rejected_text"),
        (["context", "better", "worse"], "chosen=better rejected=worse prompt=context"),
        (["prompt", "response_a", "response_b", "winner"], "write 'chosen' and 'rejected' from it"),
        (["context", "response1", "response2"], "rejected=response2 prompt=context"),
        (["messages", "rejected_response"], "move it to a column 'chosen'"),
    ],
)
def test_a_pair_under_other_names_is_refused_with_the_setting_that_reads_it(
    names: list[str], hint: str, tmp_path: Path
):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(dict.fromkeys(names, "A text.")))

    with pytest.raises(InputError) as caught:
        select([SourceSpec.parse(str(path))], seed=0)

    assert hint in str(caught.value)


def test_answers_in_a_list_are_named_by_their_positions():
    answers = [{"model": {}, "answer": "So it is."}, {"model": {}, "answer": "No."}]

    hint = suggest_columns({"prompt": Q, "answers": answers})

    assert "chosen=answers.0.answer rejected=answers.1.answer" in hint


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": {"0": Q}, "chosen": {"0": "So."}, "rejected": {"0": "No."}},
        {"0": {"prompt": Q, **REPLIES}, "1": {"prompt": Q, **REPLIES}},
        {"columns": ["prompt"], "index": [0], "data": [[Q]]},
    ],
)
def test_a_pandas_table_that_is_not_by_row_is_refused_with_how_to_write_it(
    row: Row, tmp_path: Path
):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row))

    with pytest.raises(InputError, match="orient='records'"):
        select([SourceSpec.parse(str(path))], seed=0)


def test_missing_cells_of_a_table_become_none(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["prompt", "system", "history", "chosen"], ["nan", "NaN", "[]", "None of them."]]
        )

    (row,) = read_csv(str(path), ",")

    assert row == {"prompt": None, "system": None, "history": "[]", "chosen": "None of them."}
    found = refusal({**row, "rejected": "All of them."})
    assert (found.reason, found.detail) == (Reason.EMPTY, "the prompt")


def test_messages_of_one_row_share_nothing_with_the_next():
    rows: list[Row] = [{"input": {"messages": [ASKED]}, "preferred_output": [SO],
                        "non_preferred_output": [NO]}, {"input": Q, **REPLIES}]  # fmt: skip

    prompts: list[list[Message]] = [parse_pair(row).prompt for row in rows]

    assert prompts == [[ASKED], [ASKED]]
