import random
from pathlib import Path

from fontTools.ttLib import TTFont

from cascadevl.gym import assets


def test_train_and_test_fonts_are_different_files_and_all_have_an_origin() -> None:
    origins = (assets.FOLDER / "fonts" / "FONTS.md").read_text("utf-8")
    assert len(assets.faces("train")) >= 45 and len(assets.faces("test")) >= 10
    for face in (*assets.faces("train"), *assets.faces("test")):
        row = next(line for line in origins.splitlines() if f"{face}.ttf" in line)
        assert "OFL-1.1" in row or "Apache-2.0" in row
    rows = [line.split("|") for line in origins.splitlines() if ".ttf | " in line]
    train, test = (
        {row[2].rsplit(maxsplit=1)[0] for row in rows if row[1].strip().startswith(split)}
        for split in ("train", "test")
    )
    assert len(train) >= 45 and not train & test


def test_fonts_carry_neutral_names_and_all_printable_ascii() -> None:
    for path in sorted((assets.FOLDER / "fonts").glob("*/*.ttf"))[::6]:
        font = TTFont(path)
        assert str(font["name"].getDebugName(1)).startswith("Gym ")
        assert set(range(0x20, 0x7F)) | {ord("€"), ord("£")} <= set(font.getBestCmap() or ())


def test_fonts_and_words_stay_small() -> None:
    files = [path for path in Path(assets.FOLDER).rglob("*") if path.suffix in (".ttf", ".txt", ".md")]
    assert sum(path.stat().st_size for path in files) < 2 * 2**20


def test_words_are_divided_by_their_letters_whatever_their_list_and_case() -> None:
    kinds = ("english", "first_names", "surnames", "products", "shop_names", "shop_kinds")
    train = {word.lower() for kind in kinds for word in assets.words("train", kind)}
    test = {word.lower() for kind in kinds for word in assets.words("test", kind)}
    assert not train & test
    assert len(assets.words("train")) > 5000
    assert 0.08 < len(assets.words("test")) / 6200 < 0.12
    assert all(len(assets.words("test", kind)) >= 5 for kind in kinds)


def test_made_up_words_are_in_no_list_and_on_their_own_side() -> None:
    rng = random.Random(0)
    for _ in range(100):
        word = assets.pseudo_word(rng, "test")
        assert assets.held_out(word) and word not in assets.words("test")
        assert not assets.held_out(assets.pseudo_word(rng, "train"))
