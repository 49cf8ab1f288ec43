"""The hub: a token that is never asked for, private by default, and nothing uploaded that is of no use there."""

import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from google_colab import NotebookAccessError, SecretNotFoundError, TimeoutException
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id
from preference_runs import dpo_arguments
from run_folders import make_run

from newllm_lib.colab import share
from newllm_lib.colab.share import find_token, push_to_hub
from newllm_lib.errors import InputError


class Hub:
    """Stands in for the hub: its repositories, name -> (is private, name -> content of files)."""

    def __init__(self):
        self.repositories: dict[str, tuple[bool, dict[str, bytes]]] = {}
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
        self.repositories.setdefault(repo_id, (private, {}))
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, repo_id):
        return SimpleNamespace(private=self.repositories[repo_id][0])

    def create_commit(self, repo_id, operations, commit_message):
        for operation in operations:
            with operation.as_file() as file:
                self.repositories[repo_id][1][operation.path_in_repo] = file.read()

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
        (model / "config.json").write_text('{"model_type": "gpt2"}')
        (model / "README.md").write_text('# Card\n```python\npipeline(model="path/to/this/folder")\n```\nEnd')
    return models


def test_each_model_goes_to_a_private_repository_without_checkpoints(hub, folders):
    addresses = push_to_hub(folders, "chatty")
    assert addresses == ["https://huggingface.co/me/chatty-newllm", "https://huggingface.co/me/chatty-tiny-gpt2"]
    for name, (is_private, files) in hub.repositories.items():
        assert is_private
        card = files["README.md"].decode()
        assert f'model="{name}", tokenizer="{name}"' in card and "path/to" not in card and card.endswith("```\nEnd")
        assert files.keys() == {
            "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "settings.json", "metrics.jsonl", "results.json",
        }  # fmt: skip


# It is not installed there; nor is Colab's old torchao, which PEFT refuses.
BLOCKED = "import sys; sys.modules['newllm_lib'] = sys.modules['torchao'] = None\n"


@pytest.fixture(scope="module")
def preferred(tmp_path_factory):
    """The folder of two DPO runs: `run` with its merged model, `plain` without."""
    from newllm_lib.preferences.dpo import dpo

    folder = tmp_path_factory.mktemp("preferred")
    for name, merged in (("run", True), ("plain", False)):
        dpo(dpo_arguments(folder, name, max_steps=2, sft_epochs=0.1, save_merged=merged))
    return folder


@pytest.mark.parametrize("name", ["run", "plain"])
def test_the_snippet_of_the_card_works_on_another_machine(hub, preferred, tmp_path, name):
    push_to_hub([preferred / name], "owner/tuned")
    files = hub.repositories["owner/tuned"][1]
    assert {"model.safetensors", "preferences.json", "curves.png", "chat_template.jinja"} <= files.keys()
    assert not list(preferred.rglob(".newllm-*")) and "adapter_config.json" not in files
    assert_the_snippet_works(files, tmp_path)


def assert_the_snippet_works(files, place):
    """In the folder `place`, where the files lie under the name of their repository."""
    (place / "owner" / "tuned").mkdir(parents=True)
    for name, content in files.items():
        (place / "owner" / "tuned" / name).write_bytes(content)
    (snippet,) = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", BLOCKED + snippet], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0 and "assistant" in done.stdout, done.stderr


def test_the_snippet_of_a_run_folder_works_when_it_has_moved(preferred, tmp_path):
    there = shutil.copytree(preferred / "plain", tmp_path / "path" / "to" / "this" / "folder")
    (snippet,) = re.findall(r"```python\n(.*?)```", (there / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_adapters_on_a_base_of_the_hub_go_there_as_they_are(hub, preferred, tmp_path):
    run = shutil.copytree(preferred / "plain", tmp_path / "run")
    config = run / "adapter_config.json"
    config.write_text(re.sub(r'(?<="base_model_name_or_path": )".*?"', '"someone/base"', config.read_text()))
    push_to_hub([run], "owner/tuned")
    files = hub.repositories["owner/tuned"][1]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files.keys() and "config.json" not in files
    shutil.copytree(preferred / "plain" / "reference", tmp_path / "someone" / "base")
    assert_the_snippet_works(files, tmp_path)


def test_one_model_takes_the_name_as_it_is(hub, folders):
    assert push_to_hub(folders[:1], " owner/name/ ", private=False) == ["https://huggingface.co/owner/name"]
    assert hub.repositories["owner/name"][0] is False


def test_what_is_public_already_is_not_taken_for_private(hub, folders):
    hub.repositories["me/known"] = (False, {})
    with pytest.raises(InputError, match="'me/known' is public: untick private"):
        push_to_hub(folders[:1], "known")
    assert hub.repositories["me/known"][1] == {}


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
