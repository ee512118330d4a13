"""Result files, and the tables and plots made from them; docs/performance.md agrees with its files."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load import goals, report, tables
from benchmarks.load.checkpoints import cache_folder
from benchmarks.load.records import ROOT, Result, ServerRecord, default_path, read, write
from server.cli_errors import UsageError
from tests.benchmarks.load.results import LOADS, MACHINE, record, result, sample


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    write(result(), path, {})
    assert read(path) == replace(result(), loads=list(LOADS), rounds=listed(result()))


def listed(one: Result) -> list[ServerRecord]:
    """The rounds with samples in lists, as a file has them."""
    return [
        replace(
            made,
            loads={name: replace(load, samples=list(load.samples)) for name, load in made.loads.items()},
        )
        for made in one.rounds
    ]


def test_a_file_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    command = f"{ROOT}/.venv/bin/twogear serve {ROOT}/models {cache_folder()}/large {tmp_path}/caches {Path.home()}/x"
    write(replace(result(), command=command), tmp_path / "bench.json", {str(tmp_path): "TEMP"})
    written = json.loads((tmp_path / "bench.json").read_text())["command"]
    assert written.endswith("twogear serve models CACHE/large TEMP/caches ~/x")
    assert str(ROOT) not in written


def test_the_name_of_a_file_says_the_hardware() -> None:
    assert default_path("large", MACHINE).name.startswith("bench_large_2x-epyc_20")
    odd = replace(MACHINE, cpu="Something/else")
    assert default_path("large", odd).name.startswith("bench_large_2x-cpu_20")


def test_throughput_is_the_median_over_rounds_beside_the_bare_engine_and_the_limit() -> None:
    cells = tables.throughput(result())
    assert cells.head == ["load", "twogear", "vllm", "bare engine", "limit"]
    first, second = cells.rows
    assert first[:4] == ["1 standard 100", "3.7", "1.1", "10.0"]  # 11 tokens in 3, in 10 and in 1.1 s
    assert second[1:4] == ["7.3", "1.1", tables.NOTHING]  # the request that failed counts for nothing
    # One step reads 2 MB of weights and what 106 tokens left in 8 layers: 205 µs at 10 GB/s; the prompt takes longer.
    assert float(first[4].replace(",", "")) == pytest.approx(11 / (2e-3 + 10 * 205e-6), rel=0.1)


def test_a_stream_is_held_to_the_bandwidth_that_the_machine_had_beside_it(tmp_path: Path) -> None:
    one = result()
    shared = [5e9, 20e9, 8e9]
    rounds = [
        replace(made, loads={LOADS[0].name: replace(made.loads[LOADS[0].name], read_bandwidth=bandwidth)})
        for made, bandwidth in zip([made for made in one.rounds if made.server == "twogear"], shared, strict=True)
    ]
    theirs = replace(one.rounds[1], loads={LOADS[0].name: replace(record(9.0, sample(9.0)), read_bandwidth=100e9)})
    write(replace(one, rounds=[*rounds, theirs]), tmp_path / "bench.json", {})
    measured = read(tmp_path / "bench.json")
    beside_nothing = tables.per_token_limit(one, LOADS[0])
    assert tables.per_token_limit(measured, LOADS[0], "twogear") == pytest.approx(beside_nothing * 10 / 8)
    assert tables.per_token_limit(measured, LOADS[0]) == pytest.approx(beside_nothing * 10 / 14)  # median of all


def test_latency_costs_and_starts() -> None:
    assert tables.latency(result()).rows[0] == [
        "1 standard 100",
        "twogear",
        "1,000 / 1,000",
        "1,250 / 1,250",
        "200 / 200",
    ]
    assert tables.costs(result()).rows[0] == ["1 standard 100", "twogear", "1,000", "2,000", "300", "1.50"]
    assert tables.starts(result()).rows == [
        ["twogear", "9.0 s", "10.0 s", "10.5 s", "11.5 s"],
        ["vllm", "50.0 s", "51.0 s", tables.NOTHING, tables.NOTHING],
    ]


def test_goals_are_reached_missed_or_unknown() -> None:
    rows = {(row[0], row[1]): row[2:] for row in goals.table(result()).rows}
    assert rows["1 stream, tokens/s", "≥ 2× vllm"] == ["3.33×", "yes"]
    assert rows["first start to ready", "≤ 25 s"] == ["9.00 s", "yes"]
    assert rows["later start to ready", "≤ 12 s"] == ["10.00 s", "yes"]
    assert rows["128 streams, tokens/s", "≥ 1.6× vllm-tuned"] == [tables.NOTHING, tables.NOTHING]
    large = replace(result(), what="large")
    rows = {(row[0], row[1]): row[2:] for row in goals.table(large).rows}
    # A token takes 0.2 s, and 0.2 ms would do for what has to be read.
    assert rows["1 stream, share of the limit of bf16 weights", "≥ 0.85×"] == ["0.00×", "no"]
    assert rows["1 stream, sampled over greedy time per token", "≤ 1.03×"] == [tables.NOTHING, tables.NOTHING]


def test_goals_of_fewer_bits_come_with_their_servers() -> None:
    large = replace(result(), what="large")
    assert not any("int8" in goal.figure for goal in goals.goals(large))
    measured = {"twogear": 3.0, "twogear-int8": 2.0, "llama.cpp-q8_0": 4.0}
    rounds = [ServerRecord(name, 1, loads={LOADS[0].name: record(s, sample(s))}) for name, s in measured.items()]
    rows = {(row[0], row[1]): row[2:] for row in goals.table(replace(large, rounds=rounds)).rows}
    assert rows["1 stream, twogear-int8's time per token", "≤ 0.85× llama.cpp-q8_0"] == ["0.50×", "yes"]
    assert rows["1 stream, twogear-int4's time per token", "≤ 0.75× llama.cpp-q4_k_m"] == [tables.NOTHING] * 2
    many = "8 half 100, twogear-int8's tokens/s"
    assert rows[many, "≥ 2× the best llama.cpp"] == [tables.NOTHING] * 2


def test_what_has_fewer_bits_is_not_beside_the_limit_of_bf16() -> None:
    rounds = [ServerRecord("twogear-int8", 1, loads={LOADS[0].name: record(1.0, sample(1.0))})]
    both = replace(result(), rounds=[*result().rounds, *rounds])
    assert report._limits(both) == report._limits(result())


def test_the_cross_check_stands_beside_the_same_round() -> None:
    assert tables.cross_check(result()).rows == []
    other = {"load": LOADS[0].name, "output_throughput": 4.25}
    assert tables.cross_check(replace(result(), beside={"vllm-bench": other})).rows == [
        ["1 standard 100", "5.5", "4.2"]
    ]


def test_failures_are_told() -> None:
    told = tables.failures(result())
    assert "vllm, round 2: out of memory" in told
    assert "vllm, round 1, 2 half 100: 1 failed: refused" in told
    assert "transformers: no time" in told


def test_a_load_in_which_everything_failed(tmp_path: Path) -> None:
    broken = replace(
        result(),
        rounds=[replace(result().rounds[0], loads={LOADS[0].name: record(1.0, sample(1.0, error="refused"))})],
    )
    assert tables.throughput(broken).rows[0][1] == "10.0"  # the bare engine's: the server's column is empty
    assert "refused" in tables.failures(broken)[0]


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own, with a result and a document that names it."""
    for module in (report,):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "RESULTS", tmp_path / "benchmarks" / "results")
        monkeypatch.setattr(module, "DOCUMENT", tmp_path / "docs" / "performance.md")
    write(result(), tmp_path / "benchmarks" / "results" / "bench_embedded_2x-epyc_2026-11-23.json", {})
    path: Path = report.DOCUMENT
    path.parent.mkdir()
    return path


