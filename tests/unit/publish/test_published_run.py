"""A finished run on the loopback Hub, from the gate to the snippet of its card."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from made_run import make_run

from rm_ray.commands.publish import publish_summary
from rm_ray.publish.card import IMAGE
from rm_ray.publish.finish import finish_publishing
from rm_ray.scoring.scorer import Scorer

pytestmark = pytest.mark.usefixtures("clients_here")

REPO = "someone/rewards"


def test_a_finished_run_is_published_with_its_best_on_main(endpoint, contents, tmp_path):
    """From checkpoints to a card whose snippet runs as written."""
    made = make_run(tmp_path, last_step=30, every="final", private=False)
    for step in (10, 20, 30):
        made.save(step)
    made.finish(best_step=20)
    published = finish_publishing(made.folder)
    assert published.is_complete, published
    assert published.main == "step-00000020"
    tags = {ref.name for ref in HfApi(endpoint=endpoint).list_repo_refs(REPO).tags}
    assert tags == {"step-00000020", "step-00000030"}
    assert "main              step-00000020" in publish_summary(
        published, made.folder, made.config.hub
    )
    main, last = contents(REPO, "main"), contents(REPO, "step-00000030")
    export = {path.name: path.read_bytes() for path in (Path(made.folder) / "export").iterdir()}
    assert last == export | {name: last[name] for name in ("README.md", IMAGE)}
    assert "step 30, the last of the run." in last["README.md"].decode()
    assert main["model.safetensors"] == contents(REPO, "step-00000020")["model.safetensors"]
    assert main["model.safetensors"] != last["model.safetensors"]
    card = ModelCard(main["README.md"].decode())
    snippet = re.search(r"```python\n(.*?)```", card.text, re.S)[1]
    assert [path.name for path in sorted(Path(made.folder).glob("checkpoint_*"))] == [
        "checkpoint_00000020_0001",
        "checkpoint_00000030_0001",
    ]  # the last and the best; the third was kept only for the Hub
    assert "This is step 20 of 30, the best by `eval/rm/loss`." in card.text
    for name, data in main.items():
        path = Path(made.folder) / "main" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "PATH": "",
                   "HF_TOKEN": "hf_loopback", "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", snippet], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.endswith("A spider has eight legs.")
    assert second.endswith("Legs are fun!")
    printed = [float(line.split()[0]) for line in (first, second)]
    scorer = Scorer.load(
        str(Path(made.folder) / "main"), device=torch.device("cpu"), tokens_per_forward=1000
    )
    question = {"role": "user", "content": "How many legs does a spider have?"}
    conversations = [
        [question, {"role": "assistant", "content": content}]
        for content in ("A spider has eight legs.", "Legs are fun!")
    ]
    (expected,) = scorer.score(
        [[scorer.tokenizer.apply_chat_template(each, return_dict=False) for each in conversations]]
    )
    assert printed == pytest.approx(expected.tolist(), abs=1e-3)
    assert printed[0] != printed[1]


def test_publishing_elsewhere_keeps_checkpoints_for_the_runs_own_repository(endpoint, tmp_path):
    made = make_run(tmp_path, last_step=40, every="checkpoint", private=False)
    for step in (10, 20, 30, 40):
        made.save(step)
    made.finish(best_step=40)
    elsewhere = replace(made.config.hub, repo_id="someone/copy", every="final")
    assert finish_publishing(made.folder, elsewhere).is_complete
    assert len(list(Path(made.folder).glob("checkpoint_*"))) == 4
