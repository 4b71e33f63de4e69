"""What a chat template writes around a conversation, by which clients' texts are completed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from rm_ray.data.rows.turns import Message
from rm_ray.data.tokens.chat_renderer import TEMPLATE_FAILURES
from rm_ray.data.tokens.tokenizer import special_ids
from rm_ray.errors import InputError

_ANSWERS = ("An answer.", "Yes, of course")

_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}


@dataclass(frozen=True, kw_only=True)
class TemplateFrame:
    """The text of a chat template before the first turn and after the last response.

    A client renders text with the template, and what arrives may lack the BOS token (verl removes
    it, because vLLM adds one), have it or the last end-of-turn token twice, begin with blanks, or
    stop before the end of the last turn (OpenRLHF decodes what the policy wrote, up to its
    end-of-turn token or not even that). Completed, it is the template's text. A text of another
    template, or one that ends with the user's turn, is refused.
    """

    bos: str = ""
    """The BOS token; empty if there is none."""
    num_bos: int = 0
    """How often the template writes it at the start, at least."""
    most_bos: int = 0
    """The same, at most: some templates write it only sometimes."""
    indent: str | None = None
    """White space before the opening; None if that differs."""
    opening: str = ""
    """What every text has after that; only the first token or word of it."""
    ending: str = ""
    """What follows the last response; empty if that differs."""
    marks: tuple[int, ...] = ()
    """Lengths of the beginnings of ``ending`` that end with a special token, the longest first."""
    foreign: tuple[str, ...] = ()
    """Special tokens that the template does not write."""
    end_mark: str = ""
    """The end of a turn that never occurs twice in a row; empty if there is none."""
    headers: tuple[str, str] = ("", "")
    """What opens a turn of the assistant and of the user; empty if no token tells them apart."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TemplateFrame:
        """Find the frame from a few rendered conversations; those that the template takes."""
        plain = [
            (answer, text)
            for asked, answer in zip(("Hi", "Why?"), _ANSWERS, strict=True)
            for text in _render(tokenizer, asked, answer)
        ]
        texts = [text for _, text in plain]
        texts += _render(tokenizer, "Hi", _ANSWERS[0], system="Be brief.")
        texts += _render(tokenizer, "Hi", _ANSWERS[0], with_tool=True)
        if not texts:
            return cls()
        special = sorted(map(str, tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))))
        bos = str(tokenizer.bos_token or "")
        counts = {_count_leading(text, bos) for text in texts}
        bodies = [text[_count_leading(text, bos) * len(bos) :] for text in texts]
        indents = {body[: len(body) - len(body.lstrip())] for body in bodies}
        endings = {text.rpartition(answer)[2] for answer, text in plain if answer in text}
        ending = endings.pop() if len(endings) == 1 else ""
        marks = sorted(_find_marks(ending, tokenizer, special), reverse=True)
        end_mark = ending[: marks[0]].strip() if marks else ""
        if any(2 * end_mark in text for text in _render(tokenizer, "Hi", "")):
            end_mark = ""
        return cls(
            bos=bos,
            num_bos=min(counts),
            most_bos=max(counts),
            indent=indents.pop() if len(indents) == 1 else None,
            opening=_first_mark(_common_beginning([body.lstrip() for body in bodies]), special),
            ending=ending,
            marks=tuple(marks),
            end_mark=end_mark,
            headers=_find_headers(tokenizer, special),
            foreign=tuple(each for each in special if not any(each in text for text in texts)),
        )

    def complete(self, text: str) -> str:
        """Return the template's text for what a client rendered.

        Raises:
            InputError: another template wrote it, or none, or it ends with the user's turn.
        """
        if self.opening and self.indent is not None:
            text = text.lstrip()
        given = _count_leading(text, self.bos)
        body = text[given * len(self.bos) :]
        if not body.lstrip().startswith(self.opening):
            raise InputError(
                f"a text begins with {body[:40]!r}, and those of the served model's chat template "
                f"with {self.opening!r}; render it by the model's own tokenizer "
                "(apply_chat_template), send 'messages' to /classify, or token ids, which are "
                "scored as they stand"
            )
        self._refuse_question(body)
        if self.opening and self.indent is not None:
            body = self.indent + body.lstrip()
        num_bos = min(max(given, self.num_bos), self.most_bos)
        return self.bos * num_bos + self._end(body)

    def _refuse_question(self, body: str) -> None:
        assistant, user = self.headers
        if not assistant:
            return
        asked = max(body.rfind(user), 0) if user else 0
        if body.rfind(assistant) < asked:
            raise InputError(
                f"a text ends with {body[-40:]!r}, without a turn of the assistant after it, which "
                f"opens with {assistant!r}; a reward is that of a response: render the prompt with "
                "add_generation_prompt, and append the response"
            )

    def _end(self, body: str) -> str:
        if self.end_mark:
            body = _keep_one(self.end_mark, body)
        if body.endswith(self.ending):
            return body
        stripped = body.rstrip()
        for mark in self.marks:
            if stripped.endswith(self.ending[:mark]):
                return stripped + self.ending[mark:]
        if token := next((each for each in self.foreign if stripped.endswith(each)), None):
            raise InputError(
                f"a text ends with {token!r}, and those of the served model's chat template with "
                f"{self.ending!r}; end it so, or after the last response"
            )
        return body + self.ending

    def without_end(self, response: str) -> str:
        """Return a response without a policy's end-of-turn token, which the template adds."""
        stripped = response.rstrip()
        for mark in self.marks:
            if stripped.endswith(end := self.ending[:mark].lstrip()):
                return stripped[: -len(end)]
        return response


