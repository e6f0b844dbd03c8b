"""Makes cascadevl/gym/fonts: small subsets of free fonts, with their licences and a table of origins.

    python tests/golden/make_fonts.py /tmp/font_packages cascadevl/gym/fonts

It fetches the npm packages `@fontsource/<family>` into the first folder (once), keeps CHARACTERS,
drops hints, kerning and layout tables, and gives every font a neutral name: some have a Reserved
Font Name, which the Open Font License (clause 3) does not let a changed font carry.
Held-out families share no outlines with a training family, so relatives are held out together
(Carlito is drawn after Lato; Arimo, Tinos and Cousine are the outlines of the Liberation fonts).
"""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

CHARACTERS = "".join(map(chr, range(0x20, 0x7F))) + "€£¥°éèêàâçäöüßñíóáú–×·"

TRAIN = """
roboto roboto:700 open-sans open-sans:700 noto-sans noto-sans:700 noto-serif source-sans-3 source-serif-4
montserrat poppins inter inter:700 ibm-plex-sans ibm-plex-serif ibm-plex-mono roboto-mono roboto-slab
inconsolata courier-prime fira-sans fira-mono nunito raleway oswald pt-sans pt-sans:700 pt-serif eb-garamond
libre-baskerville playfair-display bitter rubik work-sans dm-sans manrope quicksand cabin barlow
jetbrains-mono libre-franklin caladea vollkorn spectral alegreya exo-2 josefin-sans hind mukta kanit overpass
signika noto-sans-mono source-code-pro lora public-sans patrick-hand special-elite comic-neue
asap archivo heebo mulish gelasio red-hat-text roboto-condensed
"""
TEST = """
arimo tinos cousine lato carlito merriweather zilla-slab karla titillium-web crimson-text
space-grotesk space-mono
"""


def unpack(family: str, packages: Path) -> Path:
    """The unpacked npm package of a family, fetched if it is not there."""
    folder = packages / family
    if not folder.exists():
        archive = subprocess.run(
            ["npm", "pack", "--silent", f"@fontsource/{family}", "--pack-destination", str(packages)],
            check=True, capture_output=True, text=True,
        ).stdout.split()[-1]  # fmt: skip
        with tarfile.open(packages / archive) as opened:
            opened.extractall(folder, filter="data")
    return folder / "package"


def subset(source: Path, target: Path, name: str) -> None:
    font = TTFont(source, recalcTimestamp=False)
    options = Options(hinting=False, layout_features=[], name_IDs=[], notdef_outline=True, glyph_names=False)
    options.drop_tables += ["GSUB", "GPOS", "GDEF", "kern", "DSIG", "MATH", "STAT", "gasp", "meta", "BASE"]
    subsetter = Subsetter(options)
    subsetter.populate(text=CHARACTERS)
    subsetter.subset(font)
    missing = set(map(ord, CHARACTERS)) - set(font.getBestCmap() or ())
    assert not missing, f"{source.name} lacks {[chr(code) for code in missing]}"
    for number, text in {1: name, 2: "Regular", 3: name, 4: name, 6: name.replace(" ", "")}.items():
        font["name"].setName(text, number, 3, 1, 0x409)
    font.flavor = None
    font.save(target)


def copyright_line(source: Path, licence: str) -> str:
    """From the licence's own text where it has one, otherwise out of the font."""
    found = re.search(r"Copyright\b.*\d{4}.*", licence)
    # Packages list one line per original file ("Name-Italic.ttf: Copyright ..."), all alike.
    own = re.split(r" \S+\.ttf: ", found[0])[0] if found else TTFont(source)["name"].getDebugName(0)
    assert own, f"{source.name}: no copyright line"
    return " ".join(own.split())


def main(packages: Path, fonts: Path) -> None:
    packages.mkdir(parents=True, exist_ok=True)
    rows, notices, number = [], {}, 0
    for split, wanted in {"train": TRAIN, "test": TEST}.items():
        (fonts / split).mkdir(parents=True, exist_ok=True)
        for item in wanted.split():
            family, _, weight = item.partition(":")
            weight, number = weight or "400", number + 1
            package = unpack(family, packages)
            licence = (package / "LICENSE").read_text("utf-8")
            kind = "Apache-2.0" if "Apache License" in licence else "OFL-1.1"
            assert kind == "Apache-2.0" or "SIL Open Font License" in licence, family
            target = fonts / split / f"gym{number:02}.ttf"
            source = package / "files" / f"{family}-latin-{weight}-normal.woff2"
            subset(source, target, f"Gym {number:02}")
            about = json.loads((package / "package.json").read_text("utf-8"))
            original = json.loads((package / "metadata.json").read_text("utf-8"))["family"]
            rows.append(
                f"| {split}/{target.name} | {original} {weight} | {kind} "
                f"| npm @fontsource/{family} {about['version']}, {source.name} |"
            )
            notices[original] = kind, copyright_line(source, licence)
            texts = fonts / ("Apache-2.0.txt" if kind == "Apache-2.0" else "OFL.txt")
            start = "Apache License" if kind == "Apache-2.0" else "This Font Software is licensed under"
            if not texts.exists():
                texts.write_text(licence[licence.index(start) :].strip() + "\n", "utf-8")
    (fonts / "FONTS.md").write_text(
        "# Fonts of the gym\n\nSubsets made by `tests/golden/make_fonts.py`, renamed. `train/` is printed in "
        "training pictures,\n`test/` only in held-out ones. Licence texts: `OFL.txt`, `Apache-2.0.txt`.\n\n"
        "| file | made from | licence | source |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n## Copyright\n\n"
        + "\n".join(f"- {family} ({kind}): {line}" for family, (kind, line) in sorted(notices.items()))
        + "\n",
        "utf-8",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
