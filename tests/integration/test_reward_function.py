"""TRL's GRPOTrainer learns from a server's rewards."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from reward_loopback import reward_of, serving_rewards
from tokenized_groups import template_ids
from transformers import LlamaConfig, LlamaForCausalLM

from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.scoring.reward_function import RewardFunction, reward_function

QUESTIONS = ("What colour is snow?", "Can you help me with my taxes?")


@pytest.mark.slow
def test_grpo_trains_on_the_rewards_of_a_server(tmp_path: Path):
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = load_tokenizer("builtin")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    policy = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **tokens))
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    seen: list[tuple[Any, float]] = []

    class Recorded(RewardFunction):
        def __call__(self, prompts: Any, completions: Any, *args: Any, **columns: Any) -> Any:
            rewards = super().__call__(prompts, completions, *args, **columns)
            seen.extend(zip(map(list.__add__, prompts, completions), rewards, strict=True))
            return rewards

    with serving_rewards(tokenizer) as url:
        trainer = GRPOTrainer(
            model=policy,
            processing_class=tokenizer,
            reward_funcs=[Recorded(url=url, name="recorded"), reward_function(url)],
            args=GRPOConfig(
                output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_steps=2,
                per_device_train_batch_size=4, num_generations=4, max_completion_length=8,
                logging_steps=1, save_strategy="no",
            ),
            train_dataset=Dataset.from_dict({"prompt": prompts * 4}),
        )  # fmt: skip
        trainer.train()

    assert len(seen) == 8
    for messages, reward in seen:
        assert reward == reward_of(template_ids(tokenizer, messages))
    logged = [entry for entry in trainer.state.log_history if "rewards/rm_ray/mean" in entry]
    means = [sum(reward for _, reward in seen[i : i + 4]) / 4 for i in (0, 4)]
    assert [e["rewards/rm_ray/mean"] for e in logged] == pytest.approx(means, abs=1e-5)
    assert [e["rewards/recorded/mean"] for e in logged] == pytest.approx(means, abs=1e-5)