def _render(
    tokenizer: PreTrainedTokenizerBase,
    asked: str,
    answer: str,
    *,
    system: str = "",
    with_tool: bool = False,
) -> list[str]:
    """Return the text of a conversation, or nothing if the template does not take it."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": asked})
    messages.append({"role": "assistant", "content": answer})
    tools = [_TOOL] if with_tool else None
    try:
        return [str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))]
    except TEMPLATE_FAILURES:
        return []


def _count_leading(text: str, token: str) -> int:
    count = 0
    while token and text.startswith(token, count * len(token)):
        count += 1
    return count


def _keep_one(mark: str, text: str) -> str:
    """Return a text with one of the marks that it may end with several of."""
    stripped = text.rstrip()
    parts = stripped.split(mark)
    count = sum(1 for _ in takewhile(lambda part: not part.strip(), reversed(parts)))
    if count < 2:
        return text
    return mark.join(parts[:-count]) + mark + text[len(stripped) :]


def _common_beginning(texts: list[str]) -> str:
    first, *others = texts
    alike = (all(t[i : i + 1] == letter for t in others) for i, letter in enumerate(first))
    return first[: next((i for i, same in enumerate(alike) if not same), len(first))]


def _first_mark(text: str, special: list[str]) -> str:
    """Return the first special token that a text begins with, or else its first word.

    What follows may depend on the date, on tools and on the template's options.
    """
    longest = max((each for each in special if text.startswith(each)), key=len, default="")
    return longest or (text.split() or [""])[0]


def _find_marks(
    ending: str, tokenizer: PreTrainedTokenizerBase, special: list[str]
) -> Iterator[int]:
    added = (str(token) for token in tokenizer.added_tokens_decoder.values())
    pattern = "|".join(map(re.escape, sorted({*special, *added}, key=len, reverse=True)))
    if pattern:
        yield from (match.end() for match in re.finditer(pattern, ending))


def _find_headers(tokenizer: PreTrainedTokenizerBase, special: list[str]) -> tuple[str, str]:
    """Return what opens a turn of the assistant and of the user; see ``TemplateFrame.headers``.

    Marks that are plain text do not count, since a response may write them.
    """
    asked: list[Message] = [{"role": "user", "content": "Hi"}]
    try:
        before = str(tokenizer.apply_chat_template(asked, tokenize=False))
        after = str(
            tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        )
    except TEMPLATE_FAILURES:
        return "", ""
    assistant = after.removeprefix(before).strip()
    answered = _render(tokenizer, "Hi", _ANSWERS[0])
    is_header = after.startswith(before) and any(_find_marks(assistant, tokenizer, special))
    if not is_header or not all(assistant in text for text in answered):
        return "", ""
    named = (assistant.replace(role, "user") for role in ("assistant", "model"))
    users = [*named, assistant.replace("Assistant", "User")]
    user = next((each for each in users if each != assistant and each in before), "")
    return assistant, user
