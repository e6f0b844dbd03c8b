import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from PIL import Image

from cascadevl.apps.ocr_consensus.pages import find_pages
from cascadevl.apps.ocr_consensus.readers import Reading
from cascadevl.apps.ocr_consensus.run import Desk, Limits, Run, read_upright
from cascadevl.apps.ocr_consensus.vote import CONFIDENT
from cascadevl.core.errors import ConfigError
from tests.apps.ocr_consensus.fakes import Fake, FakeExpert, page

GOOD, BAD, NUMBER = 250, 200, 150
ANN = {GOOD: "all is well\ntotal 12", BAD: "what is this", NUMBER: "a long line of words and 1,284.50"}
BOB = {GOOD: "all is well\ntotal 12", BAD: "whqt ls tkjs", NUMBER: "a long line of words and 1,284.50"}
CAT = {GOOD: "all is well\ntotal 12", BAD: "zzz", NUMBER: "a long line of words and 1,264.50"}


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, level in (("good", GOOD), ("bad", BAD), ("number", NUMBER)):
        page(folder / f"{name}.png", level)
    return folder


def readers() -> list[Fake]:
    return [Fake("ann", dict(ANN), boxes=True), Fake("bob", dict(BOB)), Fake("cat", dict(CAT))]


def run(scans: Path, staff: list, expert: FakeExpert | None = None, desks: int = 1, **rules) -> dict:
    out = scans.parent / "out"
    each = [Desk(readers=staff, expert=expert) for _ in range(desks)]
    return Run(out=out, desks=each, limits=Limits(**rules))(find_pages([scans]))


def facts(scans: Path, name: str) -> dict:
    return json.loads((scans.parent / "out" / f"{name}.json").read_text())


