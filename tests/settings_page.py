"""The table of settings in ``rm_ray/config/README.md``, made from the fields themselves.

python tests/settings_page.py --write
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from rm_ray.config.fields import may_change  # noqa: E402
from rm_ray.config.train_config import TrainConfig  # noqa: E402

PAGE = ROOT / "rm_ray" / "config" / "README.md"
BEGIN, END = "<!-- settings: python tests/settings_page.py --write -->", "<!-- end of settings -->"


def sections() -> dict[str, type]:
    """Return the dataclass of each section, by its name."""
    hints = get_type_hints(TrainConfig)
    return {section.name: hints[section.name] for section in fields(TrainConfig)}


def docstrings(section: type) -> dict[str, str]:
    """Return the text under each field of a section, on one line."""
    (cls,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(cls, ast.ClassDef)
    found = {}
    for field, below in zip(cls.body, cls.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found


def written(value: Any) -> str:
    """Return a value as a command line takes it."""
    match value:
        case None:
            return "none"
        case "" | ():
            return "empty"
        case tuple():
            return "`" + " ".join(map(str, value)) + "`"
        case bool():
            return f"`{value}`"
        case float() if value.is_integer() and value >= 1:
            return f"`{value:.0f}`"
        case _:
            return f"`{value}`".replace("e-0", "e-")


def choices(annotation: Any) -> list[Any]:
    """Return the values that a field may have, where they are listed."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    inside = [choice for each in get_args(annotation) for choice in choices(each)]
    return [*([True, False] if bool in get_args(annotation) and inside else []), *inside]


def row(section: str, field: Field[Any], annotation: Any, text: str) -> str:
    """Return a field's line of the table."""
    default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    listed = choices(annotation)
    listing = f"{', '.join(written(choice) for choice in listed)}. " if listed else ""
    name = f"`{section}.{field.name}`"
    cells = (name, written(default), "yes" if may_change(annotation) else "", listing + text)
    return f"| {' | '.join(re.sub(r'(?<!`)[|]', '/', cell) for cell in cells)} |"


def lines() -> Iterator[str]:
    """Yield the page's tables, one a section."""
    for name, section in sections().items():
        hints, texts = get_type_hints(section, include_extras=True), docstrings(section)
        yield from (f"### `{name}`", "", f"{(section.__doc__ or '').strip()}", "")
        yield from ("| field | default | may change | meaning |", "|---|---|---|---|")
        for field in fields(section):
            yield row(name, field, hints[field.name], texts[field.name])
        yield ""


def with_tables(page: str) -> str:
    """Return the page with the tables as the fields are now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{chr(10).join(lines())}{END}{after}"


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    PAGE.write_text(with_tables(PAGE.read_text()))
