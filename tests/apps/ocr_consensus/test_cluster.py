import json
import os
import sys

import pytest

from cascadevl.apps.ocr_consensus.cluster import read_on_cluster
from cascadevl.apps.ocr_consensus.pages import find_pages
from cascadevl.apps.ocr_consensus.run import Desk, Run
from cascadevl.core.errors import MissingExtra
from tests.apps.ocr_consensus.fakes import page
from tests.apps.ocr_consensus.test_run import BAD, GOOD, NUMBER, readers


class FakeChoice:
    def desk(self, cache):
        return Desk(readers=readers())


@pytest.mark.filterwarnings("ignore")
def test_pages_read_with_daft_are_finished_for_the_run_that_follows(tmp_path, monkeypatch):
    pytest.importorskip("daft", reason="daft is not installed")
    for at, level in enumerate((GOOD, BAD, NUMBER)):
        page(tmp_path / f"page{at}.png", level)
    sources = find_pages([tmp_path])
    rows = read_on_cluster(sources, FakeChoice(), Run(out=tmp_path / "out", desks=()), workers=1)  # type: ignore[arg-type]
    assert [row["name"] for row in rows] == ["page0", "page1", "page2"]
    assert [row["num_readers"] for row in rows] == [3, 3, 3]
    staff = readers()
    report = Run(out=tmp_path / "out", desks=[Desk(readers=staff)])(sources)
    assert [reader.seen for reader in staff] == [[], [], []]
    assert {row["name"]: row["doubt"] for row in report["pages"]} == {row["name"]: row["doubt"] for row in rows}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["num_pages"] == 3


@pytest.mark.parametrize(("set_to", "expected"), [(None, "1"), ("0", "0")])
def test_without_daft_the_error_names_it_and_with_it_nobody_is_told(tmp_path, monkeypatch, set_to, expected):
    """Daft tells its makers that it was imported, unless it is told not to before."""
    monkeypatch.setenv("DO_NOT_TRACK", "")  # so that what the code sets is taken back
    monkeypatch.delenv("DO_NOT_TRACK")
    if set_to is not None:
        monkeypatch.setenv("DO_NOT_TRACK", set_to)
    monkeypatch.setitem(sys.modules, "daft", None)
    with pytest.raises(MissingExtra, match="pip install daft"):
        read_on_cluster([], FakeChoice(), Run(out=tmp_path, desks=()), workers=1)  # type: ignore[arg-type]
    assert os.environ["DO_NOT_TRACK"] == expected
