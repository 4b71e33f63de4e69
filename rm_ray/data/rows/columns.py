"""Which column of a row plays which part, by its name or by ``data.columns``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from rm_ray.config.checks import require

ALIASES = {
    "chosen": ("chosen", "chosen_response", "preferred_output"),
    "rejected": ("rejected", "rejected_response", "non_preferred_output"),
    "prompt": ("prompt", "question", "query", "instruction", "input"),
    "messages": ("messages", "conversations", "conversation"),
    "response": ("response",),
    "responses": ("responses",),
    "history": ("history",),
    "system": ("system", "system_prompt", "system_message"),
    "tools": ("tools", "functions"),
    "documents": ("documents",),
    "margin": ("margin",),
    "source": ("source",),
    "subset": ("subset",),
    "id": ("id",),
}
"""The parts of a row, and the columns that hold them; the first that is filled is read."""

Standing = Literal["part", "harmless", "unknown"]

_PART_NAMES = """
    article articles attachment attachments audio audios available_functions available_tools
    background body chat chat_history chats choices chosen code_context context contexts
    conversation conversations demonstrations dialog dialogs dialogue dialogues docs document
    documents evidence examples exemplars few_shot file files function functions history human
    image image_path image_paths image_url image_urls images img input inputs instruction
    instructions knowledge message messages options paragraph paragraphs passage passages persona
    personas picture pictures post preamble problem prompt prompts queries query question questions
    rejected schema story system system_instruction system_instructions system_message
    system_prompt table tool tools transcript turns user_input user_message video videos
"""
_PARTS = frozenset(_PART_NAMES.split())
"""Names of columns that usually hold part of a conversation."""

_NOUNS = (
    "article|audios?|chat|contexts?|conversations?|dialogu?e?s?|docs|documents?|functions|history|"
    "images?|instructions?|messages|paragraphs?|passages?|prompts?|query|questions?|tools|videos?"
)
_ENDS_AS_A_PART = re.compile(rf"(?:.*_)?(?:{_NOUNS})(?:_(?:text|content|body|str|json|raw|full))?")
_ABOUT = re.compile(
    r"(?:labell?ing|generation|annotations?|judge|judgement|judgment|grading|critic|critique|eval|"
    r"evaluation|evol|rating|reward|raw|num|n|is|has|in|len|contains|score|type|model|meta)_.*"
)
_HARMLESS = re.compile(
    r"(?:.*_)?(?:ids?|idx|index|uuid|uid|guid|hash|sha\d*|md5|urls?|uri|links?|key|scores?|ratings?|"
    r"ranks?|ranking|rewards?|logps?|logprobs?|prob|probs|probability|preference|strength|labels?|"
    r"winner|votes?|upvotes|margin|agreement|confidence|models?|policy|annotators?|workers?|author|"
    r"lang|language|languages|locale|timestamp|time|date|created|updated|at|utc|source|sources|"
    r"dataset|datasets|subset|split|category|categories|topic|topics|domain|domains|type|types|kind|"
    r"task|tasks|tags|difficulty|license|version|meta|metadata|info|config|seed|temperature|count|"
    r"counts|length|len|tokens|chars|words|order|status|rationales?|explanations?|reasons?|"
    r"critiques?|feedback|annotations?|comments?|judge?ments?|verdict|responses?|completions?|"
    r"generations?|answers?|candidates?|outputs?|toxicity|toxic|level|round|num|helpfulness|"
    r"correctness|coherence|complexity|verbosity|honesty|truthfulness|safety|quality|overall|weight)"
)
_HARMLESS_BEGINNING = re.compile(
    r"(?:chosen|rejected|original|num|n|is|has|in|score|response|completion|unnamed|index|meta|qid)_?"
    r"(?:_.*|\d*)"
)


_OF_A_RESPONSE = re.compile(
    r"(?:chosen|rejected)_(?:thinking|thoughts?|cot|reasoning|reasoning_content|reasoning_steps|"
    r"tool_calls|tools|images?|messages|system|context|prompt)"
)


@lru_cache(maxsize=4_096)
def plain_name(name: str) -> str:
    """Return a column's name in lower case, its words joined by underscores."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\s:/.-]+", "_", words).lower().strip("_")


