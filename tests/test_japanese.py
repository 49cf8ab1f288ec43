"""Every Japanese text says one thing by one word, in です・ます, with full-width punctuation."""

import json
import re
from pathlib import Path

import pytest

from newllm_lib.colab.page.languages import texts

ROOT = Path(__file__).parents[1]
# what is never written -> what is written in its place
WORDS = {
    r"アダプタ(?!ー)": "アダプター",
    r"トークナイザ(?!ー)": "トークナイザー",
    r"文脈": "コンテキスト",
    r"装置": "デバイス",
    r"好み": "選好",
    r"単一コア": "CPU 1 コア",
    r"(?<![出初絶])版(?!権)": "バージョン",
    r"(?<![本散])文が": "メッセージが",
    r"ベースモデル|ベースの": "元のモデル",
    r"(?<![A-Za-z_`/.-])[Rr]uns?(?![A-Za-z_`/.-])": "学習 (a training), 実行 (of a cell)",
    r"(?<![ァ-ヶー])ラン(?![ァ-ヶー])|新しい実行|実行のフォルダ": "学習",
    r"Hub(?!:)": "hub",
    r"ファインチューニング": "調整",
    r"パラメーター": "パラメータ",
    r"アテンション": "注意機構",
    r"ペナルティ": "抑制",
    r"二つ|[一二三]つ目|[一二三十]行|十秒|一分": "2つ: a number in digits",
}
KANA = "ぁ-んァ-ヶー一-龠"
HALF_WIDTH = re.compile(rf"[{KANA}][(),:;?!]|[(][{KANA}]|[{KANA}][.](?![\w/])|[:;] [{KANA}]")
# A sentence that ends in the plain form of a verb or an adjective.
PLAIN = re.compile(r"[うくぐすつぬぶむるいだた](?=。)")
POLITE = re.compile(r"(ます|です|ません|ました|でした|ましょう|でしょう|ください|なさい)(?=。)")


def guide() -> dict[str, str]:
    """Line -> its text, without code and what the English screens show."""
    text = (ROOT / "README_COLAB.ja.md").read_text(encoding="utf-8")
    text = re.sub(
        r"^```.*?^```$|`[^`\n]+`|\*[^*\n]+\*|\(Runtime[^)]*\)|\uff08[A-Z].*?\uff09", "", text, flags=re.M | re.S
    )
    text = re.sub(r"\]\([^)]*\)|すべてのセルを実行|!?\[[^\]]*\]|\bRun all\b", "", text)
    return {line: line for line in text.splitlines()}


def notebooks() -> dict[str, str]:
    """English text -> its Japanese without code, links, and what stands for itself."""
    entries = (ROOT / "notebooks" / "ja" / "translations.md").read_text(encoding="utf-8").split("<!-- en -->")[1:]
    texts = dict(re.split(r"\n<!-- ja -->\n", entry) for entry in entries)
    shown = r"^```.*^```|`[^`\n]+`|\$[^$\n]+\$|\*\*Run.*?\*\*|\[\W+\]\([^)]*\)"
    return {english: re.sub(shown, "", text, flags=re.M | re.S) for english, text in texts.items()}


def exported_page() -> dict[str, str]:
    return json.loads((ROOT / "newllm_lib" / "export" / "texts.json").read_text(encoding="utf-8"))["ja"]


def faults(text: str) -> list[str]:
    text = re.sub(r"\{\w+\}", "1", text)
    found = [f"{hit[0]} -> {right}" for wrong, right in WORDS.items() if (hit := re.search(wrong, text))]
    found += [f"half width: {hit[0]}" for hit in HALF_WIDTH.finditer(text)]
    return found + [f"plain form: {text[: hit.end()][-12:]}" for hit in PLAIN.finditer(POLITE.sub("+", text))]


@pytest.mark.parametrize("read", [guide, texts, notebooks, exported_page])
def test_one_word_for_one_thing(read):
    assert {english: found for english, text in read().items() if (found := faults(text))} == {}


WRONG = [
    *("アダプタを使います。", "文脈の長さ。", "この装置です。", "好みを学びます。", "単一コアで5分です。"),
    *("新しい版です。", "文が示します。", "このrunは終わりました。", "新しい実行として始まります。"),
    *("値(例)です。", "学習する。", "多い。"),
    *("Published: 公表された設定です。", "二つ目のデータです。"),
]


@pytest.mark.parametrize("text", WRONG)
def test_a_word_of_the_list_is_found(text):
    assert faults(text) and not faults("アダプターはコンテキストを使います。損失の値。")
