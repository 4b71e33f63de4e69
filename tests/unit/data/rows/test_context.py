import json

import pytest
from pair_rows import Row

from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.context import NO_CONTEXT, Context, read_documents, read_tools, take_context
from rm_ray.data.rows.refusals import Reason, RefusedError

FUNCTION = {"name": "look_up", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        [FUNCTION],
        [{**FUNCTION, "type": "function"}],
        TOOL,
        [json.dumps(TOOL)],
        json.dumps([FUNCTION]),
        [{**TOOL, "strict": None}],
    ],
)
def test_tools_of_every_form_become_openai_schemas(tools: object):
    assert read_tools(tools) == [TOOL]


@pytest.mark.parametrize("blank", [None, "", [], "[]", [None], {}])
def test_blank_tools_and_documents_are_none(blank: object):
    assert read_tools(blank) is None
    assert read_documents(blank) is None


def test_a_tool_that_is_not_a_function_is_kept_as_is():
    search = {"type": "web_search", "name": "search"}

    assert read_tools([search]) == [search]


def test_a_tool_without_a_name_is_refused():
    with pytest.raises(RefusedError, match="a tool without a name") as caught:
        read_tools([{"type": "function", "function": {"parameters": {}}}])

    assert caught.value.reason == Reason.BAD_TOOLS


@pytest.mark.parametrize(
    ("documents", "read"),
    [
        ("The sky is blue.", [{"text": "The sky is blue."}]),
        ({"title": "Sky", "text": "Blue.", "url": None}, [{"title": "Sky", "text": "Blue."}]),
        (["One.", " ", {"text": "Two."}], [{"text": "One."}, {"text": "Two."}]),
        (json.dumps([{"text": "One."}]), [{"text": "One."}]),
    ],
)
def test_documents_are_objects_with_their_text(documents: object, read: list[Row]):
    assert read_documents(documents) == read


def test_a_row_s_context_is_taken_from_its_columns():
    columns = RowColumns({"functions": [FUNCTION], "documents": ["One."], "prompt": "Why?"})

    assert take_context(columns) == Context(tools=[TOOL], documents=[{"text": "One."}])
    assert columns.used == {"tools": "functions", "documents": "documents"}
    assert take_context(RowColumns({"prompt": "Why?", "tools": []})) is NO_CONTEXT
