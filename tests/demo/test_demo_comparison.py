"""The quickstart's table and its reading follow the figures."""

import pytest

from hgkd_hf.demo.comparison import HGKD, HINTS, MASKED, PIXELS, RANDOM, SPARK, TEACHER, Comparison, Row


def comparison(ours: float) -> Comparison:
    knn = {PIXELS: 0.2, RANDOM: 0.3, SPARK: 0.4, HINTS: 0.55, HGKD: ours, MASKED: 0.5, TEACHER: 0.7}
    rows = {name: Row(value, value, 0.01, 10.0, 100_000) for name, value in knn.items()}
    rows[TEACHER].parameters = 500_000
    return Comparison(rows, bank=2000, queries=1000)


def test_reading_tells_gains_losses_and_noise():
    text = comparison(0.6).reading()
    assert text.startswith("Distillation helped. By kNN the H-GKD student is right for 60.0 %")
    for part in (
        "30.0 points more than untrained (75% of the teacher's lead) and 20.0 points more than trained on pixels",
        "with 5 times its parameters, is right for 70.0 %",
        "has 5.0 points less than H-GKD",
        "on masked images 10.0 points less",
        "below 3.1 points are noise",
    ):
        assert part in text


@pytest.mark.parametrize("ours", [0.25, 0.41])
def test_reading_admits_that_nothing_was_gained(ours):
    assert comparison(ours).reading().startswith("Distillation did not help beyond doubt.")


def test_table_has_a_line_a_row_and_round_trips():
    made = comparison(0.6)
    lines = made.table().splitlines()
    assert len(lines) == 1 + len(made.rows)
    assert lines[5].split() == ["H-GKD", "60.0", "60.0", "±", "1.0", "10", "0.10", "M,", "0.4", "MB"]
    assert Comparison.from_dict(made.to_dict() | {"seed": 0}) == made
