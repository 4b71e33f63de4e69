"""All routes that ask for rewards, and how each is read and answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rm_ray.serving.protocols import (
    embeddings,
    llama_factory,
    openrlhf,
    rewards,
    sglang,
    slime,
    vllm,
)
from rm_ray.serving.question import Question, Rewards


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one route's requests are read, and its answers written.

    Both raise InputError, for what a client must change.
    """

    read: Callable[[Any], Question]
    answer: Callable[[Question, Rewards], Any]


_CLASSIFIERS = {
    "sglang": Protocol(read=sglang.read, answer=sglang.answer),
    "vllm": Protocol(read=vllm.read_classify, answer=vllm.answer_classify),
}


def read_classify(body: Any) -> Question:
    """Read a body of ``/classify``: SGLang's has ``text`` or ``input_ids``, others are vLLM's.

    Raises:
        InputError: names the field, its value and the rule.
    """
    client = "sglang" if sglang.is_asked(body) else "vllm"
    if client == "vllm" and isinstance(body, Mapping):  # null is the same as no field
        body = {name: value for name, value in body.items() if name not in sglang.INPUTS}
    question = _CLASSIFIERS[client].read(body)
    return replace(question, options={**question.options, "client": client})


def answer_classify(question: Question, rewards: Rewards) -> Any:
    """Answer ``/classify`` as the client expects."""
    return _CLASSIFIERS[question.options["client"]].answer(question, rewards)


ROUTES: Mapping[str, Protocol] = {
    "/get_reward": Protocol(read=openrlhf.read, answer=openrlhf.answer),
    "/classify": Protocol(read=read_classify, answer=answer_classify),
    "/pooling": Protocol(read=vllm.read_pooling, answer=vllm.answer_pooling),
    "/v1/embeddings": Protocol(read=embeddings.read, answer=embeddings.answer),
    "/v1/score/evaluation": Protocol(read=llama_factory.read, answer=llama_factory.answer),
    "/reward": Protocol(read=slime.read, answer=slime.answer),
    "/v1/rewards": Protocol(read=rewards.read, answer=rewards.answer),
}
"""By path; all are asked with POST."""
