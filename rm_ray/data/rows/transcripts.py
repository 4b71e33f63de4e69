"""Conversations written as one text: Anthropic's dialogue format, and formats that are refused."""

from __future__ import annotations

import re

from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message

_SPEAKER = re.compile(r"(?:^|\r?\n\r?\n)(Human|Assistant):")
_STRAY_SPEAKER = re.compile(r"(?:^|\s)(?:Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}

_OTHER_TRANSCRIPT = re.compile(
    r"\s*(?:#+ ?)?(?:USER|User|HUMAN|Human|Instruction)\s*:"
    r"(?=.*\n\s*(?:#+ ?)?(?:ASSISTANT|Assistant|AI|Bot|BOT|GPT|Response)\s*:)",
    re.DOTALL,
)
_PROMPT_FORMAT = re.compile(
    r"\n\nHuman:.*\n\nAssistant:|\bUSER: .*\bASSISTANT:\s*\Z|"
    r"### ?(?:Instruction|Human|User):.*### ?(?:Response|Assistant):\s*\Z",
    re.DOTALL,
)
"""Instructions followed by a transcript, or a Vicuna or Alpaca prompt that awaits its answer."""

_BEFORE = r"(?:^|\n)[ \t]*(?:[#*]+ ?)?(?:GPT4 Correct )?"
_ASKS = re.compile(
    rf"(?i:{_BEFORE}(?:user|human|instruction|question)\*{{0,2}} ?:)|"
    r"(?:\bUSER|### ?Human) ?:|^[HQ] ?:"
)
_ANSWERS = re.compile(
    rf"(?i:{_BEFORE}(?:assistant|ai|bot|gpt|response|answer)\*{{0,2}} ?:)|"
    r"(?:\bASSISTANT|### ?Assistant) ?:|\n[ \t]*A ?:"
)
"""Labels of a speaker who asks and of one who answers, at the start of a line or in capitals."""

_END_OF_TURN = re.compile(
    r"(?:<\|im_end\|>|<\|eot_id\|>|<\|endoftext\|>|<\|end_of_text\|>|<end_of_turn>)\s*\Z"
)

_MARKERS = (
    r"<\|im_start\|>|<\|im_end\|>|<\|start_header_id\|>|<\|eot_id\|>|\[INST\]|\[/INST\]|"
    r"<start_of_turn>|<end_of_turn>|<\|(?:system|user|assistant|prompter)\|>|<\|start\|>|"
    r"<\|message\|>|<\|START_OF_TURN_TOKEN\|>|<\|END_OF_TURN_TOKEN\|>|<｜(?:User|Assistant)｜>"
)
_BEGINNING = re.compile(rf"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)?\s*(?:{_MARKERS})")
_MARKER = re.compile(rf"{_MARKERS}|</s>|<\|endoftext\|>|<\|end\|>")


def is_templated(text: str) -> bool:
    """Return whether a chat template wrote a text: it ends a turn, or begins one and has more."""
    if _END_OF_TURN.search(text[-40:]):
        return True
    begins = _BEGINNING.match(text)
    return begins is not None and _MARKER.search(text, begins.end()) is not None


def starts_with_speaker(text: str) -> bool:
    """Return whether a text begins like a transcript."""
    return text.lstrip().startswith(("Human:", "Assistant:"))


def refuse_other_transcript(text: str, name: str) -> None:
    """Refuse a text that looks like a conversation in an unknown transcript format.

    Raises:
        RefusedError: it looks like one.
    """
    if _OTHER_TRANSCRIPT.match(text) or _PROMPT_FORMAT.search(text):
        raise RefusedError(
            Reason.SPEAKER_TAG, f"{name} is a transcript of no known form: {text.strip()[:80]}"
        )


def refuse_labelled_prompt(chosen: str, rejected: str) -> None:
    """Refuse two responses that both begin with the same prompt in an unknown format.

    Raises:
        RefusedError: their common beginning labels a speaker who asks, then one who answers.
    """
    unlike = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    shared = chosen[: next(unlike, min(len(chosen), len(rejected)))]
    asks = _ASKS.search(shared)
    if asks and _ANSWERS.search(shared, asks.end()):
        raise RefusedError(
            Reason.SPEAKER_TAG,
            f"there is no prompt, and both responses begin with one: {shared.strip()[:80]}",
        )


def read_transcript(text: str) -> list[Message]:
    """Read Anthropic's plain-text dialogue format (arXiv:2204.05862).

    Raises:
        RefusedError: a turn contains a speaker tag, or a speaker has two turns in a row.
    """
    parts = _SPEAKER.split("\n\n" + text.strip())
    messages: list[Message] = [
        {"role": _ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    for previous, message in zip([None, *messages], messages, strict=False):
        if _STRAY_SPEAKER.search(message["content"]):
            raise RefusedError(Reason.SPEAKER_TAG, message["content"][:80])
        if previous is not None and previous["role"] == message["role"]:
            raise RefusedError(Reason.SPEAKERS_DO_NOT_ALTERNATE, message["content"][:80])
    return messages


def is_whole_transcript(text: str) -> bool:
    """Return whether a text is a transcript of several turns that starts with the human."""
    begins = text.lstrip().startswith("Human:")
    return begins and len(_SPEAKER.findall("\n\n" + text.strip())) > 1


def split_transcript(text: str) -> list[str]:
    """Return the text of each turn of a transcript."""
    return [part.strip() for part in _SPEAKER.split("\n\n" + text.strip())[2::2]]


def answer_transcript(prompt: str, answer: str) -> list[Message]:
    """Read a transcript followed by its answer, which may begin with a speaker tag.

    Raises:
        RefusedError: ``read_transcript`` refuses it.
    """
    ends_open = prompt.rstrip().endswith("Assistant:")
    if ends_open and answer.lstrip().startswith("Assistant:"):
        answer = answer.lstrip()[len("Assistant:") :]
    speakers = _SPEAKER.findall("\n\n" + prompt.strip())
    names_speaker = answer.lstrip().startswith("Assistant:")
    if speakers[-1:] == ["Assistant"] or names_speaker:
        joint = "\n\n" if names_speaker else ""
        return read_transcript(prompt + joint + answer.lstrip("\n" if names_speaker else ""))
    return read_transcript(f"{prompt.rstrip()}\n\nAssistant: {answer}")