FILE = "benchmarks/results/bench_embedded_2x-epyc_2026-11-23.json"


def test_blocks_are_filled_and_the_words_around_them_stay(document: Path) -> None:
    blocks = [f"<!-- bench {name} {FILE} -->\nold\n<!-- end -->\n" for name in ("throughput", "plot-per-token")]
    document.write_text(f"# Speed\n\n{blocks[0]}\nIn words.\n\n{blocks[1]}")
    assert report.run(argparse.Namespace(results=[])) == 0
    text = document.read_text()
    assert text.startswith("# Speed\n\n<!-- bench throughput")
    assert "\nIn words.\n" in text
    assert "old" not in text
    assert "| 1 standard 100 | 3.7 | 1.1 | 10.0 |" in text
    assert "(performance/embedded-plot-per-token.svg)" in text
    drawing = (document.parent / "performance" / "embedded-plot-per-token.svg").read_text()
    assert "ms per output token" in drawing
    assert report.render(text) == text
    assert list(report.drawings(text).values()) == [drawing], "the same result gives the same plot"


def test_a_newer_result_takes_the_place_of_an_older_one(document: Path) -> None:
    document.write_text(f"<!-- bench machine {FILE} -->\n<!-- end -->\n")
    newer = document.parents[1] / FILE.replace("11-23", "12-01")
    write(replace(result(), commit="newer"), newer, {})
    assert report.run(argparse.Namespace(results=[newer])) == 0
    assert "commit newer" in document.read_text()
    with pytest.raises(UsageError, match="no result file"):
        report.run(argparse.Namespace(results=[document]))


@pytest.mark.parametrize(("block", "told"), [(f"nonsense {FILE}", "no table"), ("machine none.json", "does not exist")])
def test_a_block_that_cannot_be_filled(document: Path, block: str, told: str) -> None:
    document.write_text(f"<!-- bench {block} -->\n<!-- end -->\n")
    with pytest.raises(UsageError, match=told):
        report.run(argparse.Namespace(results=[]))


def test_the_document_is_what_its_files_say() -> None:
    text = report.DOCUMENT.read_text()
    assert report.render(text) == text, "run `twogear bench report`"
    for path, svg in report.drawings(text).items():
        assert path.read_text() == svg, "run `twogear bench report`"
