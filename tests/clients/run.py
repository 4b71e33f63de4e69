"""Real clients of exported models, each in its own environment, beside our own packed scorer.

Prints a table in Markdown: the largest difference of a reward, by client and model. Fails where one
is above its tolerance or a client does not run. Environments and logs are below ``.clients``.

    bash tests/clients.sh [transformers transformers4 trl rewardbench vllm]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from servers import end  # noqa: E402
from tables import SHARED_DATA  # noqa: E402
from transformers import AutoConfig  # noqa: E402
from transformers.utils import logging  # noqa: E402

from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.data.sources.synthetic import generate_pairs  # noqa: E402
from rm_ray.data.tokens.conversation_tokenizer import ConversationTokenizer  # noqa: E402
from rm_ray.data.tokens.tokenizer import load_tokenizer  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.model.export import check_exportable, export_model  # noqa: E402
from rm_ray.scoring.scorer import Scorer  # noqa: E402

HERE = Path(__file__).resolve().parent
FOLDER = ROOT / ".clients"
MAX_LENGTH = 4096
SIDES = ("chosen", "rejected")
TIMEOUT_S = 1800

Pair = dict[str, Any]


@dataclass(frozen=True)
class Client:
    """A script that scores conversations with nothing of the project's own."""

    script: str
    requirements: str | None
    """What it is given; None is the project's environment."""
    removed: tuple[str, ...] = ()
    """Packages that are removed again: of pictures and sound, and not everywhere built for CPUs."""


CLIENTS = {
    "transformers": Client("with_transformers.py", None),
    "transformers4": Client("with_transformers.py", "transformers4.txt"),
    "trl": Client("with_trl.py", "trl.txt"),
    "rewardbench": Client("with_rewardbench.py", "rewardbench.txt"),
    "vllm": Client("with_vllm.py", "vllm.txt", removed=("torchvision", "torchaudio", "torchcodec")),
}


@dataclass(frozen=True)
class Model:
    """A model under test, with rotary settings that no client takes by default."""

    tokenizer: str
    dtype: torch.dtype
    tolerance: float
    architecture: dict[str, Any] = field(default_factory=dict)


_LLAMA = {
    "model_type": "llama",
    "num_key_value_heads": 1,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
    },
}  # fmt: skip
_NEOX = {
    "model_type": "gpt_neox",
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 50_000.0, "partial_rotary_factor": 0.5,
    },
}  # fmt: skip
MODELS = {
    "Llama float32": Model("tokenizer_bpe4k", torch.float32, 1e-4, _LLAMA),
    "GPT-NeoX float32": Model("tokenizer_neox", torch.float32, 1e-4, _NEOX),
    # our own rewards are 0.05 off those of float32 arithmetic on the same weights: twice that
    "Llama bfloat16": Model("tokenizer_bpe4k", torch.bfloat16, 1e-1, _LLAMA),
}


@dataclass(frozen=True)
class Subject:
    """An exported model in its folder, with conversations and the rewards that we give them."""

    folder: Path
    rewards: np.ndarray
    """Of chosen and rejected conversations by turns."""

    def differences(self, result: dict[str, Any]) -> dict[str, tuple[int, float]]:
        """Return for each way of a client how many conversations it scored, and how far off."""
        found = {}
        for way, values in result["rewards"].items():
            theirs = np.array(values, dtype=float)
            there = ~np.array([value is None for value in values])
            found[way] = int(there.sum()), float(np.abs(theirs - self.rewards)[there].max())
        margins = self.rewards[::2] - self.rewards[1::2]
        ours = {
            "accuracy": (margins > 0).mean(),
            "loss": np.logaddexp(0, -margins).mean(),
            "margin": margins.mean(),
        }
        for way, theirs in result.get("evaluations", {}).items():
            off = max(abs(theirs[name] - value) for name, value in ours.items())
            found[f"{way}: {', '.join(ours)}"] = len(self.rewards), float(off)
        return found


def choose_pairs(count_each: int = 4) -> list[Pair]:
    """Return pairs of every kind: with a system prompt, of many turns, not ASCII, long, short."""
    if not SHARED_DATA.exists():
        rows = list(generate_pairs("test", 6 * count_each))
        talk = [message for row in rows for message in row["chosen"]]
        system = {"role": "system", "content": "Answer in one sentence."}
        return [
            {side: [system] * (i % 3 == 0) + talk[: 2 * i] + row[side] for side in SIDES}
            for i, row in enumerate(rows)
        ]
    lines = (SHARED_DATA / "eval.jsonl").read_text().splitlines()
    left = [json.loads(line) for line in lines]

    def text(row: Pair) -> str:
        return "".join(message["content"] for message in row["chosen"])

    kinds: tuple[Callable[[Pair], bool], ...] = (
        lambda row: row["chosen"][0]["role"] == "system",
        lambda row: len(row["chosen"]) >= 8,
        lambda row: sum(ord(letter) > 0x2000 for letter in text(row)) > 50,
        lambda row: len(text(row)) > 4000,
        lambda row: len(text(row)) < 200,
        lambda row: True,
    )
    chosen: list[Pair] = []
    for kind in kinds:
        some = list(islice(filter(kind, left), count_each))
        left = [row for row in left if row not in some]
        chosen += some
    return chosen


