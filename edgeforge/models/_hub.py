"""The Hugging Face hub: a model's safetensors, JSON and tokenizer files, its card, and nothing else of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.extras import require
from edgeforge.licences import CARD
from edgeforge.models.folder import CONFIG, GENERATION, INDEX, SHAPES
from edgeforge.models.tokenizer import FILES

WANTED = (CONFIG, GENERATION, SHAPES, INDEX, "model*.safetensors", *FILES, CARD)


def fetch(repo: str, revision: str | None, *, wanted: Sequence[str] = WANTED) -> Path:
    """The local folder with a hub model's files (those of `wanted`), downloaded where they are not cached.

    Raises ModelError where the hub has no such model, EnvironmentProblem where it cannot be asked.
    """
    hub, errors = require("huggingface_hub", "hub"), require("huggingface_hub.errors", "hub")
    where = f"{repo}@{revision}" if revision else repo
    try:
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=list(wanted)))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        gated = isinstance(error, errors.GatedRepoError)
        raise ModelError(
            "access to it must be asked for" if gated else "the hub has no such model or revision",
            where=where,
            remedy="accept its terms on the hub and log in with `hf auth login`"
            if gated
            else "check the name, log in with `hf auth login` if it is private, or give a local folder",
        ) from error
    except Exception as error:  # the client raises its HTTP library's own errors, which differ between its versions
        raise EnvironmentProblem(
            f"cannot be fetched from the Hugging Face hub: {str(error).splitlines()[0]}",
            where=where,
            remedy="check the network and HF_HUB_OFFLINE, or download the model elsewhere and give its folder",
        ) from error
