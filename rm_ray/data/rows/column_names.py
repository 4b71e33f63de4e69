"""Guessing what a column holds from its name."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

ColumnKind = Literal["part", "harmless", "unknown"]
"""Part of the conversation; something about it, or another response; or neither is known."""

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
def classify_name(name: str) -> ColumnKind:
    """Return what an unused column of this name usually holds."""
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


def classify_path(path: str) -> ColumnKind:
    """Classify a value inside a column, by its own name or else by the column's."""
    name, _, inside = path.partition(".")
    own = plain_name(inside.rpartition(".")[2])
    if not own or own.isdecimal():
        return classify_name(name)
    kind = "harmless" if own in _NAMES_OF_SPEAKERS else classify_name(own)
    return classify_name(name) if kind == "unknown" else kind


def is_about(key: str) -> bool:
    """Return whether a key names a speaker or holds metadata rather than content."""
    return key in _NAMES_OF_SPEAKERS or classify_name(key) == "harmless"


def may_be_a_prompt(path: str) -> bool:
    """Return whether a name ends like a prompt's, as in ``raw_prompt`` and ``my_question``."""
    return _ENDS_AS_A_PART.fullmatch(plain_name(path.rpartition(".")[2])) is not None
