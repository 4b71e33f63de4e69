from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from rm_ray.config.fields import MAY_CHANGE, field_types, flatten, may_change, takes_auto


@dataclass
class Inner:
    plain: int = 0
    marked: Annotated[bool | Literal["auto"], MAY_CHANGE] = False


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str = ""


def test_flatten_joins_sections_and_fields_with_points():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }


def test_every_field_is_named_with_its_section_in_order():
    found = dict(field_types(Outer))

    assert list(found) == ["inner.plain", "inner.marked", "name"]
    assert found["name"] is str


def test_a_mark_on_a_field_tells_whether_it_may_change():
    assert [name for name, hint in field_types(Outer) if may_change(hint)] == ["inner.marked"]


@pytest.mark.parametrize(
    ("hint", "takes"),
    [
        (str, False),
        (bool | None, False),
        (Literal["none", "all"], False),
        (Literal["auto", 0, 1], True),
        (bool | Literal["auto"], True),
        (Annotated[bool | Literal["auto"], MAY_CHANGE], True),
    ],
)
def test_a_type_tells_whether_a_field_may_be_auto(hint: Any, takes: bool):
    assert takes_auto(hint) is takes
