"""What is told of servers that were started in turn."""

from benchmarks.starts_in_turns import Start, table


def test_ratios_are_of_later_starts_and_each_round() -> None:
    starts = [
        Start("bf16", 0, 60.0, 90.0, 4000.0),
        Start("int8", 0, 70.0, 95.0, 4100.0),
        *(Start("bf16", n, ready, 20.0, 3000.0) for n, ready in enumerate((20.0, 40.0, 20.0), 1)),
        *(Start("int8", n, ready, 15.0, 1500.0) for n, ready in enumerate((10.0, 24.0, 30.0), 1)),
    ]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(starts, ["bf16", "int8"]).splitlines()
    ]
    assert rows[2:] == [
        ["bf16", "60.0", "20.0 (1.00)", "20.0 (1.00)", "3,000.0 (1.00)"],
        ["int8", "70.0", "24.0 (0.60)", "15.0 (0.75)", "1,500.0 (0.50)"],
    ]
