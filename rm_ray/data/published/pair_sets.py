"""Published sets whose columns are those of the documented form."""

from __future__ import annotations

from rm_ray.data.published.published_form import PublishedForm, Row, words


def read_skywork(row: Row) -> Row:
    """Read Skywork/Skywork-Reward-Preference-80K (arXiv:2410.18451): pairs of conversations."""
    return {"chosen": row["chosen"], "rejected": row["rejected"]}


SKYWORK = PublishedForm(
    name="skywork",
    dataset="Skywork/Skywork-Reward-Preference-80K-v0.2",
    columns=("chosen", "rejected"),
    read=read_skywork,
    is_found=False,
)


def read_tulu3(row: Row) -> Row:
    """Read Tulu 3's preference mixtures (allenai, arXiv:2411.15124): pairs of conversations."""
    return {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}


TULU3 = PublishedForm(
    name="tulu3",
    dataset="allenai/llama-3.1-tulu-3-8b-preference-mixture",
    columns=("prompt", "chosen", "rejected"),
    read=read_tulu3,
    harmless=words("id chosen_model rejected_model chosen_rating rejected_rating"),
    is_found=False,
)


def read_reward_bench_2(row: Row) -> Row:
    """Read allenai/reward-bench-2 (arXiv:2506.01937): each right response beats each wrong one."""
    return {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}


REWARD_BENCH_2 = PublishedForm(
    name="reward_bench_2",
    dataset="allenai/reward-bench-2",
    columns=("prompt", "chosen", "rejected", "num_correct", "num_incorrect", "total_completions"),
    read=read_reward_bench_2,
    optional=words("num_correct num_incorrect total_completions"),
    harmless=words("id models subset additional_metadata"),
)
