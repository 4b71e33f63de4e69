"""What TRL makes of a reward model: RewardTrainer's evaluation, and GRPO's rewards."""

import json
import sys
from pathlib import Path

import torch
import trl
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

BATCH_SIZE = 8
"""Divides the pairs: TRL averages over batches."""


def main(folder: Path) -> None:
    conversations = json.loads((folder / "conversations.json").read_text())
    model = str(folder / "model")
    dtype = json.loads((folder / "model" / "config.json").read_text())["dtype"]
    on_cpu = {"use_cpu": True, "bf16": False, "report_to": []}
    pairs = Dataset.from_dict({"chosen": conversations[::2], "rejected": conversations[1::2]})
    evaluated = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(folder / "trl-reward"),
            per_device_eval_batch_size=BATCH_SIZE,
            eval_strategy="steps",
            max_length=None,
            model_init_kwargs={"dtype": dtype},
            **on_cpu,
        ),
        train_dataset=pairs,
        eval_dataset=pairs,
    ).evaluate()

    prompts = [messages[:-1] for messages in conversations]
    completions = [messages[-1:] for messages in conversations]
    policy = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    trainer = GRPOTrainer(
        model=policy,
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=model,
        args=GRPOConfig(
            output_dir=str(folder / "trl-grpo"), model_init_kwargs={"dtype": dtype}, **on_cpu
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )
    # what `train` calls with the completions that the policy generates
    inputs = [{"prompt": prompt} for prompt in prompts]
    rewards = torch.cat(
        [
            trainer._calculate_rewards(inputs[part], prompts[part], completions[part], None)[:, 0]
            for part in (slice(i, i + BATCH_SIZE) for i in range(0, len(prompts), BATCH_SIZE))
        ]
    )
    result = {
        "version": f"TRL {trl.__version__}",
        "rewards": {f"GRPOTrainer, padded batches of {BATCH_SIZE}": rewards.tolist()},
        "evaluations": {
            "RewardTrainer.evaluate": {
                n: evaluated[f"eval_{n}"] for n in ("accuracy", "loss", "margin")
            }
        },
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