def test_every_page_gets_its_files_and_the_report_ranks_them(scans):
    report = run(scans, readers())
    out = scans.parent / "out"
    assert {path.suffix for path in out.glob("good.*")} == {".txt", ".md", ".json", ".hocr", ".html"}
    assert (out / "good.txt").read_text() == "all is well\ntotal 12\n"
    assert [row["name"] for row in report["pages"]] == ["bad", "number", "good"]
    assert [row["doubtful"] for row in report["pages"]] == [True, True, False]
    assert report["pages"][1]["doubt"] < 0.1 and 0.2 <= report["pages"][1]["number_doubt"] < 0.34
    assert json.loads((out / "report.json").read_text()) == report
    assert 'href="bad.html"' in (out / "index.html").read_text()
    assert not [path for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_finished_pages_are_not_read_again(scans):
    run(scans, readers())
    staff = readers()
    report = run(scans, staff)
    assert [reader.seen for reader in staff] == [[], [], []]
    assert report["num_pages"] == 3 and report["num_doubtful"] == 2


@pytest.mark.parametrize("change", ["picture", "version", "readers", "json"])
def test_a_page_is_read_again_when_what_it_is_made_of_changes(scans, change):
    run(scans, readers())
    staff = readers()
    if change == "picture":
        page(scans / "good.png", NUMBER)
    elif change == "version":
        staff[0].version = "2"
    elif change == "readers":
        staff = staff[:2]
    else:
        (scans.parent / "out" / "good.json").write_text('{"made_of": ')
    run(scans, staff)
    assert len(set(staff[0].seen)) == (1 if change in ("picture", "json") else 3)


def test_a_reader_that_fails_is_told_and_the_others_go_on(scans):
    staff = readers()
    staff[1].texts[GOOD] = RuntimeError("out of ink")
    report = run(scans, staff)
    [row] = [row for row in report["pages"] if row["name"] == "good"]
    assert row["failed"] == {"bob": "out of ink"}
    assert row["num_readers"] == 2 and row["doubt"] == 0
    again = readers()
    run(scans, again)
    assert again[1].seen == [GOOD], "a page that a reader failed on is tried again"


def test_a_reader_left_alone_is_not_believed(scans):
    staff = readers()
    staff[0].texts[GOOD] = staff[1].texts[GOOD] = RuntimeError("no")
    [row] = [row for row in run(scans, staff)["pages"] if row["name"] == "good"]
    assert row["num_readers"] == 1 and row["doubt"] == 1 and row["doubtful"]


def test_removing_a_failed_readers_page_changes_nothing_else(scans):
    staff = readers()
    staff[2].texts[GOOD] = RuntimeError("no")
    run(scans, staff)
    with_failure = [facts(scans, name)["text"] for name in ("bad", "number")]
    run(scans, readers())
    assert with_failure == [facts(scans, name)["text"] for name in ("bad", "number")]


def test_a_page_nobody_can_open_or_read_is_an_error_of_its_own(scans):
    (scans / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    staff = readers()
    for reader in staff:
        reader.texts[BAD] = RuntimeError("no")
    report = run(scans, staff)
    errors = {row["name"]: row["error"] for row in report["pages"] if "error" in row}
    assert set(errors) == {"broken", "bad"}
    assert "cannot be decoded" in errors["broken"] and "No reader" in errors["bad"]
    assert report["num_failed"] == 2 and report["num_doubtful"] == 3


def test_the_expert_sees_the_worst_pages_within_its_budget(scans):
    expert = FakeExpert("what is this")
    report = run(scans, readers(), expert, expert_share=0.34)
    assert [row["name"] for row in report["pages"] if row["expert"]] == ["bad"]
    assert expert.shown[0][0] == [ANN[BAD], BOB[BAD], CAT[BAD]]
    assert report["num_reviewed"] == 1
    assert facts(scans, "bad")["text"] == "what is this\n"
    assert facts(scans, "bad")["doubt"] < facts(scans, "bad")["first_doubt"]


def test_an_expert_page_is_finished_and_still_counts_for_the_budget(scans):
    run(scans, readers(), FakeExpert("what is this"), expert_share=0.34)
    again = FakeExpert("what is this")
    report = run(scans, readers(), again, expert_share=0.34)
    assert again.shown == [] and report["num_reviewed"] == 1
    other = FakeExpert("what is that", name="seer")
    run(scans, readers(), other, expert_share=0.34)
    assert len(other.shown) == 1 and facts(scans, "bad")["expert"] == "seer"


def test_without_budget_and_without_doubt_nobody_asks_the_expert(scans):
    expert = FakeExpert("x")
    run(scans, readers(), expert, expert_share=0.3)
    run(scans, readers(), expert, expert_share=1.0, max_error=1.0, max_doubt=1.0, max_number_doubt=1.0)
    assert expert.shown == []


@pytest.mark.parametrize(("confidence", "is_doubtful"), [(0.9, False), (0.5, True)])
def test_a_page_read_alike_is_doubtful_when_the_best_reader_is_unsure_and_the_expert_sees_it(
    scans, confidence, is_doubtful
):
    same: dict[int, str | Exception] = {GOOD: ANN[GOOD], BAD: ANN[GOOD], NUMBER: ANN[GOOD]}
    staff = [Fake(CONFIDENT, same, boxes=True, confidence=confidence), Fake("bob", same)]
    report = run(scans, staff, max_error=0.03)
    assert {(row["unconfirmed"], row["doubtful"]) for row in report["pages"]} == {(0, is_doubtful)}
    assert run(scans, staff, max_error=0.06)["num_doubtful"] == 0
    expert = FakeExpert(ANN[GOOD])
    assert run(scans, staff, expert, max_error=0.03, expert_share=1.0)["num_reviewed"] == 3 * is_doubtful


def test_an_expert_who_makes_things_up_does_not_replace_the_consensus(scans):
    staff = readers()
    staff[2].texts[BAD] = "what is thls"
    run(scans, staff, FakeExpert("I am sorry, I cannot help with that. " * 3), expert_share=1.0)
    assert "sorry" not in facts(scans, "bad")["text"]


def test_an_expert_who_fails_leaves_the_consensus_and_is_asked_again(scans):
    class Failing(FakeExpert):
        def review(self, image, candidates, consensus):
            raise RuntimeError("prompt too long")

    before = run(scans, readers())
    report = run(scans, readers(), Failing(""), expert_share=0.34)
    assert report["num_reviewed"] == 0
    assert report["pages"][0]["failed"] == {"sage (expert)": "prompt too long"}
    assert [row["doubt"] for row in report["pages"]] == [row["doubt"] for row in before["pages"]]
    assert run(scans, readers(), FakeExpert("what is this"), expert_share=0.34)["num_reviewed"] == 1


def test_pages_are_read_side_by_side_with_the_same_result(scans):
    alone = run(scans, readers())
    for path in (scans.parent / "out").glob("*.json"):
        path.unlink()
    together = run(scans, readers(), desks=3)
    strip = [{name: value for name, value in row.items() if name != "seconds"} for row in alone["pages"]]
    assert strip == [{name: value for name, value in row.items() if name != "seconds"} for row in together["pages"]]


def test_truth_gives_error_rates_and_a_threshold(scans):
    truth = scans.parent / "truth"
    truth.mkdir()
    for name, text in (("good", ANN[GOOD]), ("bad", "something else entirely"), ("number", ANN[NUMBER])):
        (truth / f"{name}.txt").write_text(text)
    out = scans.parent / "out"
    report = Run(out=out, desks=[Desk(readers=readers())], truth=truth)(find_pages([scans]))
    assert {row["name"]: row["error_rate"] > 0.05 for row in report["pages"]} == {
        "good": False, "number": False, "bad": True,
    }  # fmt: skip
    assert report["calibration"]["f1"] == 1 and report["calibration"]["num_bad"] == 1
    with pytest.raises(ConfigError, match=r"no text of any page, such as \w+\.txt"):
        Run(out=out, desks=[Desk(readers=readers())], truth=scans)(find_pages([scans]))


def test_two_runs_do_not_share_a_folder(scans):
    fcntl = pytest.importorskip("fcntl")
    out = scans.parent / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="Another run"):
            run(scans, readers())


def test_killed_at_any_moment_it_leaves_nothing_half_written_and_goes_on(scans, tmp_path):
    for at in range(12):
        page(scans / f"more{at:02}.png", GOOD)
    code = f"""
        import time
        from pathlib import Path
        from tests.apps.ocr_consensus.test_run import run, readers
        class Slow:
            name = version = "slow"
            def read(self, image):
                time.sleep(0.1)
                return readers()[0].read(image)
        run(Path({str(scans)!r}), [*readers(), Slow()])
    """
    started = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[3])
    out = scans.parent / "out"
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    (out / ".torn.txt.abcd1234").write_text("half")
    finished = list(out.glob("*.json"))
    assert 3 <= len(finished) < 15
    for path in finished:
        assert json.loads(path.read_text())["text"] == path.with_suffix(".txt").read_text()
    report = run(scans, readers())
    assert report["num_pages"] == 15 and report["num_failed"] == 0
    assert not list(out.glob(".torn*"))


class Confused:
    """Reads letters of which so many are wrong; how many depends on which way up a page lies."""

    name, version = "confused", "1"

    def __init__(self, upright: int, turned: int) -> None:
        self.wrong = {0: upright, 255: turned}

    def read(self, image: Image.Image) -> Reading:
        corner = image.getpixel((0, 0))
        wrong = self.wrong[int(corner[0] if isinstance(corner, tuple) else corner or 0)]
        return Reading("x" * wrong + "abcdefghij"[wrong:])


@pytest.mark.parametrize(("turned", "degrees"), [(4, 0), (3, 180)])
def test_a_page_is_turned_only_where_readers_agree_clearly_better(turned, degrees):
    page = Image.new("RGB", (60, 40), "white")
    page.putpixel((0, 0), (0, 0, 0))
    assert read_upright([Confused(0, 0), Confused(5, turned)], page)[0] == degrees
