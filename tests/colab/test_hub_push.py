"""The hub: a token that is never asked for, private by default, and nothing uploaded that is of no use there."""

from types import SimpleNamespace

import pytest
from google_colab import NotebookAccessError, SecretNotFoundError, TimeoutException
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from run_folders import make_run

from newllm_lib.colab import share
from newllm_lib.colab.share import find_token, push_to_hub
from newllm_lib.errors import InputError


class Hub:
    """Stands in for the hub: its repositories, name -> (is private, names of files)."""

    def __init__(self):
        self.repositories: dict[str, tuple[bool, set[str]]] = {}
        self.tokens = []
        self.status = None

    def __call__(self, token):
        self.tokens.append(token)
        return self

    def whoami(self):
        self._answer()
        return {"name": "me"}

    def create_repo(self, repo_id, private, exist_ok):
        validate_repo_id(repo_id)
        self._answer()
        assert exist_ok
        self.repositories.setdefault(repo_id, (private, set()))
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, repo_id):
        return SimpleNamespace(private=self.repositories[repo_id][0])

    def upload_folder(self, folder_path, repo_id, allow_patterns, ignore_patterns, commit_message):
        paths = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        chosen = filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        self.repositories[repo_id][1].update(chosen)

    def _answer(self):
        if self.status is not None:
            raise HfHubHTTPError("refused", response=SimpleNamespace(status_code=self.status, headers={}, request=None))


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(share, "HfApi", hub)
    monkeypatch.setenv("HF_TOKEN", "from the environment")
    return hub


@pytest.fixture
def folders(tmp_path):
    models = [make_run(tmp_path / name, (10,), finished=True) for name in ("newllm", "tiny-gpt2")]
    for model in models:
        for name in (
            "README.md",
            "tokenizer.json",
            "tokenizer_config.json",
            "my diary.txt",
            "manifest.json",
            ".hidden",
        ):
            (model / name).write_text("x")
        (model / "optimizer.pt").write_text("x")
    return models


def test_each_model_goes_to_a_private_repository_without_checkpoints(hub, folders):
    addresses = push_to_hub(folders, "chatty")
    assert addresses == ["https://huggingface.co/me/chatty-newllm", "https://huggingface.co/me/chatty-tiny-gpt2"]
    for is_private, names in hub.repositories.values():
        assert is_private
        assert names == {
            "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "settings.json", "metrics.jsonl", "results.json",
        }  # fmt: skip


def test_one_model_takes_the_name_as_it_is(hub, folders):
    assert push_to_hub(folders[:1], " owner/name/ ", private=False) == ["https://huggingface.co/owner/name"]
    assert hub.repositories["owner/name"][0] is False


def test_what_is_public_already_is_not_taken_for_private(hub, folders):
    hub.repositories["me/known"] = (False, set())
    with pytest.raises(InputError, match="'me/known' is public: untick private"):
        push_to_hub(folders[:1], "known")
    assert hub.repositories["me/known"][1] == set()


@pytest.mark.parametrize(
    ("status", "words", "code"),
    [(401, "refuses the token", "NL-302"), (403, "right to write", "NL-302"), (500, "HTTP 500", "NL-301")],
)
def test_a_hub_that_refuses_is_one_sentence(hub, folders, status, words, code):
    hub.status = status
    with pytest.raises(InputError, match=words) as error:
        push_to_hub(folders, "name")
    assert error.value.code == code and "from the environment" not in str(error.value)


def test_a_name_that_is_none_is_one_sentence(hub, folders):
    with pytest.raises(InputError, match="no name for a repository"):
        push_to_hub(folders[:1], "a name with blanks")
    assert hub.repositories == {}


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(share.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("it was asked for"))
    monkeypatch.setattr("getpass.getpass", lambda *args: pytest.fail("it was asked for"))
    return tmp_path / "token"


def test_a_token_is_looked_for_in_three_places(no_login, colab, monkeypatch):
    no_login.write_text(" of the login\n")
    assert find_token() == "of the login"
    monkeypatch.setenv("HF_TOKEN", "of the environment")
    assert find_token() == "of the environment"
    colab.secrets["HF_TOKEN"] = "of Colab"
    assert find_token() == "of Colab"


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        (SecretNotFoundError("HF_TOKEN"), "no secret HF_TOKEN: click the key"),
        (NotebookAccessError("HF_TOKEN"), "may not read the secret HF_TOKEN"),
        (TimeoutException("HF_TOKEN"), r"did not give the secret HF_TOKEN \(TimeoutException\)"),
        ("", "the secret HF_TOKEN is empty"),
    ],
    ids=str,
)
def test_no_token_is_one_sentence(no_login, colab, hub, folders, monkeypatch, secret, words):
    monkeypatch.delenv("HF_TOKEN")
    colab.secrets["HF_TOKEN"] = secret
    with pytest.raises(InputError, match=words):
        push_to_hub(folders, "name")
    assert hub.tokens == [] and hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", "of the environment")
    assert find_token() == "of the environment", "and the next place is tried"


def test_elsewhere_the_sentence_names_the_environment(no_login):
    with pytest.raises(InputError, match="set HF_TOKEN in the environment"):
        find_token()
