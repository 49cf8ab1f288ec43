"""Tests of whatever hypothesis makes up: a few hundred examples in the suite, the same every time; as many as fit into
NEWLLM_FUZZ_MINUTES, shared among these tests, and others every time, where that is set."""

import os
import time
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis.configuration import set_hypothesis_home_dir

MINUTES = float(os.environ.get("NEWLLM_FUZZ_MINUTES", 0))
DEADLINE = timedelta(seconds=20)  # for one example on a busy machine; what hangs takes hours
tried: dict[str, Counter] = {}


@pytest.fixture
def fuzz(request, tmp_path, monkeypatch):
    """Call a test for whatever its strategies make.

    Args:
        test: gives the name of what came out; any exception of it is a finding.
        few: how many examples in the suite; the clock is asked after five times as many.
        found: arguments that once were findings, tried first.
        strategies: argument -> what makes it.

    Returns:
        outcome -> how often.
    """
    set_hypothesis_home_dir(tmp_path)
    fuzzed = sum("fuzz" in item.fixturenames for item in request.session.items)

    def run(test, few, found=(), **strategies) -> Counter:
        outcomes = tried.setdefault(request.node.name, Counter())

        def try_all(examples: int, found=(), **how) -> None:
            def one(**arguments) -> None:
                outcomes[test(**arguments)] += 1

            for arguments in found:
                one = example(**arguments)(one)
            checks = list(HealthCheck)
            fixed = {"database": None, "deadline": DEADLINE, "suppress_health_check": checks, "max_examples": examples}
            settings(**fixed, **how)(given(**strategies)(one))()

        end = time.monotonic() + 60 * MINUTES / fuzzed
        try_all(few, found, derandomize=True)
        while time.monotonic() < end:
            try_all(5 * few, phases=[Phase.generate])  # to find the least example may take five minutes
        return outcomes

    return run


def pytest_terminal_summary(terminalreporter):
    for name, outcomes in tried.items() if MINUTES else ():
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        terminalreporter.write_line(f"{outcomes.total():>9,} {name}: {counts}")
