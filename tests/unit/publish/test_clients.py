"""The program that scores an export with only transformers, run in this process."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_ray.publish import clients


@pytest.fixture
def ask(exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the program on the exported model; return its answer."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["clients.py", str(exported)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked)))
        assert clients.main() == 0
        return json.loads(capsys.readouterr().out)

    return answer


def test_every_client_returns_the_models_rewards(ask, exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    texts = [f"What is {'much ' * i}more than {i}?" for i in range(10)]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([each])).logits.item() for each in ids]

    answer = ask({"ids": ids, "conversations": []})

    assert set(answer) == {"alone", "padded batch", "pipeline", "conversations"}
    for client in ("alone", "padded batch", "pipeline"):
        assert answer[client] == pytest.approx(expected, abs=1e-5), client


def test_conversations_come_back_as_the_templates_ids(ask, exported):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    answer = ask({"ids": [[5, 6]], "conversations": [messages]})
    assert answer["conversations"] == [tokenizer.apply_chat_template(messages, return_dict=False)]


def test_the_pipeline_is_skipped_for_ids_that_no_text_tokenizes_to(ask, exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    whole = tokenizer("Hello there")["input_ids"]
    split = [i for letter in "Hello there" for i in tokenizer(letter)["input_ids"]]
    assert split != whole
    answer = ask({"ids": [whole, split], "conversations": []})
    assert [reward is None for reward in answer["pipeline"]] == [False, True]
    assert None not in answer["alone"]
