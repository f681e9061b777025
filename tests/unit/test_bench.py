"""What a benchmark concludes from its figures, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench import others
from tests.bench.batched_bench import measured
from tests.bench.busy import burning, n_burners
from tests.bench.conversations import CONVERSATIONS
from tests.bench.greedy import Alternative, Said, Token, verdict
from tests.bench.others import Taken, watched
from tests.bench.report import Comparison, Result, Section
from tests.bench.scenario import Row
from tests.bench.scenarios import SCENARIOS
from tests.bench.servers import ROOT

RATE = Row("rate", "rate", "1/s", more_is_better=True, targets={"peer": 0.97})
TIME = Row("time", "time", "s", more_is_better=False, targets={"peer": 0.2}, limit=3.0)
JSONL = """
some log line
{"n_kv_max": 16384, "n_batch": 512, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, \
"n_gpu_layers": -1, "n_threads": 2, "n_threads_batch": 2, "pp": 30, "tg": 64, "pl": 4, \
"n_kv": 376, "t_pp": 0.500000, "speed_pp": 240.0, "t_tg": 3.500000, "speed_tg": 73.142857, \
"t": 4.000000, "speed": 94.0}

llama_perf_context_print:        load time =     100.00 ms
"""
WAIT_S = 30.0


def test_ratio_is_of_medians_and_pairs_are_told_beside_it() -> None:
    found = Comparison(RATE, (1.0, 2.0, 9.0), "peer", (1.0, 4.0, 3.0))
    assert found.ratio == 2.0 / 3.0
    assert found.paired == 1.0
    assert found.met is False
    assert found.cells(first=False)[:3] == ("", "", "")
    assert found.cells(first=True)[-2:] == ("≥ 0.97", "missed")


def test_time_has_to_stay_below_its_target() -> None:
    alone, beside = Result(TIME, {"edged": (2.0, 2.0), "peer": (10.0, 12.0)}).comparisons
    assert (alone.target, alone.met) == (3.0, True)
    assert (beside.target, beside.met) == (0.2, True)
    assert Comparison(TIME, (4.0,)).met is False
    assert Comparison(TIME, (1.0,), "another", (1.0,)).met is None


def test_section_says_when_its_figures_say_little() -> None:
    def section(*taken: Taken) -> Section:
        return Section("x", "about", (), {"edged": taken})

    quiet, crowded = Taken(0.01, 0.0), Taken(0.3, 0.1)
    assert not section(quiet, quiet, crowded).worthless
    assert "worst act 30.0% + 10.0%" in section(quiet, quiet, crowded).meanwhile
    assert section(quiet, crowded, crowded).worthless


def test_batched_bench_is_read() -> None:
    found = measured(JSONL)
    assert found is not None
    assert found.whole_per_s == 64.0
    assert found.steady_per_s == pytest.approx(73.14, abs=0.01)
    assert measured("error: unable to load model") is None


def test_targets_name_sides_that_take_part() -> None:
    for scenario in SCENARIOS.values():
        for row in scenario.rows:
            assert set(row.targets) <= set(scenario.sides[1:]), (scenario.name, row.key)


def _token(text: str, other: str, lead: float) -> Token:
    first, second = (Alternative(list(each.encode()), 0.0) for each in (text, other))
    second.logprob -= lead
    return Token(first.bytes, 0.0, [first, second])


def _said(*tokens: Token, reason: str = "stop") -> Said:
    content = b"".join(bytes(token.bytes) for token in tokens).decode()
    return Said(content, "", (), reason, tokens)


def test_answers_part_at_a_tie_or_they_are_wrong() -> None:
    same, tie, far = _token("a", "b", 3.0), _token("b", "c", 0.04), _token("b", "c", 0.06)
    other = _token("c", "b", 0.06)
    assert verdict(_said(same, far), _said(same, far)) == "equal"
    assert verdict(_said(same, tie), _said(same, other)) == "tie"
    assert verdict(_said(same, far), _said(same, other)) == "parted"
    assert verdict(_said(same), _said(same, tie)) == "parted"
    assert verdict(_said(same), _said(same, reason="length")) == "parted"


def test_conversations_are_many_and_of_all_kinds() -> None:
    assert len(CONVERSATIONS) >= 30
    assert sum(len(each.messages) > 2 for each in CONVERSATIONS) >= 5
    assert sum(bool(each.tools) for each in CONVERSATIONS) >= 5
    chinese = [each for each in CONVERSATIONS if not str(each.messages[-1]["content"]).isascii()]
    assert len(chinese) >= 10


def test_what_children_take_is_ours() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    before = others._ours()
    with watched() as taken:
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert others._ours() - before >= 0.3 * others.TICKS_PER_S - 1
    assert 0.0 <= taken.others + taken.stolen <= 1.0


def test_busy_programs_end_with_the_scenario() -> None:
    with burning() as pids:
        assert len(pids) == n_burners()
        assert all(_runs(pid) for pid in pids)
    assert not any(_runs(pid) for pid in pids)


def test_busy_programs_end_with_a_benchmark_that_is_killed() -> None:
    script = (
        "from tests.bench.busy import burning\nimport time\n"
        "with burning() as pids:\n    print(*pids, flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    with process.stdout as said:
        pids = [int(pid) for pid in said.readline().split()]
        process.send_signal(signal.SIGKILL)
    process.wait(WAIT_S)
    assert pids
    end = time.monotonic() + WAIT_S
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < end, "a program goes on computing"


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
