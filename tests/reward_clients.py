"""How the clients of reward models render text, ask for rewards and read the answers.

Each is re-expressed from the client's own code, and uses none of the project's. ``CLIENTS`` has all
of them: functions of a server's address, the served model's tokenizer and conversations to the
conversations' rewards.
"""

import base64
import json
import os
import struct
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]
Ask = Callable[[str, PreTrainedTokenizerBase, Sequence[Messages]], list[float]]

MODEL = "served"


def post(url: str, body: Any) -> Any:
    """Return the JSON that a server answers to JSON."""
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("RM_RAY_SERVE_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=180) as answer:
        return json.load(answer)


def whole_text(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The text of a conversation, as the template writes it."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The text that a policy continues."""
    return str(
        tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    )


def policy_text(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, is_finished: bool = True
) -> str:
    """A prompt and what a policy wrote: OpenRLHF decodes all ids, with special tokens.

    A finished response ends with the token at which generation stops, an unfinished one without.
    """
    ids = tokenizer(prompt_text(tokenizer, messages), add_special_tokens=False)["input_ids"]
    ids += tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"]
    stop = stop_token(tokenizer)
    if is_finished and stop is not None:
        ids.append(stop)
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def stop_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the template writes after a response, at which a policy stops."""
    probe = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho ho"}]
    ending = whole_text(tokenizer, probe).rpartition("Ho ho")[2]
    ids: list[int] = tokenizer(ending, add_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in tokenizer.all_special_ids), None)


def verl_text(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """The template's text without the BOS token at its beginning, which vLLM adds."""
    text = whole_text(tokenizer, messages)
    bos = tokenizer.bos_token
    return text[len(bos) :] if bos is not None and text.startswith(bos) else text


def ask_openrlhf(
    url: str,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Messages],
    *,
    is_finished: bool = True,
) -> list[float]:
    """``--reward.remote_url``: it reads rewards, scores, and logs, which it averages."""
    body = {
        "query": [policy_text(tokenizer, m, is_finished=is_finished) for m in conversations],
        "prompts": [prompt_text(tokenizer, messages) for messages in conversations],
        "labels": [None] * len(conversations),
    }
    info = post(f"{url}/get_reward", body)
    assert info["scores"] == info["rewards"]
    for values in info["extra_logs"].values():
        assert len(values) == len(conversations)
        assert all(isinstance(value, float) for value in values)
    return list(info["rewards"])


def ask_openrlhf_unfinished(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """The same of responses that stopped at the longest length."""
    return ask_openrlhf(url, tokenizer, conversations, is_finished=False)


def ask_verl_vllm(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """verl with vLLM before 0.11.2, one text a request."""
    found = []
    for messages in conversations:
        text = verl_text(tokenizer, messages)
        answer = post(f"{url}/classify", {"model": MODEL, "input": text, "activation": False})
        found.append(answer["data"][-1]["probs"][-1])
    return found


def ask_verl_vllm_newer(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """verl with vLLM from 0.11.2 on: the text as the template writes it."""
    found = []
    for messages in conversations:
        body = {
            "model": MODEL,
            "input": whole_text(tokenizer, messages),
            "use_activation": False,
            "add_special_tokens": False,
        }
        found.append(post(f"{url}/classify", body)["data"][-1]["probs"][-1])
    return found


def ask_verl_sglang(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """verl with SGLang, one text a request."""
    found = []
    for messages in conversations:
        body = {"model": MODEL, "input": verl_text(tokenizer, messages)}
        found.append(post(f"{url}/v1/embeddings", body)["data"][-1]["embedding"][-1])
    return found


def ask_vllm(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """A list of texts to vLLM's ``/classify``."""
    texts = [whole_text(tokenizer, messages) for messages in conversations]
    data = post(f"{url}/classify", {"model": MODEL, "input": texts})["data"]
    assert {(each["label"], each["num_classes"]) for each in data} == {("LABEL_0", 1)}
    return [each["probs"][0] for each in sorted(data, key=lambda each: each["index"])]


def ask_vllm_messages(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """Messages to vLLM's ``/classify``."""
    bodies = [{"model": MODEL, "messages": messages} for messages in conversations]
    return [post(f"{url}/classify", body)["data"][0]["probs"][0] for body in bodies]


def ask_vllm_pooling(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """Token ids to vLLM's ``/pooling``."""
    ids = [
        tokenizer(whole_text(tokenizer, messages), add_special_tokens=False)["input_ids"]
        for messages in conversations
    ]
    data = post(f"{url}/pooling", {"model": MODEL, "input": ids})["data"]
    return [each["data"][0] for each in sorted(data, key=lambda each: each["index"])]


def ask_openai(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """OpenAI's client, which asks for base64 unless told otherwise."""
    texts = [whole_text(tokenizer, messages) for messages in conversations]
    body = {"model": MODEL, "input": texts, "encoding_format": "base64"}
    data = post(f"{url}/v1/embeddings", body)["data"]
    return [struct.unpack("<f", base64.b64decode(each["embedding"]))[0] for each in data]


def ask_sglang(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """A list of texts to SGLang's ``/classify``."""
    texts = [whole_text(tokenizer, messages) for messages in conversations]
    return [
        each["embedding"][0] for each in post(f"{url}/classify", {"model": MODEL, "text": texts})
    ]


def ask_llama_factory(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """LLaMA-Factory's API."""
    texts = [whole_text(tokenizer, messages) for messages in conversations]
    body = {"model": MODEL, "messages": texts, "max_length": 4096}
    answer = post(f"{url}/v1/score/evaluation", body)
    assert answer["object"] == "score.evaluation"
    return list(answer["scores"])


def ask_slime(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """slime's ``--rm-url``, one sample a request; the response ends with the stop token."""
    stop = stop_token(tokenizer)
    end = "" if stop is None else str(tokenizer.convert_ids_to_tokens(stop))
    found = []
    for messages in conversations:
        prompt, response = prompt_text(tokenizer, messages), messages[-1]["content"] + end
        body = {"prompt": prompt, "response": response, "label": "42"}
        found.append(post(f"{url}/reward", body))
    return found


def ask_slime_messages(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """The same with prompts that are messages."""
    stop = stop_token(tokenizer)
    end = "" if stop is None else str(tokenizer.convert_ids_to_tokens(stop))
    bodies = [
        {"prompt": messages[:-1], "response": messages[-1]["content"] + end, "label": None}
        for messages in conversations
    ]
    return [post(f"{url}/reward", body) for body in bodies]


def ask_rm_ray(
    url: str, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[float]:
    """The project's own route, one prompt and response a request."""
    bodies = [
        {"messages": messages[:-1], "responses": [messages[-1]["content"]]}
        for messages in conversations
    ]
    return [post(f"{url}/v1/rewards", body)["rewards"][0] for body in bodies]


CLIENTS: Mapping[str, Ask] = {
    "OpenRLHF": ask_openrlhf,
    "OpenRLHF, unfinished responses": ask_openrlhf_unfinished,
    "verl on vLLM": ask_verl_vllm,
    "verl on vLLM 0.11.2": ask_verl_vllm_newer,
    "verl on SGLang": ask_verl_sglang,
    "vLLM, texts": ask_vllm,
    "vLLM, messages": ask_vllm_messages,
    "vLLM pooling, token ids": ask_vllm_pooling,
    "OpenAI's client": ask_openai,
    "SGLang": ask_sglang,
    "LLaMA-Factory": ask_llama_factory,
    "slime": ask_slime,
    "slime, messages": ask_slime_messages,
    "rm_ray": ask_rm_ray,
}