@lru_cache(maxsize=4_096)
def find_standing(name: str) -> Standing:
    """Say what a column that is not read usually holds.

    ``part``: part of the conversation; ``harmless``: something about it, or other responses.
    """
    plain = plain_name(name)
    if plain in _PARTS:
        return "part"
    if _OF_A_RESPONSE.fullmatch(plain):
        return "part"
    about = _ABOUT.fullmatch(plain) or _HARMLESS.fullmatch(plain)
    if about or _HARMLESS_BEGINNING.fullmatch(plain):
        return "harmless"
    return "part" if _ENDS_AS_A_PART.fullmatch(plain) else "unknown"


_NAMES_OF_SPEAKERS = ("role", "from", "type")


def find_path_standing(path: str) -> Standing:
    """Say what a value inside a column usually holds: by its own name, else by the column's."""
    name, _, inside = path.partition(".")
    own = plain_name(inside.rpartition(".")[2])
    if not own or own.isdecimal():
        return find_standing(name)
    standing = "harmless" if own in _NAMES_OF_SPEAKERS else find_standing(own)
    return find_standing(name) if standing == "unknown" else standing


def is_about(key: str) -> bool:
    """Tell whether a key of an object names a speaker, or something about what is said."""
    return key in _NAMES_OF_SPEAKERS or find_standing(key) == "harmless"


def may_be_a_prompt(path: str) -> bool:
    """Tell whether a name ends as those of prompts do, as ``raw_prompt`` and ``my_question``."""
    return _ENDS_AS_A_PART.fullmatch(plain_name(path.rpartition(".")[2])) is not None


def is_blank(value: Any) -> bool:
    """Tell whether a value holds nothing: null, no text, or only such values."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict):
        return all(map(is_blank, value.values()))
    if isinstance(value, list):
        return all(map(is_blank, value))
    return value is None or (isinstance(value, float) and math.isnan(value))  # pandas' null


@dataclass(frozen=True, kw_only=True)
class ColumnRules:
    """What the settings say of columns: the part of some, and those to leave out."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Part to column, or to a path in one (``question.full_text``, ``completions.0.text``)."""
    ignore: tuple[str, ...] = ()

    @cached_property
    def _hash(self) -> int:
        return hash((frozenset(self.columns.items()), self.ignore))

    def __hash__(self) -> int:
        """Hash what is compared."""
        return self._hash

    @property
    def are_set(self) -> bool:
        """Whether they say anything."""
        return bool(self.columns or self.ignore)

    @classmethod
    def of(cls, columns: Sequence[str], ignore: Sequence[str]) -> ColumnRules:
        """Read settings, each column as ``part=column``."""
        named = (text.partition("=") for text in columns)
        return cls(columns={part: column for part, _, column in named}, ignore=tuple(ignore))


NO_RULES = ColumnRules()


def require_rules(prefix: str, columns: Sequence[str], ignore: Sequence[str]) -> None:
    """Refuse parts that there are not, or that are named twice.

    Raises:
        InputError: naming the setting and the parts there are.
    """
    rule = f"a list of PART=COLUMN, each part once and one of {', '.join(ALIASES)}"
    named = [text.partition("=") for text in columns]
    are_parts = all(part in ALIASES and equals and column for part, equals, column in named)
    holds = are_parts and len({part for part, _, _ in named}) == len(named)
    require(holds, f"{prefix}columns", tuple(columns), rule)
    both = sorted({column.split(".")[0] for _, _, column in named} & set(ignore))
    rule = f"other columns than those of {prefix}columns"
    require(not both, f"{prefix}ignore_columns", both, rule)


def find(row: Any, path: str) -> tuple[bool, Any]:
    """Follow a path of names and list positions; whole names with points in them win."""
    if isinstance(row, dict) and path in row:
        return True, row[path]
    for point in (i for i, letter in enumerate(path) if letter == "."):
        found, inside = _step(row, path[:point])
        if found:
            return find(inside, path[point + 1 :])
    return _step(row, path)


