"""Settings of publishing on the Hugging Face Hub."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from rm_ray.config.checks import require
from rm_ray.config.fields import MAY_CHANGE


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Which models of the run to publish on the Hugging Face Hub, and when."""

    repo_id: Annotated[str | None, MAY_CHANGE] = None
    """Repository such as 'me/reward-model', created if missing; none publishes nothing. The token
    comes from HF_TOKEN in the environment, or from 'hf auth login'."""

    private: Annotated[bool, MAY_CHANGE] = True
    """Whether to create the repository as private."""

    every: Annotated[Literal["checkpoint", "best", "final"], MAY_CHANGE] = "final"
    """What to publish: every checkpoint; every checkpoint that beats all earlier ones by
    checkpoint.keep_best_by; or only the final models. At the end the best model goes to main."""

    revision_prefix: Annotated[str, MAY_CHANGE] = ""
    """Prefix of the tags ('step-00000200') if several runs share a repository."""

    patience_s: Annotated[float, MAY_CHANGE] = 600.0
    """Seconds to wait at the end of the run for pending models to be published. After that the run
    lists them, with the command that resumes publishing."""

    def __post_init__(self) -> None:
        repo, prefix, patience = self.repo_id, self.revision_prefix, self.patience_s
        legal = repo is None or bool(
            re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", repo)
            and not re.search(r"--|\.\.|\.git$", repo)
        )
        require(legal, "hub.repo_id", repo, "'NAMESPACE/NAME', of letters, digits and '_.-'")
        legal = re.fullmatch(r"(\w[\w.-]*)?", prefix) is not None
        require(legal, "hub.revision_prefix", prefix, "letters, digits, '.', '_' and '-'")
        require(0 <= patience < math.inf, "hub.patience_s", patience, "at least 0 and finite")
