"""The two measures against cases worked by hand, and the series against what the benchmark's authors published."""

from __future__ import annotations

import pytest

from benchmarks.change_points import Series, cover, delays, f1, load

# Cover and F1 of never firing on each series, as published with the benchmark (TCPDBench, default scores of "zero").
NEVER_FIRING = {
    "apple": (0.4246265030, 0.59375),
    "bitcoin": (0.5162283250, 0.4496124031),
    "brent_spot": (0.2658176, 0.3146067416),
    "jfk_passengers": (0.6298433048, 0.7234042553),
    "occupancy": (0.2356212922, 0.3407785578),
    "run_log": (0.3035168628, 0.4455958549),
    "uk_coal_employ": (0.3564807256, 0.5132743363),
}


@pytest.fixture(scope="module")
def series() -> list[Series]:
    return load()


def test_never_firing_scores_what_was_published(series: list[Series]) -> None:
    assert [one.name for one in series] == list(NEVER_FIRING)
    for one in series:
        length = len(one.values)
        expected = pytest.approx(NEVER_FIRING[one.name], abs=1e-9)
        assert (cover(one.annotations, [], length), f1(one.annotations, [])) == expected


def test_series_are_those_that_were_annotated(series: list[Series]) -> None:
    shapes = [one.values.shape for one in series]
    assert shapes == [(622, 2), (774, 1), (500, 1), (468, 1), (509, 4), (376, 2), (105, 1)]
    for one in series:
        assert one.values.mean(axis=0) == pytest.approx(0, abs=1e-9)
        assert one.values.std(axis=0, ddof=1) == pytest.approx(1)
        assert max(point for points in one.annotations for point in points) < len(one.values)
    # The fall that four of five annotators saw at 319, and nothing else, lies there after the cut.
    close = series[0].values[:, 0]
    assert close[318] - close[319] == max(abs(close[1:] - close[:-1]))


def test_cover_by_hand() -> None:
    # Segments 3, 5, 2 against 4, 6: 3 · 3/4 + 5 · 4/7 + 2 · 2/6, of 10.
    assert cover([[3, 8]], [4], 10) == pytest.approx((9 / 4 + 20 / 7 + 2 / 3) / 10)
    # Two annotators: the mean. The second sees one segment, whose best share is 6/10.
    assert cover([[3, 8], []], [4], 10) == pytest.approx(((9 / 4 + 20 / 7 + 2 / 3) / 10 + 0.6) / 2)
    assert cover([[3, 8]], [3, 8], 10) == 1
    assert cover([[3, 8]], [8, 3, 3, 0, 10], 10) == 1  # order, repeats and the ends say nothing
    assert cover([[]], list(range(1, 10)), 10) == pytest.approx(0.1)


def test_f1_by_hand() -> None:
    def harmonic(precision: float, recall: float) -> float:
        return 2 * precision * recall / (precision + recall)

    assert f1([[10, 20]], [10, 20]) == 1
    assert f1([[10, 20]], []) == pytest.approx(harmonic(1, 1 / 3))
    assert f1([[10]], [15]) == 1
    assert f1([[10]], [16]) == pytest.approx(harmonic(1 / 2, 1 / 2))
    assert f1([[10]], [16], margin=6) == 1
    assert f1([[100]], [97, 103]) == pytest.approx(harmonic(2 / 3, 1))  # one point is found once
    assert f1([[100, 104]], [102]) == pytest.approx(harmonic(1, 2 / 3))  # and finds one
    # Precision against all annotators' points together, recall for each: {0, 100} fully, {0, 200} and {0} in part.
    assert f1([[100], [200], []], [101, 300]) == pytest.approx(harmonic(2 / 3, (1 + 1 / 2 + 1) / 3))


def test_delays_are_counted_from_each_point_to_the_next() -> None:
    assert delays([[10, 20], [25]], [9, 10, 30], 40) == [0, 10, 5]
    assert delays([[10, 20], []], [], 40) == [None, None]
