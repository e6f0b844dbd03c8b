import pytest

from cascadevl.core.errors import ConfigError
from cascadevl.scoring.threshold import calibrate, judge


def test_separable_pages_are_separated():
    chosen = calibrate([(0.02, 0.0), (0.05, 0.01), (0.3, 0.4), (0.5, 0.2)])
    assert chosen.value == pytest.approx(0.175)
    assert (chosen.precision, chosen.recall, chosen.f1, chosen.num_bad) == (1, 1, 1, 2)


def test_it_is_the_best_of_all_thresholds():
    pairs = [(0.1, 0.2), (0.2, 0.0), (0.3, 0.5), (0.4, 0.05), (0.5, 0.9), (0.5, 0.0)]
    chosen = calibrate(pairs)
    assert chosen.f1 == max(judge(pairs, value / 100, 0.1).f1 for value in range(101))


def test_f1_by_hand():
    # Above 0.25: two pages, one of them bad; another bad one is missed.
    found = judge([(0.1, 0.9), (0.3, 0.9), (0.4, 0.0)], 0.25, 0.1)
    assert (found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5)


def test_without_bad_pages_nothing_is_routed():
    chosen = calibrate([(0.2, 0.0), (0.4, 0.01)])
    assert (chosen.value, chosen.f1, chosen.num_bad) == (0.4, 1.0, 0)


@pytest.mark.parametrize("pairs", [[], [(float("nan"), 0.1)], [(-1.0, 0.1)]])
def test_what_is_no_pairs_is_refused(pairs):
    with pytest.raises(ConfigError, match="pairs"):
        calibrate(pairs)


def test_of_thresholds_that_do_as_well_the_largest_is_chosen():
    assert calibrate([(0.0, 0.0), (0.4, 0.5)]).value == 0.2, "0 finds the same page, and would route more of others"
