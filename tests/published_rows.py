"""Rows in the schemas of published preference sets, with texts of ours."""

from typing import Any

Row = dict[str, Any]

Q, A, B = "Why is it so?", "So it is.", "It is not."

USER = {"role": "user", "content": Q}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def completion(text: str, score: float) -> Row:
    rating = {"Rating": "4", "Rationale": "It is clear to me."}
    return {
        "model": "gpt-4",
        "principle": "honesty",
        "custom_system_prompt": "You are an honest assistant who says so.",
        "response": text,
        "annotations": {"helpfulness": rating, "honesty": rating},
        "critique": "It could be longer than it is.",
        "fine-grained_score": 4.5,
        "overall_score": score,
    }


ATTRIBUTES = {"helpfulness": 4, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}

ROWS: dict[str, Row] = {
    "ultrafeedback": {
        "source": "evol_instruct", "instruction": Q, "models": ["gpt-4", "alpaca-7b", "bard"],
        "completions": [completion(A, 8.5), completion(B, 2.0), completion("Perhaps.", 8.5)],
        "correct_answers": ["None"], "incorrect_answers": ["None"],
    },
    "helpsteer2": {"prompt": Q, "response": A, **ATTRIBUTES},
    "helpsteer2_preference": {
        "split": "train", "prompt": Q, "response_1": A, "response_2": B, "preference_strength": -2,
        "preference_statement": "Response 1 is better than Response 2.",
        "preference_elaboration": "It says what is asked for.",
        "three_most_similar_preferences": [{"statement": "A is better.", "strength": -2}],
        "all_preferences_unprocessed": [{"strength": -2, "justification": "It is better."}],
    },
    "helpsteer3": {
        "domain": "general", "language": "english", "context": [USER], "response1": A,
        "response2": B, "overall_preference": -2,
        "individual_preference": [{"score": -2, "reasoning": "It is better.",
                                   "feedback1": "It is clear.", "feedback2": "It is not."}],
    },
    "nectar": {
        "prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "turns": 1, "num_responses": 3,
        "source": ["lmsys-chat-1m"], "good_natured": True,
        "answers": [{"answer": A, "model": "gpt-4", "rank": 1.0},
                    {"answer": B, "model": "gpt-3.5-turbo", "rank": 2.0},
                    {"answer": "Perhaps.", "model": "llama-2-7b-chat", "rank": 3.0}],
    },
    "pku_saferlhf": {
        "prompt": Q, "response_0": B, "response_1": A, "prompt_source": "BeaverTails",
        "response_0_source": "Alpaca-7B", "response_1_source": "Alpaca-7B",
        "is_response_0_safe": True, "is_response_1_safe": False,
        "response_0_harm_category": {"Animal Abuse": False, "Drugs": False},
        "response_1_harm_category": {"Animal Abuse": True, "Drugs": False},
        "response_0_severity_level": 0, "response_1_severity_level": 2, "better_response_id": 1,
        "safer_response_id": 0, "response_0_sha256": "0a", "response_1_sha256": "0b",
    },
    "arena_55k": {
        "id": 30192, "model_a": "gpt-4-1106-preview", "model_b": "gpt-4-0613",
        "prompt": '["Why is it so?"]', "response_a": '["It is not."]',
        "response_b": '["So it is."]', "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0,
    },
    "arena_100k": {
        "question_id": "58210e39", "model_a": "gpt-4-turbo", "model_b": "claude-3-opus",
        "winner": "model_a", "conversation_a": [USER, said(A)], "conversation_b": [USER, said(B)],
        "turn": 1, "anony": True, "language": "English", "tstamp": 1.7e9, "is_code": False,
        "conv_metadata": {"sum_user_tokens": 4, "context_a_tokens": 1}, "is_refusal": False,
        "dedup_tag": {"high_freq": False, "sampled": True}, "judge_hash": "cf1b",
        "category_tag": {"math_v0.1": {"math": False}},
    },
    "webgpt": {
        "question": {"dataset": "eli5", "full_text": Q, "id": "2v2v5s"},
        "quotes_0": {"title": ["A page (site.org)"], "extract": ["It is said to be so."]},
        "quotes_1": {"title": [], "extract": []}, "answer_0": A, "answer_1": B,
        "tokens_0": {"prefix": [1, 2], "completion": [3]},
        "tokens_1": {"prefix": [1, 2], "completion": [4]}, "score_0": 0.25, "score_1": -0.25,
    },
    "shp": {
        "post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": Q,
        "c_root_id_A": "hkh25sc", "c_root_id_B": "hkh25lp", "created_at_utc_A": 1636822112,
        "created_at_utc_B": 1636822110, "score_A": 340, "score_B": 166, "human_ref_A": A,
        "human_ref_B": B, "labels": 1, "seconds_difference": 2.0, "score_ratio": 2.05,
    },
    "summarize_from_feedback": {
        "info": {"id": "t3_2vwp1w", "post": "It is so.", "title": "Why?", "subreddit": "AskReddit",
                 "site": None, "article": None},
        "summaries": [{"text": B, "policy": "sup2", "note": None},
                      {"text": A, "policy": "ref", "note": "Clear to me."}],
        "choice": 1, "worker": "HNzkrs9g", "batch": "batch0", "split": "train",
        "extra": {"confidence": None},
    },
    "stack_exchange": {
        "qid": 4, "question": Q, "date": "2008/07/31", "response_j": A, "response_k": B,
        "metadata": ["https://stackoverflow.com/questions/4", "https://stackoverflow.com"],
    },
    "skywork": {"chosen": [USER, said(A)], "rejected": [USER, said(B)], "source": "magpie_pro"},
    "tulu3": {
        "id": "ai2-1", "source": "off-policy", "prompt": Q, "chosen": [USER, said(A)],
        "rejected": [USER, said(B)], "chosen_model": "gpt-4", "rejected_model": "tulu-2-7b",
    },
    "reward_bench_2": {
        "id": "12", "prompt": Q, "chosen": [A], "rejected": [B, "Perhaps.", "Who knows?"],
        "num_correct": 1, "num_incorrect": 3, "total_completions": 4, "subset": "Factuality",
        "models": ["gpt-4", "claude", "llama", "qwen"],
        "additional_metadata": {"method": "A human check of it all", "category": "None"},
    },
}  # fmt: skip
