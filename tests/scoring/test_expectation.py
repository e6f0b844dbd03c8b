import math

import pytest

from cascadevl.core.errors import ConfigError
from cascadevl.scoring.consensus import rank, score
from cascadevl.scoring.expectation import BY_BOTH, BY_DISTANCE, FLOOR, expected_error


def test_the_expectation_is_a_product_of_powers():
    factor, power, own_power = BY_BOTH
    assert expected_error(0.2, 0.3) == pytest.approx(
        math.exp(math.log(factor) + power * math.log(0.2 + FLOOR) + own_power * math.log(0.3 + FLOOR))
    )
    assert expected_error(0.2) == pytest.approx(BY_DISTANCE[0] * (0.2 + FLOOR) ** BY_DISTANCE[1])


def test_it_grows_with_each_doubt_and_stays_a_rate():
    steps = [at / 20 for at in range(21)]
    for own in (None, *steps):
        found = [expected_error(each, own) for each in steps]
        assert found == sorted(set(found)) and found[0] > 0 and found[-1] <= 1
    for each in steps:
        found = [expected_error(each, own) for own in steps]
        assert found == sorted(set(found))


def test_a_reader_sure_of_itself_changes_what_is_expected_and_not_what_is_read():
    readings = ["the total is 12", "the total is 13", "the tofal is 12"]
    plain, sure, unsure = score(readings), score(readings, own_doubt=0.01), score(readings, own_doubt=0.4)
    assert sure.expected_error < unsure.expected_error
    assert (sure.text, sure.doubt, sure.columns) == (plain.text, plain.doubt, plain.columns)
    assert plain.expected_error == expected_error(plain.unconfirmed)


def test_of_pages_read_alike_the_one_whose_reader_is_unsure_ranks_first():
    pages = {"sure": score(["same", "same"], own_doubt=0.01), "unsure": score(["same", "same"], own_doubt=0.5)}
    assert rank(pages) == ["unsure", "sure"]


@pytest.mark.parametrize("own", [-0.1, 1.1, float("nan")])
def test_a_doubt_that_is_no_share_is_refused(own):
    with pytest.raises(ConfigError, match="own_doubt must lie in"):
        score(["a", "b"], own_doubt=own)
