import json
import re

from newllm_lib.data.examples import any_conversation
from newllm_lib.data.stand_ins import documentation_rows


def test_questions_and_answers_are_those_of_the_documentation():
    rows = documentation_rows()
    (module,) = [row for row in rows if re.search(r"module json( |\.$)", row["instruction"])]
    assert module["response"].startswith("JSON (JavaScript Object Notation)")
    (dumps,) = [row for row in rows if re.search(r" json\.dumps\b", row["instruction"])]
    assert dumps["response"] == json.dumps.__doc__.split("\n\n")[0].strip()
    assert dumps["context"].startswith("json.dumps(obj, *, skipkeys=False")


def test_every_row_is_one_of_dollys_and_told_once():
    rows = documentation_rows()
    for row in rows:
        assert any_conversation(row)[-1] == {"role": "assistant", "content": row["response"]}
        assert 20 <= len(row["response"]) <= 600
        assert " at 0x" not in row["context"]
    assert len({row["response"] for row in rows}) == len(rows) > 2_000
