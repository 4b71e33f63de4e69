"""Checks of a run's model, tokenizer, MLflow and the Hub."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from rm_ray.config.sections.hub import HubConfig
from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.tokens.tokenizer import ends_assistant_turn
from rm_ray.errors import InputError, MlflowAwayError
from rm_ray.model.base_check import BaseModel
from rm_ray.model.kept_head import require_head_files
from rm_ray.model.weight_files import list_some
from rm_ray.preflight.checks.verdict import Verdict, fail, fail_on_input_error, ok, warn
from rm_ray.preflight.checks.wording import count
from rm_ray.preflight.planning import read_tokenizer
from rm_ray.pretrained import base_model
from rm_ray.publish.access import find_access
from rm_ray.publish.base_model import find_base
from rm_ray.publish.hub import HubAwayError
from rm_ray.storage import Storage
from rm_ray.tracking.target import MlflowTarget

GRANT_WRITES = "set HF_TOKEN to a token that may write there"


def check_services(config: TrainConfig, storage: Storage) -> list[Verdict]:
    """Check model, tokenizer, MLflow and the Hub."""
    remedy = "check the name, HF_TOKEN and the network"
    try:
        model = fail_on_input_error(
            "model",
            lambda: check_model(config.model, lambda: find_base(config.model)),
            remedy=remedy,
        )
    except HubAwayError as error:
        remedy = "fix the network; files cached on every machine work without it"
        model = warn("model", str(error), remedy)
    tokenizer = fail_on_input_error(
        "tokenizer", lambda: check_tokenizer(read_tokenizer(config)), remedy=remedy
    )
    return [model, tokenizer, check_mlflow(config.mlflow, storage), check_hub(config.hub)]


def check_model(model: ModelConfig, find_base: Callable[[], BaseModel | None]) -> Verdict:
    """Check that the model's weights are complete; ``find_base`` inspects its files.

    Raises:
        InputError: weights are missing, or ``model.head`` cannot be followed.
    """
    require_head_files(model)
    name = model.name_or_path
    kind = base_model(model).kind
    if kind == "builtin":
        return ok("model", "built-in")
    if kind == "config":
        return ok("model", f"random weights for {name}")
    base = find_base()
    if base is None:
        return ok("model", f"{name}: all files exist; their content is checked when it is read")
    complete = (
        f"{name}: {count(base.num_weights, 'weight')}, complete, in intact files; "
        f"{_describe_head(base)}"
    )
    if base.unused:
        found = f"{complete}; {len(base.unused)} unused: {list_some(base.unused)}"
        return warn("model", found, "compare its config.json with the original model's")
    return ok("model", complete)


def _describe_head(base: BaseModel) -> str:
    if base.head is not None:
        return f"its head is kept ({base.head.weight})"
    return f"its head is replaced ({list_some(base.replaced)})" if base.replaced else "a new head"


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Verdict:
    """Check that the chat template marks the end of the assistant's turn."""
    ending = "an end-of-turn or EOS token"
    if not ends_assistant_turn(tokenizer):
        remedy = "let data.chat_template write eos_token after the assistant's turn"
        found = f"the chat template ends the assistant's turn without {ending}"
        return warn("tokenizer", found, remedy)
    return ok("tokenizer", f"{len(tokenizer):,} tokens; turns end in {ending}")


def check_mlflow(mlflow: MlflowConfig, storage: Storage) -> Verdict:
    """Check that MLflow answers and offers the experiment and registry that the run needs."""
    target = MlflowTarget.of(mlflow, storage)
    if mlflow.tracking_uri is None and not storage.exists("mlflow.db"):
        return ok("MLflow", f"an SQLite file that the run will create, {target.tracking_uri}")
    from rm_ray.tracking.mlflow_run import ask_mlflow  # slow import: seconds

    try:
        answer = ask_mlflow(target, registry=mlflow.registered_model is not None)
    except InputError as error:
        return fail("MLflow", str(error), "restore the experiment, or name another")
    except MlflowAwayError as error:
        remedy = "check mlflow.tracking_uri and the credentials; training would continue without it"
        return warn("MLflow", str(error), remedy)
    return ok("MLflow", f"{target.tracking_uri} answers; {answer}")


def check_hub(hub: HubConfig) -> Verdict:
    """Check that this user may write to the repository that the run publishes to."""
    if hub.repo_id is None:
        return ok("Hub", "nothing is published")
    try:
        access = find_access(hub.repo_id)
    except HubAwayError as error:
        remedy = (
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE; training would continue without it"
        )
        return warn("Hub", str(error), remedy)
    except InputError as error:
        return fail("Hub", str(error), GRANT_WRITES)
    if access.obstacle:
        remedy = f"{GRANT_WRITES}, or choose another hub.repo_id"
        return fail("Hub", f"{hub.repo_id}: {access.obstacle}", remedy)
    state = "exists" if access.exists else "will be created"
    return ok("Hub", f"{hub.repo_id} {state}; '{access.user}' may write to it")
