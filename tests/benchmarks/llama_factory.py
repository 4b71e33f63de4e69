"""LLaMA-Factory's PairwiseTrainer in the race, with its own loader, collator and value head.

It wants transformers up to 5.6, but text runs with the newer one of this project too, so that its
packages alone are installed beside it: as many tokens meet the same kernels as everywhere else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pair_set import PairSet
from turns import Turn, steps_as_turns

if TYPE_CHECKING:
    from peers import Peer

PACKAGES = (
    "llamafactory==0.9.5", "trl==0.24.0", "omegaconf==2.4.0", "antlr4-python3-runtime==4.9.3",
    "fire==0.7.1", "termcolor==3.3.0",
)  # fmt: skip
"""What it needs beyond this project's packages; its own range of TRL ends at 0.24."""


def install(folder: Path) -> Path:
    """Install its packages into a folder of their own; text needs nothing of ``torchaudio``."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, f"--target={folder}", *PACKAGES], check=True, stdout=sys.stderr)
    (folder / "torchaudio.py").touch()
    return folder


def write_value_head(start: Path, folder: Path) -> Path:
    """Write the start weights as it reads them: a causal model, and the head in another file.

    The head's bias starts at 0 and cancels out of every margin. Its dropout, 0.1 by default, is
    off, since no other trainer has one.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(start, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "summary_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    weight = load_file(folder / "model.safetensors")["score.weight"]
    head = {"v_head.summary.weight": weight.clone(), "v_head.summary.bias": weight.new_zeros(1)}
    save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
    return folder


def train_with_llamafactory(peer: Peer, turn: Turn) -> None:
    """Take turns of one step of its trainer."""
    sys.path[:0] = [peer.packages]
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from datasets import Dataset
    from llamafactory.data import PairwiseDataCollatorWithPadding, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer
    from llamafactory.train.rm.trainer import PairwiseTrainer

    with tempfile.TemporaryDirectory(prefix="rm_ray-llamafactory-") as folder:
        given = {
            "stage": "rm",
            "finetuning_type": "full",
            "do_train": True,
            "model_name_or_path": peer.model,
            "template": "default",
            "dataset": "none",
            "output_dir": folder,
            "per_device_train_batch_size": peer.batch,
            "gradient_accumulation_steps": peer.pairs_per_step // peer.batch,
            "disable_gradient_checkpointing": not peer.recomputes,
            "num_train_epochs": 1,
            "learning_rate": peer.learning_rate,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": peer.max_grad_norm,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_shuffling": True,
            "disable_tqdm": True,
            "remove_unused_columns": False,
        }
        of_model, of_data, of_training, of_tuning, _ = get_train_args(given)
        readers = load_tokenizer(of_model)
        template = get_template_and_fix_tokenizer(readers["tokenizer"], of_data)
        model = load_model(readers["tokenizer"], of_model, of_tuning, True, add_valuehead=True)
        trainer = PairwiseTrainer(
            model=model,
            args=of_training,
            finetuning_args=of_tuning,
            data_collator=PairwiseDataCollatorWithPadding(
                template=template, model=model, pad_to_multiple_of=8, **readers
            ),
            callbacks=[steps_as_turns(turn, pairs=peer.pairs_per_step)],
            train_dataset=Dataset.from_list(rows_of(PairSet.load(Path(peer.pairs)))),
            **readers,
        )
        trainer.train()


def rows_of(pairs: PairSet) -> list[dict[str, list[int] | None]]:
    """Return the pairs as its collator takes them."""
    tokens = pairs.gather(np.arange(len(pairs.pairs)))
    rows = []
    for i in range(len(tokens)):
        row: dict[str, list[int] | None] = dict.fromkeys(("images", "videos", "audios"))
        for k, side in enumerate(("chosen", "rejected")):
            ids = tokens.conversation(i, k).tolist()
            row[f"{side}_input_ids"] = row[f"{side}_labels"] = ids
            row[f"{side}_attention_mask"] = [1] * len(ids)
        rows.append(row)
    return rows
