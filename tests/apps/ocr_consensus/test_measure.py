import pytest

from cascadevl.apps.ocr_consensus.measure import measure


@pytest.mark.parametrize(("num", "is_proved"), [(4, False), (12, True)])
def test_with_enough_truth_the_threshold_is_proved_on_other_pages(tmp_path, num, is_proved):
    rows = []
    for at in range(num):
        is_bad = at % 3 == 0
        rows.append({"name": f"p{at}", "first_unconfirmed": 0.4 if is_bad else 0.01})
        (tmp_path / f"p{at}.txt").write_text("a line of text")
    truth = tmp_path / "truth"
    truth.mkdir()
    for at in range(num):
        (truth / f"p{at}.txt").write_text("some other line" if at % 3 == 0 else "a line  of\ntext")
    found = measure(rows, tmp_path, truth, bad_error=0.1)
    assert (found["proved_on_others"] is not None) == is_proved
    assert found["num_pages"] == (num // 2 if is_proved else num)
    assert {row["error_rate"] > 0.1 for row in rows[::3]} == {True} and rows[1]["error_rate"] == 0
    if is_proved:
        assert found["proved_on_others"]["value"] == found["value"]
        assert found["proved_on_others"]["num_pages"] == num - num // 2
        assert found["f1"] == found["proved_on_others"]["f1"] == 1


def test_pages_without_truth_or_with_an_error_are_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("x y")
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.txt").write_text("x y")
    rows = [
        {"name": "a", "first_unconfirmed": 0.0},
        {"name": "b", "first_unconfirmed": 0.0},
        {"name": "c", "error": "x"},
    ]
    assert measure(rows, tmp_path, tmp_path / "truth", 0.05)["num_pages"] == 1
    assert [("error_rate" in row) for row in rows] == [True, False, False]
