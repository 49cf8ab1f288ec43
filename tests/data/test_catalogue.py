import re

import pytest

from newllm_lib.data.chat_template import TEMPLATES
from newllm_lib.data.examples import columns_read
from newllm_lib.data.sources import CONVERSATION_DATASETS, DATASETS, find_dataset
from newllm_lib.errors import InputError


def test_every_entry_is_whole():
    for name, entry in DATASETS.items():
        assert entry.sources and entry.columns and entry.licence and entry.language and entry.good_for, name
        assert entry.about or any("train" in source.rows for source in entry.sources), f"{name} has no size"
        assert entry.template in TEMPLATES
        meanings = columns_read(dict.fromkeys(entry.columns, "x")).keys()
        assert entry.columns == ("text",) or meanings & {"turns", "answer"}, (
            f"{name}: COLUMNS does not have its columns"
        )
        assert entry.offline in (None, "chitchat", "documentation")
        for source in entry.sources:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.hub_id)
            assert "train" in source.splits
            assert source.rows.keys() <= source.splits.keys()
            assert re.fullmatch(r"[0-9a-f]{40}|main|refs/convert/parquet", source.revision)


def test_names_and_ids_are_found():
    assert find_dataset("dolly") is DATASETS["dolly"]
    assert "wikitext" not in CONVERSATION_DATASETS
    other = find_dataset("owner/name")
    assert (other.sources[0].hub_id, other.columns) == ("owner/name", ())
    for name in ("dollly", "wikitext", ""):
        with pytest.raises(InputError, match=rf"dataset has to be one of dailydialog, .*\(owner/name\), got '{name}'"):
            find_dataset(name)
