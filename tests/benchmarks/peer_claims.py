"""What the table of peers says about each trainer, and the text of its files that proves it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A trainer of reward models, at the version that the table is about."""

    title: str
    """What heads its column."""
    package: str = ""
    """Its name on PyPI; empty where it is not there, and its files are then not checked."""
    version: str = ""
    """The release, or the commit."""
    not_timed: str = ""
    """Why its speed was not measured."""
    stand_in: str = ""
    """Whose speed is shown instead: batches like its own, trained by rm_ray."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A line of a trainer's file, or a word that the file does not have."""

    file: str
    text: str = ""
    absent: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One cell of the table."""

    aspect: str
    trainer: str
    cell: str
    proofs: tuple[Proof, ...]


def has(file: str, *texts: str) -> tuple[Proof, ...]:
    """Return proofs that a file has each of some texts."""
    return tuple(Proof(file=file, text=text) for text in texts)


def lacks(file: str, word: str) -> tuple[Proof, ...]:
    """Return the proof that a file does not have a word."""
    return (Proof(file=file, absent=word),)


OURS = "rm_ray"

UNSHARED = "unshared"
"""Pairs packed as OpenRLHF and Megatron pack them, each prefix twice, but trained by rm_ray."""

TRAINERS = {
    OURS: Trainer(title="rm_ray"),
    "trl": Trainer(title="TRL 1.16", package="trl", version="1.16.0"),
    "openrlhf": Trainer(
        title="OpenRLHF 0.11", package="openrlhf", version="0.11.2", not_timed="needs CUDA",
        stand_in=UNSHARED,
    ),
    "open-instruct": Trainer(title="open-instruct", version="e6c3044aa"),
    "ms-swift": Trainer(
        title="ms-swift 4.6", package="ms-swift", version="4.6.0",
        not_timed="needs TRL before 1.0",
    ),
    "llamafactory": Trainer(
        title="LLaMA-Factory 0.9.5", package="llamafactory", version="0.9.5",
        not_timed="needs packages of its own",
    ),
}  # fmt: skip
"""By the name that figures and claims give them, in the order of the columns."""

FLASH_PREFERENCE = Trainer(title="flash-preference", package="flash-pref", version="0.1.1")

RELEASES = {**TRAINERS, "flash-pref": FLASH_PREFERENCE}
"""Those whose files claims are about."""

BATCH, OVER_LONG, CRASH = "a batch", "a pair that is too long", "after a crash"
ACCURACY, LISTS, LENGTH = "evaluation accuracy", "ranked lists", "one long sequence over GPUs"
EXPERTS, IMAGES, ADAPTERS = "load-balancing loss for experts", "images", "LoRA / on a 4-bit base"

ASPECTS = (BATCH, OVER_LONG, CRASH, ACCURACY, LISTS, LENGTH, EXPERTS, IMAGES, ADAPTERS)
ON_FIRST_PAGE = (BATCH, CRASH, ACCURACY, LISTS, LENGTH, EXPERTS, IMAGES)

_TRL, _TRL_CONFIG = "trl/trainer/reward_trainer.py", "trl/trainer/reward_config.py"
_RLHF, _RLHF_CLI = "openrlhf/trainer/rm_trainer.py", "openrlhf/cli/train_rm.py"
_RLHF_DATA, _RLHF_DS = (
    "openrlhf/datasets/reward_dataset.py",
    "openrlhf/utils/deepspeed/deepspeed.py",
)
_AI2, _AI2_EVAL = "open_instruct/reward_modeling.py", "open_instruct/reward_modeling_eval.py"
_AI2_DATA = "open_instruct/dataset_transformation.py"
_SWIFT, _SWIFT_ARGS = "swift/rlhf_trainers/reward_trainer.py", "swift/arguments/rlhf_args.py"
_SWIFT_TEMPLATE = "swift/template/base.py"
_SWIFT_TEMPLATE_ARGS = "swift/arguments/base_args/template_args.py"
_MEGATRON, _MEGATRON_ARGS = (
    "swift/megatron/trainers/reward_trainer.py",
    "swift/megatron/arguments/megatron_args.py",
)
_FACTORY, _FACTORY_V1 = "llamafactory/train/rm/trainer.py", "llamafactory/v1/trainers/rm_trainer.py"
_FACTORY_PAIRS = "llamafactory/data/processor/pairwise.py"
_FACTORY_PARSER = "llamafactory/hparams/parser.py"


def _claims(aspect: str, **cells: tuple[str, tuple[Proof, ...]]) -> tuple[Claim, ...]:
    names = {name.replace("-", "_"): name for name in TRAINERS}
    return tuple(
        Claim(aspect=aspect, trainer=names[name], cell=cell, proofs=proofs)
        for name, (cell, proofs) in cells.items()
    )


CLAIMS = (
    *_claims(
        BATCH,
        rm_ray=(
            "packed; a pair's prefix computed once",
            has("rm_ray/batches/packing.py", "Groups -> one row of distinct tokens."),
        ),
        trl=("padded", has(_TRL, 'padding_side="right",')),
        openrlhf=(
            "padded; packed with `--ds.packing_samples`, the prefix twice",
            (*has(_RLHF_DATA, 'padding_side = "left"'),
             *has(_RLHF_CLI, '"--ds.packing_samples", action="store_true", default=False'),
             *has("openrlhf/models/model.py", "unpad_and_slice_tensor("),
             *has("openrlhf/models/ring_attn_utils.py", "unpad_input(")),
        ),
        open_instruct=("padded", has(_AI2_DATA, "(always pad from the RIGHT)")),
        ms_swift=(
            "padded; packed under Megatron, the prefix twice",
            (*has(_SWIFT_TEMPLATE_ARGS, "padding_side: Literal['left', 'right'] = 'right'"),
             *has(_SWIFT_ARGS, "supported_types = ['grpo', 'dpo', 'kto', 'gkd']"),
             *has(_MEGATRON, "packed_seq_params.seq_lens.shape[0]"),
             *has(_MEGATRON_ARGS, "padding_free: bool = True")),
        ),
        llamafactory=(
            "padded; v1: a pair in one row, the prefix twice",
            (*has("llamafactory/data/collator.py",
                  "Pad batched data to the longest sequence in the batch."),
             *has(_FACTORY_PARSER, "`neat_packing` cannot be set as True except SFT."),
             *has(_FACTORY_V1,
                  "position_ids[rejected_mask] = (arange - chosen_lens)[rejected_mask]")),
        ),
    ),
    *_claims(
        OVER_LONG,
        rm_ray=(
            "dropped and counted, or the prompt cut",
            has("rm_ray/data/README.md", "the prompt loses its oldest tokens instead"),
        ),
        trl=("dropped", has(_TRL, 'len(example["chosen_ids"]) <= args.max_length')),
        openrlhf=(
            "the end cut off, and its last token made EOS",
            has(_RLHF_DATA, "truncation=True,",
                'chosen_token["input_ids"][0][-1] = self.tokenizer.eos_token_id'),
        ),
        open_instruct=(
            "dropped",
            has(_AI2_DATA, "if len(row[CHOSEN_INPUT_IDS_KEY]) > max_token_length:"),
        ),
        ms_swift=(
            "dropped, or cut",
            has(_SWIFT_TEMPLATE_ARGS, "self.truncation_strategy = 'delete'"),
        ),
        llamafactory=(
            "prompt and responses cut",
            has(_FACTORY_PAIRS, "prompt_ids = prompt_ids[:source_len]",
                "chosen_ids = chosen_ids[:target_len]"),
        ),
    ),
    *_claims(
        CRASH,
        rm_ray=(
            "resumes by itself; bit-identical on CPUs",
            has("rm_ray/supervisor/README.md", "on CPUs bit for bit"),
        ),
        trl=(
            "resumes if started with `resume_from_checkpoint`",
            has("trl/scripts/reward.py",
                "trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)"),
        ),
        openrlhf=(
            "resumes if `--ckpt.save_steps` was given (default: never) and started with "
            "`--ckpt.load_enable`",
            (*has(_RLHF_CLI, '"--ckpt.save_steps", type=int, default=-1',
                  "if args.ckpt.load_enable and os.path.exists(args.ckpt.path):"),
             *has(_RLHF, 'args.ckpt.save_steps = float("inf")  # do not save ckpt')),
        ),
        open_instruct=("starts over", has(_AI2, "# save model")),
        ms_swift=(
            "resumes if started with `--resume_from_checkpoint`",
            has("swift/arguments/sft_args.py", "if self.resume_from_checkpoint:"),
        ),
        llamafactory=(
            "resumes if started again",
            has(_FACTORY_PARSER, "training_args.resume_from_checkpoint = last_checkpoint"),
        ),
    ),
    *_claims(
        ACCURACY,
        rm_ray=(
            "all pairs, each once; a tie counts half",
            has("rm_ray/scoring/README.md", "equal rewards count half"),
        ),
        trl=(
            "mean of the batches' means; a tie is an error",
            has(_TRL, "mean_accuracy = (rewards_chosen > rewards_rejected).float().mean()",
                "sum(val) / len(val) for key, val in self._metrics[mode].items()"),
        ),
        openrlhf=(
            "mean of the ranks' means, some pairs twice; a tie is an error; by default on 1% of "
            "the training pairs",
            (*has(_RLHF, "acc += (chosen_reward > reject_reward).sum().item()",
                  "logs = self.strategy.all_reduce(bar_dict)"),
             *has("openrlhf/utils/distributed_sampler.py",
                  "# add extra samples to make it evenly divisible"),
             *has(_RLHF_CLI, "int(len(train_data) * 0.01)")),
        ),
        open_instruct=(
            "mean of rank 0's batches; a tie is an error",
            has(_AI2_EVAL, '"eval/rm/accuracy": total_accuracy / total_batches,',
                "accuracy = (chosen_rewards > rejected_rewards).float().mean()"),
        ),
        ms_swift=(
            "mean of the batches' means; a tie is an error",
            has(_SWIFT, "['rewards/accuracies'].update((rewards_chosen > "
                "rewards_rejected).float().mean())"),
        ),
        llamafactory=(
            "all pairs, each once; a tie is an error",
            has("llamafactory/train/rm/metric.py",
                'self.score_dict["accuracy"].append(chosen_scores[i] > rejected_scores[i])'),
        ),
    ),
    *_claims(
        LISTS,
        rm_ray=(
            "yes, over one prefix",
            has("rm_ray/batches/packing.py", "A group is K branches over one shared prefix."),
        ),
        trl=(
            "pairs only",
            has(_TRL, 'self._signature_columns = ["chosen_ids", "rejected_ids", "margin"]'),
        ),
        openrlhf=(
            "pairs only",
            has(_RLHF_DATA,
                "for chosen_id, chosen_mask, reject_id, rejects_mask, extra in item_list:"),
        ),
        open_instruct=(
            "pairs only",
            has(_AI2, "torch.cat((data[CHOSEN_INPUT_IDS_KEY], data[REJECTED_INPUT_IDS_KEY]), "
                "dim=0)"),
        ),
        ms_swift=(
            "pairs only",
            has(_SWIFT, "rewards_chosen, rewards_rejected = torch.split(rewards, batch_size, "
                "dim=0)"),
        ),
        llamafactory=(
            "pairs only",
            has("llamafactory/data/collator.py", 'for key in ("chosen", "rejected"):'),
        ),
    ),
    *_claims(
        LENGTH,
        rm_ray=(
            "no",
            has("rm_ray/estimate/long.md", "## Sequence parallelism: is it needed?"),
        ),
        trl=(
            "**tensor parallelism**",
            has(_TRL, "self._tp_size = self.accelerator.parallelism_config.tp_size"),
        ),
        openrlhf=(
            "**ring attention, tensor parallelism**",
            has(_RLHF_CLI, '"--ds.ring_attn_size"', '"--ds.tensor_parallel_size"'),
        ),
        open_instruct=("no", lacks(_AI2, "parallel_size")),
        ms_swift=(
            "**tensor, pipeline and context parallelism** under Megatron",
            (*has(_MEGATRON_ARGS, "tensor_model_parallel_size: int = 1",
                  "pipeline_model_parallel_size: int = 1", "context_parallel_size: int = 1"),
             *has("swift/megatron/arguments/rlhf_args.py",
                  "rlhf_type: Literal['dpo', 'kto', 'grpo', 'gkd', 'rm'] = 'dpo'")),
        ),
        llamafactory=(
            "no",
            has(_FACTORY_V1, "RM trainer currently only supports cp_size == 1."),
        ),
    ),
    *_claims(
        EXPERTS,
        rm_ray=("no", lacks("rm_ray/train/step.py", "aux_loss")),
        trl=("no", (*lacks(_TRL, "aux_loss"), *lacks(_TRL_CONFIG, "aux_loss"))),
        openrlhf=("**yes**", has(_RLHF_CLI, '"--model.aux_loss_coef", type=float, default=0')),
        open_instruct=("no", lacks(_AI2, "aux_loss")),
        ms_swift=(
            "**yes** under Megatron",
            (*has(_MEGATRON_ARGS, "moe_aux_loss_coeff: List[float] = 0."),
             *lacks(_SWIFT, "aux_loss")),
        ),
        llamafactory=("no", has(_FACTORY, "_, _, values = model(")),
    ),
    *_claims(
        IMAGES,
        rm_ray=(
            "no: their column stops the run",
            has("rm_ray/data/README.md", "An unused column that usually holds part of a "
                "conversation (`context`, `images`,"),
        ),
        trl=("no", lacks(_TRL, "ProcessorMixin")),
        openrlhf=("no", (*lacks(_RLHF_DATA, "image"), *lacks(_RLHF_CLI, "image"))),
        open_instruct=("no", lacks(_AI2, "image")),
        ms_swift=(
            "**yes**",
            has(_SWIFT_TEMPLATE, "res = self._rlhf_data_collator(batch, padding_to=padding_to)",
                "res.update(self._data_collator_mm_data(batch))"),
        ),
        llamafactory=(
            "**yes**",
            has(_FACTORY_PAIRS, 'images=examples["_images"][i] or [],'),
        ),
    ),
    *_claims(
        ADAPTERS,
        rm_ray=(
            "yes / yes",
            has("rm_ray/config/README.md", "| `lora.rank` |", "'nf4' holds the frozen weights"),
        ),
        trl=(
            "yes / yes",
            has(_TRL, "model = get_peft_model(model, peft_config, **get_peft_model_kwargs)",
                "for QLoRA training."),
        ),
        openrlhf=("yes / yes", has(_RLHF_CLI, '"--ds.lora.rank"', '"--ds.load_in_4bit"')),
        open_instruct=("no / no", lacks(_AI2, "get_peft_model")),
        ms_swift=(
            "yes / yes",
            (*has("swift/arguments/base_args/base_args.py",
                  "tuner_type: str = field(default='lora'"),
             *has("swift/arguments/base_args/quant_args.py",
                  "quant_method: Literal['bnb', 'hqq', 'eetq', 'quanto', 'fp8'] = None")),
        ),
        llamafactory=(
            "yes / yes",
            (*has("llamafactory/hparams/finetuning_args.py",
                  'finetuning_type: Literal["lora", "oft", "freeze", "full"] = field('),
             *has("llamafactory/hparams/model_args.py", "quantization_bit: int | None = field(")),
        ),
    ),
)  # fmt: skip


def _note(trainer: str, text: str, *proofs: Proof) -> Claim:
    return Claim(aspect=text, trainer=trainer, cell="", proofs=proofs)


MORE = (
    _note(
        "openrlhf",
        "OpenRLHF trains with Muon too",
        *has(_RLHF_CLI, 'choices=["adam", "muon"]'),
    ),
    _note(
        "openrlhf",
        "OpenRLHF leaves out the pairs that do not fill the last batch of an epoch",
        *has(_RLHF_DS, "drop_last=True,"),
    ),
    _note(
        "openrlhf",
        "OpenRLHF was not run here: its means over ranks go through CUDA",
        *has(_RLHF_DS, "data = data.to(torch.cuda.current_device())"),
    ),
    _note(
        "ms-swift",
        "ms-swift was not run here: it subclasses the trainer of TRL before 1.0. Its batches and "
        "its loss are those of TRL",
        *has(_SWIFT, "class RewardTrainer(RLHFTrainerMixin, SwiftMixin, HFRewardTrainer):"),
        *has("ms_swift-4.6.0.dist-info/METADATA", "Requires-Dist: trl<1.0,>=0.15"),
    ),
    _note(
        "llamafactory",
        "LLaMA-Factory wants transformers up to 5.6. Its trainer, loader and collator run with "
        "this project's 5.23 all the same, with an empty `torchaudio`, from the same weights "
        "(the bias of its head cancels out) and without its head's dropout of 0.1",
        *has("llamafactory-0.9.5.dist-info/METADATA",
             "Requires-Dist: transformers!=4.52.0,!=4.57.0,<=5.6.0,>=4.55.0"),
    ),
    _note(
        "llamafactory",
        "LLaMA-Factory keeps the reward head in a file beside the model",
        *has("llamafactory/extras/constants.py",
             'V_HEAD_SAFE_WEIGHTS_NAME = "value_head.safetensors"'),
    ),
    _note(
        "flash-pref",
        "flash-preference 0.1.1 has TRL's trainer compute a prefix once, with flash attention on "
        "CUDA",
        *has("flash_pref/shared_prefix.py", "from flash_attn import flash_attn_varlen_func",
             'device="cuda").cumsum('),
        *has("flash_pref/flash_reward_trainer.py", 'inputs["input_ids_chosen"]'),
    ),
    _note(
        "trl",
        "TRL 1.16 no longer makes the `input_ids_chosen` that flash-preference reads, so the two "
        "do not work together",
        *lacks(_TRL, "input_ids_chosen"),
    ),
)  # fmt: skip
"""What the full page says below its table."""
