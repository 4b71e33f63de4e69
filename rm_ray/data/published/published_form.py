"""A published form: its columns, and how a row becomes one of the documented form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.rows.columns import follow_path
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.values import is_blank

Row = dict[str, Any]

MADE_TOGETHER = frozenset({"chosen", "rejected", "responses", "response", "preference", "tie"})
"""Parts that a form makes of columns that only make sense together: none is mapped alone."""


@dataclass(frozen=True, kw_only=True)
class PublishedForm:
    """The rows of a published preference set."""

    name: str
    dataset: str
    """Where it is published."""
    columns: tuple[str, ...]
    """The columns that are read; every row has all of them."""
    read: Callable[[Row], Row]
    """Return the documented columns of a row, made from ``columns``."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Documented column -> the published ones that it is made from, as the log names them."""
    harmless: frozenset[str] = frozenset()
    """Published columns that hold nothing to train on."""
    optional: frozenset[str] = frozenset()
    """Those of ``columns`` that may be ignored."""
    default_score: str = ""
    """The attribute that is the score without ``data.score_weights``; empty: all of them are."""
    is_found: bool = True
    """Whether the columns tell this form from others; if not, it must be asked for by name."""

    def find_missing(self, row: Row, rules: ColumnRules) -> list[str]:
        """Return the columns of the form that a row lacks, but for ignored ones it may lack."""
        spared = self.optional.intersection(rules.ignore)
        return [name for name in self.columns if name not in row and name not in spared]

    def to_documented(self, row: Row, rules: ColumnRules = NO_RULES) -> Row:
        """Return a row of the documented form, to be read by ``rules_for_documented``.

        Columns that the form does not know stay in it, and those that the rules ignore do not.
        What the rules map to a part wins over what the form would make of it.

        Raises:
            RefusedError: a column is missing, ignored or ambiguous, its value says no preference,
                or the rules map a side.
        """
        self._refuse_rules(row, rules)
        ignored = set(rules.ignore)
        present = row.keys() - ignored
        made = self.read({name: row[name] for name in self.columns if name in present})
        others = {k: v for k, v in row.items() if k not in self._known and k not in ignored}
        others |= self._take_score(made, rules)
        mapped: Row = {}
        for part, path in rules.columns.items():
            found, value = follow_path(row, path)
            if found:
                made.pop(part, None)
                mapped |= {} if any(_is_inside(path, name) for name in others) else {path: value}
        for name, value in made.items():
            if name in mapped:
                raise self._refusal(f"reads '{name}', which data.columns maps to another part")
            if not is_blank(others.get(name)) and others[name] != value:
                raise self._refusal(
                    f"makes {name} from '{self.origins.get(name, name)}', and the row has a column "
                    f"'{name}' too; leave that out with data.ignore_columns {name}"
                )
        return {**others, **mapped, **made}

    def rules_for_documented(self, rules: ColumnRules) -> ColumnRules:
        """Return the rules for rows of ``to_documented``, which have no ignored columns."""
        if not rules.ignore:
            return rules
        return replace(rules, ignore=tuple(name for name in rules.ignore if "." in name))

    def origins_by(self, rules: ColumnRules) -> dict[str, str]:
        """Return documented column -> the published ones that it is made from by these rules."""
        origins = {name: made for name, made in self.origins.items() if name not in rules.columns}
        if self.default_score and "scores" in origins:
            weighted = "' and '".join(name for name, _ in rules.score_weights)
            origins["scores"] = weighted or self.default_score
        return origins

    @cached_property
    def _known(self) -> frozenset[str]:
        return self.harmless.union(self.columns)

    def _refuse_rules(self, row: Row, rules: ColumnRules) -> None:
        if missing := self.find_missing(row, rules):
            raise RefusedError(
                Reason.MISSING_FIELD,
                f"{', '.join(missing)}, which every row of {self.dataset} has; data.form is "
                f"{self.name}",
            )
        if ignored := [n for n in self.columns if n in rules.ignore and n not in self.optional]:
            raise self._refusal(f"needs '{ignored[0]}', which data.ignore_columns leaves out")
        if sides := [part for part in rules.columns if part in MADE_TOGETHER]:
            raise self._refusal(f"makes {sides[0]}, which data.columns maps")

    def _take_score(self, made: Row, rules: ColumnRules) -> Row:
        """Make the default attribute the score; return the attributes that are not used."""
        if not self.default_score:
            return {}
        attributes = made["scores"]
        used = {name for name, _ in rules.score_weights} or {self.default_score}
        if not rules.score_weights and "scores" not in rules.columns:
            if self.default_score not in attributes:
                raise self._refusal(
                    f"needs '{self.default_score}', which data.ignore_columns leaves out, unless "
                    "data.score_weights says what makes a score"
                )
            made["scores"] = attributes[self.default_score]
        if "scores" in rules.columns:
            used = set()
        return {name: value for name, value in attributes.items() if name not in used}

    def _refusal(self, what: str) -> RefusedError:
        return RefusedError(
            Reason.BAD_FORM,
            f"the published form '{self.name}' {what} (data.form documented reads no published "
            "form)",
        )


def _is_inside(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def words(text: str) -> frozenset[str]:
    """Return the words of a text, as a set of column names."""
    return frozenset(text.split())


def prefer(first: Any, second: Any, lead: float) -> Row:
    """Return the sides of a row: the first is better if it leads, and 0 is a tie."""
    chosen, rejected = (first, second) if lead >= 0 else (second, first)
    return {"chosen": chosen, "rejected": rejected, "preference": 1.0 if lead else 0.5}


def require_index(value: Any, name: str) -> int:
    """Return 0 or 1, the position of the better response.

    Raises:
        RefusedError: it is something else.
    """
    if isinstance(value, bool) or value not in (0, 1, "0", "1"):
        raise RefusedError(Reason.BAD_PREFERENCE, f"{name} is {str(value)[:80]!r}; it is 0 or 1")
    return int(value)