def make(name: str, model: Model, pairs: list[Pair]) -> Subject:
    """Export a model of random weights and score the pairs with it."""
    folder = FOLDER / "models" / name.lower().replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    place = SHARED_DATA / model.tokenizer
    tokenizer = load_tokenizer(str(place) if place.exists() else "builtin")
    architecture = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,  # of 64 each: vLLM's kernel for CPUs takes no smaller ones
        "max_position_embeddings": MAX_LENGTH,
        "vocab_size": len(tokenizer),
        "initializer_range": 0.1,  # large, so that attention is far from even
        **model.architecture,
    }
    config = folder / "architecture.json"
    config.write_text(json.dumps(architecture))
    reward_model = build_reward_model(ModelConfig(name_or_path=str(config)), tokenizer, seed=0)
    place = folder / "model"
    export_model(reward_model, reward_model.state_dict(), tokenizer, place, dtype=model.dtype)
    check_exportable(AutoConfig.from_pretrained(place), tokenizer)

    conversations = [row[side] for row in pairs for side in SIDES]
    (folder / "conversations.json").write_text(json.dumps(conversations))
    scorer = Scorer.load(str(place), device=torch.device("cpu"), tokens_per_forward=16_384)
    assert scorer.collator.layout == "packed"
    ids = ConversationTokenizer(scorer.tokenizer, max_length=MAX_LENGTH).tokenize(conversations)
    assert all(isinstance(one, list) for one in ids), "a conversation is refused"
    scored = scorer.score([ids[i : i + 2] for i in range(0, len(ids), 2)])
    rewards = np.concatenate(scored).astype(float)
    print(f"{name}: {len(rewards)} conversations of {min(map(len, ids))} to {max(map(len, ids))} "
          f"tokens, rewards {rewards.mean():+.2f} ± {rewards.std():.2f}")  # fmt: skip
    assert rewards.std() > 5 * model.tolerance, "a wrong reward could pass"
    return Subject(folder, rewards)


def interpreter(name: str, client: Client) -> str:
    """Return the Python of a client's environment, which is made where it is missing or old."""
    if client.requirements is None:
        return sys.executable
    folder, stamp = FOLDER / name, FOLDER / name / ".installed"
    files = HERE / "requirements" / client.requirements, HERE / "requirements" / "constraints.txt"
    wanted = "".join(file.read_text() for file in files)
    python = str(folder / "bin" / "python")
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"== installing {client.requirements} (some minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(files[0]), "-c", str(files[1])], check=True)
        if client.removed:
            subprocess.run([*pip[:3], "uninstall", "-q", "-y", *client.removed], check=True)
        stamp.write_text(wanted)
    return python


def run(client: Client, python: str, folder: Path) -> dict[str, Any]:
    """Let a client score the conversations of a folder; return what it wrote."""
    result, log = folder / "result.json", folder / f"{client.script}.log"
    result.unlink(missing_ok=True)
    alone = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    environment = os.environ | alone
    environment.pop("PYTHONPATH", None)
    command = [python, str(HERE / client.script), str(folder)]
    with log.open("w") as written:
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=written)
    try:
        status = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        end(process)  # and its server
        raise
    if status:
        raise OSError(f"status {status}; see {log}")
    return json.loads(result.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="client", help=", ".join(CLIENTS))
    names = parser.parse_args().clients or list(CLIENTS)
    if unknown := set(names) - set(CLIENTS):
        parser.error(f"no such client: {', '.join(unknown)}; there are {', '.join(CLIENTS)}")
    logging.disable_progress_bar()
    pairs = choose_pairs()
    subjects = {name: make(name, model, pairs) for name, model in MODELS.items()}
    cells: dict[tuple[str, str], dict[str, tuple[int, float]]] = {}
    failed = False
    for name in names:
        client = CLIENTS[name]
        for title, subject in subjects.items():
            began = time.monotonic()
            try:
                result = run(client, interpreter(name, client), subject.folder)
            except (subprocess.SubprocessError, OSError) as error:
                print(f"{name} did not run on {title}: {error}")
                cells.setdefault((name, "-"), {})
                continue
            print(f"{name} on {title}: {time.monotonic() - began:.0f} s", flush=True)
            for way, found in subject.differences(result).items():
                cells.setdefault((result["version"], way), {})[title] = found

    heads = [f"{title} (≤ {model.tolerance:g})" for title, model in MODELS.items()]
    print(f"\n| client | way | conversations | {' | '.join(heads)} | verdict |")
    print("|---" * (4 + len(heads)) + "|")
    for (version, way), row in cells.items():
        counts = ", ".join(sorted({str(count) for count, _ in row.values()}))
        found = " | ".join(f"{row[title][1]:.1e}" if title in row else "none" for title in MODELS)
        if set(row) != set(MODELS):
            verdict = "DID NOT RUN"
        else:  # a reward that is no number is not the same either
            same = all(row[title][1] <= model.tolerance for title, model in MODELS.items())
            verdict = "same" if same else "DIFFERS"
        failed |= verdict != "same"
        print(f"| {version} | {way} | {counts} | {found} | {verdict} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
