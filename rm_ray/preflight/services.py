"""What a run depends on beside machines: its model and tokenizer, MLflow, and the Hub."""

from __future__ import annotations

from rm_ray.config.train_config import TrainConfig
from rm_ray.data.tokens.tokenization import ends_assistant_turn
from rm_ray.errors import InputError
from rm_ray.preflight import checks
from rm_ray.preflight.checks import Verdict
from rm_ray.preflight.resolve import read_tokenizer
from rm_ray.publish.access import find_access
from rm_ray.publish.base_model import find_base
from rm_ray.publish.hub import HubAwayError
from rm_ray.storage import Storage
from rm_ray.tracking.target import MlflowAwayError, MlflowTarget


def ask_services(config: TrainConfig, storage: Storage) -> list[Verdict]:
    """Check model, MLflow and the Hub."""

    remedy = "check the name, HF_TOKEN and the network"
    try:
        model = checks.refusing(
            "model",
            lambda: checks.check_model(config.model, lambda: find_base(config.model)),
            remedy=remedy,
        )
    except HubAwayError as error:
        remedy = "mend the network; what is in the cache of every machine is used without it"
        model = checks.warn("model", str(error), remedy)
    tokenizer = checks.refusing("tokenizer", lambda: _check_tokenizer(config), remedy=remedy)
    return [model, tokenizer, _check_mlflow(config, storage), _check_hub(config)]


def _check_tokenizer(config: TrainConfig) -> Verdict:
    tokenizer = read_tokenizer(config)
    ending = "an end-of-turn or EOS token"
    if not ends_assistant_turn(tokenizer):
        remedy = "let data.chat_template write eos_token after the assistant's turn"
        found = f"the chat template ends the assistant's turn without {ending}"
        return checks.warn("tokenizer", found, remedy)
    return checks.passed("tokenizer", f"{len(tokenizer):,} tokens; turns end in {ending}")


def _check_mlflow(config: TrainConfig, storage: Storage) -> Verdict:
    target = MlflowTarget.of(config.mlflow, storage)
    if config.mlflow.tracking_uri is None and not storage.exists("mlflow.db"):
        return checks.passed("MLflow", f"an SQLite file that the run makes, {target.tracking_uri}")
    from rm_ray.tracking.mlflow_run import ask_mlflow  # takes seconds

    try:
        told = ask_mlflow(target, registry=config.mlflow.registered_model is not None)
    except InputError as error:
        return checks.fail("MLflow", str(error), "restore the experiment, or name another")
    except MlflowAwayError as error:
        remedy = "check mlflow.tracking_uri and the credentials; training would go on without it"
        return checks.warn("MLflow", str(error), remedy)
    return checks.passed("MLflow", f"{target.tracking_uri} answers; {told}")


def _check_hub(config: TrainConfig) -> Verdict:
    repo_id = config.hub.repo_id
    if repo_id is None:
        return checks.passed("Hub", "nothing is published")
    try:
        access = find_access(repo_id)
    except HubAwayError as error:
        remedy = "check the network and HF_ENDPOINT; training would go on without it"
        return checks.warn("Hub", str(error), remedy)
    except InputError as error:
        return checks.fail("Hub", str(error), "set HF_TOKEN to a token that may write there")
    if access.obstacle:
        remedy = "set HF_TOKEN to a token that may write there, or choose another hub.repo_id"
        return checks.fail("Hub", f"{repo_id}: {access.obstacle}", remedy)
    known = "is there" if access.exists else "will be made"
    return checks.passed("Hub", f"{repo_id} {known}; '{access.user}' may write to it")
