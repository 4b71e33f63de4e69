"""Each client's own way to ask, over HTTP: the rewards of the template's ids."""

import json
import subprocess

import pytest
from framed_tokenizers import TOKENIZERS
from pages import REQUESTS, read_blocks
from reward_clients import CLIENTS, prompt_text, whole_text
from reward_loopback import reward_of, serving_rewards
from tokenized_groups import template_ids

from rm_ray.serving.protocols.routes import ROUTES

CONVERSATIONS = [
    [{"role": "user", "content": "What colour is snow?"},
     {"role": "assistant", "content": "Snow is white."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
     {"role": "assistant", "content": "So."}, {"role": "user", "content": "哪里?"},
     {"role": "assistant", "content": "Là-bas 🙂"}],
]  # fmt: skip


def continues(name: str) -> bool:
    """Whether a policy that is given the prompt's text writes on as the template does."""
    tokenizer, messages = TOKENIZERS[name], CONVERSATIONS[0]
    return whole_text(tokenizer, messages).startswith(prompt_text(tokenizer, messages) + "Snow")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_client_is_answered_with_the_rewards_of_the_templates_ids(name: str):
    tokenizer = TOKENIZERS[name]
    expected = [reward_of(template_ids(tokenizer, messages)) for messages in CONVERSATIONS]
    with serving_rewards(tokenizer) as url:
        for client, ask in CLIENTS.items():
            if client.startswith(("OpenRLHF", "slime")) and not continues(name):
                continue
            assert ask(url, tokenizer, CONVERSATIONS) == expected, client


def test_the_commands_of_the_pages_are_answered_with_rewards():
    lines = [
        line
        for page in REQUESTS
        for block in read_blocks(page)
        for line in block.script.splitlines()
    ]
    with serving_rewards(TOKENIZERS["builtin"]) as url:
        for line in lines:
            command = line.replace("http://127.0.0.1:8000", url)
            assert command != line
            run = ["bash", "-euo", "pipefail", "-c", command]
            found = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
            assert "error" not in str(found), line
    assert len(lines) == len(ROUTES) + 2
