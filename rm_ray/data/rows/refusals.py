"""Refusal of rows: reasons and the exception."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a row is refused; tables and the quarantine file show these values."""

    MISSING_FIELD = "chosen or rejected missing"
    NOT_MESSAGES = "not messages"
    NOT_TEXT = "content that is not text"
    NOT_UNICODE = "not valid Unicode"
    UNKNOWN_ROLE = "unknown role"
    EMPTY = "empty"
    LAST_TURN_NOT_ASSISTANT = "last turn not assistant"
    SPEAKER_TAG = "speaker tag inside a turn"
    SPEAKERS_DO_NOT_ALTERNATE = "speakers do not alternate"
    TEMPLATED = "written by a chat template already"
    PROMPTS_DIFFER = "prompts differ"
    IDENTICAL_RESPONSES = "identical responses"
    BAD_TOOLS = "tools not a list of schemas"
    BAD_DOCUMENTS = "documents not a list of objects or texts"
    BAD_FORM = "columns that do not fit the published form"
    BAD_MARGIN = "margin not a usable number"
    BAD_RANKS = "ranks not one number for each response"
    BAD_SCORES = "scores not one usable number for each response"
    BAD_PREFERENCE = "preference not usable"
    NOTHING_COMPARED = "nothing says which response is better"
    TOO_MANY_RESPONSES = "too many responses"
    RESERVED_TOKENS = "reserved tokens in content"
    TEMPLATE_REFUSED = "refused by the chat template"
    LEFT_OUT = "left out by the chat template"
    IDENTICAL_AFTER_TEMPLATING = "identical after templating"
    PROMPT_TOO_LONG = "prompt too long"
    TOO_LONG = "too long"
    NOTHING_TO_LEARN = "nothing for the objective to learn from"
    HELD_OUT = "prompt is held out too"
    EXCLUDED = "excluded"


class RefusedError(Exception):
    """A row breaks the contract: the reason and a short detail."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = encodable(detail)
        super().__init__(f"{reason}: {self.detail}" if detail else str(reason))


def encodable(text: str) -> str:
    """Return text that UTF-8 can encode: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode()
