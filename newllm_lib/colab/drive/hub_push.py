"""A finished model on the Hugging Face hub, if its owner says so: private unless said otherwise, without checkpoints,
and with a token that is looked up and never asked for."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ...adapters.qlora_lwf import FORGETTING_FILE
from ...errors import InputError
from ...training.checkpoint import ADAPTER_CONFIG, RESULTS_FILE, SETTINGS_FILE
from ...training.model_card import CARD_FILE
from ...training.report import CURVES_FILE, METRICS_FILE

SECRET = "HF_TOKEN"
# What is uploaded of a model's folder; checkpoints lie in folders below it, which no pattern reaches.
UPLOADED = (
    CARD_FILE, SETTINGS_FILE, RESULTS_FILE, METRICS_FILE, CURVES_FILE, FORGETTING_FILE, ADAPTER_CONFIG, "config.json",
    "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
NEVER = ("checkpoint-*", "*/*", ".*")


def push_to_hub(folders: Sequence[Path], repository: str, private: bool = True) -> list[str]:
    """Upload each model to a repository of its own; returns their addresses.

    Args:
        repository: "name" or "owner/name"; of several models each adds its own name.
        private: nobody else can see what is made now; one that is public already is refused.

    Raises:
        InputError: no token, or a name or a token that the hub refuses.
    """
    token = find_token()
    api = HfApi(token=token)
    addresses = []
    try:
        name = repository.strip().strip("/")
        if "/" not in name:
            name = f"{api.whoami()['name']}/{name}"
        for folder in folders:
            target = name if len(folders) == 1 else f"{name}-{folder.name}"
            addresses.append(str(api.create_repo(target, private=private, exist_ok=True)))
            if private and not api.model_info(target).private:
                raise InputError(f"hub_repository {target!r} is public: untick private, or choose another name.")
            api.upload_folder(
                folder_path=folder,
                repo_id=target,
                allow_patterns=list(UPLOADED),
                ignore_patterns=list(NEVER),
                commit_message="Upload from New-LLM",
            )
    except HFValidationError as error:
        raise InputError(f"hub_repository {repository!r} is no name for a repository: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(
                f"the hub refuses the token for {repository!r}: make one with the right to write, at "
                "huggingface.co/settings/tokens.",
                "NL-302",
            ) from error
        raise InputError(f"the hub did not take {repository!r} (HTTP {status}): try again later.", "NL-301") from error
    return addresses


def find_token() -> str:
    """The hub token among Colab's secrets, else the one in the environment, else that of huggingface_hub's own login.

    Raises:
        InputError: there is none; says how to give one without typing it into the notebook.
    """
    token, problem = _colab_secret()
    if not token:
        token = os.environ.get(SECRET, "").strip()
    if not token:
        stored = Path(constants.HF_TOKEN_PATH)  # get_token() would ask Colab once more, and wait for an answer
        token = stored.read_text(encoding="utf-8").strip() if stored.is_file() else ""
    if not token:
        raise InputError(problem, "NL-302")
    return token


def _colab_secret() -> tuple[str, str]:
    """(the token or "", what to do if there is no other either)."""
    if "google.colab" not in sys.modules:
        return "", (
            f"nothing was put on the hub, for there is no token: set {SECRET} in the environment, or run "
            "hf auth login in a terminal."
        )
    from google.colab import userdata

    try:
        return userdata.get(SECRET).strip(), f"nothing was put on the hub, for the secret {SECRET} is empty."
    except userdata.NotebookAccessError:
        problem = f"this notebook may not read the secret {SECRET}: click the key on the left and allow it"
    except userdata.SecretNotFoundError:
        problem = f"there is no secret {SECRET}: click the key on the left, add it, and allow this notebook to read it"
    except Exception as error:  # a time-out, whose class not all of Colab's images have
        problem = f"Colab did not give the secret {SECRET} ({type(error).__name__}): run this cell again"
    return "", f"nothing was put on the hub: {problem}."