def _step(value: Any, name: str) -> tuple[bool, Any]:
    if isinstance(value, dict) and name in value:
        return True, value[name]
    if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
        return True, value[int(name)]
    return False, None


@lru_cache(maxsize=1_024)
def _lay_out(names: tuple[str, ...], rules: ColumnRules) -> dict[str, tuple[str, ...]]:
    """Return which columns may hold which part by their names; most rows of a source have the same.

    Columns that the rules give to a part are left to it.
    """
    given = {path.split(".")[0] for path in rules.columns.values()}
    by_plain_name: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name != plain_name(name)):
        if name not in given:
            by_plain_name.setdefault(plain_name(name), name)
    named = {
        part: tuple(by_plain_name[alias] for alias in aliases if alias in by_plain_name)
        for part, aliases in ALIASES.items()
    }
    return {part: columns for part, columns in named.items() if columns}


def _with_preference_input(row: dict[str, Any], rules: ColumnRules) -> ColumnRules:
    """Read the ``input`` of OpenAI's preference format: an object with messages and tools."""
    given = row.get("input")
    if not isinstance(given, dict) or "messages" not in given or "prompt" in rules.columns:
        return rules
    inside = {"prompt": "input.messages", **({"tools": "input.tools"} if "tools" in given else {})}
    return ColumnRules(columns={**inside, **rules.columns}, ignore=rules.ignore)


class RowColumns:
    """A row's columns: each is taken for a part, or left."""

    def __init__(self, row: dict[str, Any], rules: ColumnRules = NO_RULES) -> None:
        rules = _with_preference_input(row, rules)
        self._row, self._rules = row, rules
        self.names = tuple(row)
        if rules.ignore:
            self.names = tuple(name for name in row if name not in rules.ignore)
        self._by_part = _lay_out(self.names, rules)
        self.used: dict[str, str] = {}
        """Part to the columns that were taken for it."""
        self._paths: set[str] = set()

    def take(self, part: str, *, blank: bool = False) -> Any:
        """Return the value of a part, None where no column holds it; ``blank`` ones count too."""
        if part not in self._by_part and not self._rules.columns:
            return None
        for column, value in self.candidates(part):
            if blank or not is_blank(value):
                self.mark(part, column)
                return value
        return None

    def is_mapped(self, part: str) -> bool:
        """Tell whether the rules name the column of a part."""
        return part in self._rules.columns

    def candidates(self, part: str) -> Sequence[tuple[str, Any]]:
        """Return the columns that may hold a part, in order, with their values."""
        path = self._rules.columns.get(part) if self._rules.columns else None
        if path is not None:
            found, value = find(self._row, path)
            if found:
                return [(path, value)]
        names = self._by_part.get(part)
        return [(name, self._row[name]) for name in names] if names else ()

    def mark(self, part: str, column: str) -> None:
        """Note that a column was taken for a part."""
        before = self.used.get(part)
        self.used[part] = column if before is None else f"{before}' and '{column}"
        self._paths.add(column)

    @property
    def are_all_taken(self) -> bool:
        """Whether every column was taken as a whole."""
        return self._paths.issuperset(self.names)

    def left(self) -> Iterator[tuple[str, Any]]:
        """Yield the columns that hold something and were not taken; of some only other values."""
        for name in self.names:
            if name in self._paths:
                continue
            inside = [p[len(name) + 1 :] for p in self._paths if p.startswith(f"{name}.")]
            if inside:
                others = _others(name, self._row[name], inside)
                yield from (each for each in others if each[0] not in self._rules.ignore)
            elif not is_blank(self._row[name]):
                yield name, self._row[name]


def _others(name: str, value: Any, taken: list[str]) -> Iterator[tuple[str, Any]]:
    items: Iterator[tuple[str, Any]]
    if isinstance(value, dict):
        items = iter(value.items())
    else:
        items = ((str(i), item) for i, item in enumerate(value))
    for key, item in items:
        if key in taken or is_blank(item):
            continue
        inside = [path[len(key) + 1 :] for path in taken if path.startswith(f"{key}.")]
        if inside:
            yield from _others(f"{name}.{key}", item, inside)
        else:
            yield f"{name}.{key}", item
