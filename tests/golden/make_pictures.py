"""Makes cascadevl/gym/pictures: small drawings of things, by six studios in ten sets, with their names and licences.

    apt-get install librsvg2-bin
    python tests/golden/make_pictures.py /tmp/picture_packages cascadevl/gym/pictures

It fetches the npm packages `@iconify-json/<set>` into the first folder (once). The names are those that
Unicode gives the characters (CLDR short names), as far as the four sets of WHOLE draw them and one knows the
thing by looking. Each set becomes one sheet of SIDE_PX squares in the order of NAMES; what a set lacks stays
transparent. Where Unicode got a character after a set was drawn, an icon may carry an older name: it counts as
lacking.
"""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

from PIL import Image

SETS = {
    "noto": ("Noto Emoji", "Google", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    "fluent-emoji-flat": ("Fluent Emoji Flat", "Microsoft", "MIT", "https://github.com/microsoft/fluentui-emoji"),
    "twemoji": ("Twemoji", "Twitter and contributors", "CC-BY-4.0", "https://github.com/jdecked/twemoji"),
    "emojione": ("EmojiOne 2 (EmojiTwo)", "EmojiOne and contributors", "CC-BY-4.0",
                 "https://github.com/EmojiTwo/emojitwo"),
    "noto-v1": ("Noto Emoji, first version", "Google", "Apache-2.0", "https://github.com/googlefonts/noto-emoji"),
    "fluent-emoji": ("Fluent Emoji", "Microsoft", "MIT", "https://github.com/microsoft/fluentui-emoji"),
    "fluent-emoji-high-contrast": ("Fluent Emoji High Contrast", "Microsoft", "MIT",
                                   "https://github.com/microsoft/fluentui-emoji"),
    "emojione-monotone": ("EmojiOne 1, one colour", "EmojiOne and contributors", "CC-BY-4.0",
                          "https://github.com/EmojiTwo/emojitwo"),
    "fxemoji": ("FxEmojis", "Mozilla", "Apache-2.0", "https://github.com/mozilla/fxemoji"),
    "streamline-emojis": ("Streamline Emojis", "Streamline", "CC-BY-4.0",
                          "https://www.streamlinehq.com/emojis/download-emojis"),
}  # fmt: skip
WHOLE = ("noto", "fluent-emoji-flat", "twemoji", "emojione")
NAMES = """
ant bat bear bird boar butterfly camel cat chicken cow crab crocodile deer dog dolphin dragon duck eagle
elephant fish fox frog goat gorilla honeybee horse koala lady-beetle lion lizard monkey mouse octopus owl ox
panda penguin pig rabbit rat rhinoceros rooster scorpion shark snail snake spider squid tiger turkey turtle
unicorn whale wolf avocado bacon banana bread burrito candy carrot cheese-wedge cherries chestnut cookie
croissant cucumber doughnut egg eggplant french-fries grapes green-apple hamburger hot-dog hot-pepper ice-cream
kiwi-fruit lemon lollipop melon mushroom pancakes peach peanuts pear pineapple pizza popcorn potato red-apple
shrimp spaghetti strawberry sushi taco tangerine tomato watermelon birthday-cake beer-mug wine-glass
cocktail-glass baby-bottle honey-pot airplane ambulance bicycle bus canoe fire-engine helicopter locomotive
motorcycle police-car rocket sailboat ship speedboat taxi tractor train trolleybus delivery-truck racing-car
satellite cactus cherry-blossom christmas-tree cloud crescent-moon deciduous-tree desert evergreen-tree
fallen-leaf fire four-leaf-clover maple-leaf mountain palm-tree rainbow rose seedling shamrock snowflake snowman
star sun sunflower tornado tulip volcano alarm-clock anchor artist-palette backpack balloon baseball battery bed
bell bomb books bookmark briefcase bullet-train camera candle castle chains church clipboard closed-umbrella
coffin crayon credit-card crown crystal-ball dagger desktop-computer door dress drum ear electric-plug envelope
eye factory fishing-pole flashlight floppy-disk fountain fuel-pump game-die gear gem-stone ghost glasses guitar
hammer handbag headphone hospital hourglass-done house jeans joystick key keyboard kimono laptop light-bulb
lipstick locked loudspeaker magnet megaphone memo microphone microscope mobile-phone money-bag mouth moai
musical-keyboard nail-polish necktie newspaper nose open-book paintbrush paperclip pencil pill postbox printer
pushpin radio ribbon ring roller-coaster saxophone scissors scroll shield shopping-cart shower skull
soccer-ball spoon stadium stopwatch sunglasses syringe t-shirt telephone telescope television tennis tent
thermometer ticket toilet tongue top-hat trophy trumpet umbrella unlocked video-camera violin volleyball
wastebasket watch wrapped-gift wrench
"""
SIDE_PX = 64
COLUMNS = 16


def icons(name: str, packages: Path) -> tuple[str, dict[str, dict]]:
    """Version and drawings of a set; the package is fetched if it is not there."""
    found = sorted(packages.glob(f"iconify-json-{name}-[0-9]*.tgz"))
    if not found:
        order = ["npm", "pack", "--silent", f"@iconify-json/{name}", "--pack-destination", str(packages)]
        subprocess.run(order, check=True, capture_output=True)
        found = sorted(packages.glob(f"iconify-json-{name}-[0-9]*.tgz"))
    with tarfile.open(found[-1]) as package:
        text = package.extractfile("package/icons.json")
        assert text is not None
        table = json.load(text)
    size = {"width": table.get("width", 16), "height": table.get("height", 16)}
    drawn = {icon: size | drawing for icon, drawing in table["icons"].items()}
    if name == "streamline-emojis":
        del drawn["turkey"]  # the country's flag
    drawn |= {alias: drawn[to["parent"]] for alias, to in table.get("aliases", {}).items() if to.keys() == {"parent"}}
    return found[-1].stem.rsplit("-", 1)[1], drawn


def rendered(drawing: dict | None) -> Image.Image | None:
    """None for what a set lacks, or what librsvg cannot draw (one umbrella of Fluent Emoji: its filters)."""
    if drawing is None:
        return None
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {drawing["width"]} {drawing["height"]}">{drawing["body"]}</svg>'
    )
    order = ["rsvg-convert", "-w", str(SIDE_PX), "-h", str(SIDE_PX), "-a", "-f", "png"]
    done = subprocess.run(order, input=svg.encode(), capture_output=True)
    return Image.open(io.BytesIO(done.stdout)).convert("RGBA") if done.returncode == 0 else None


def main(packages: Path, target: Path) -> None:
    packages.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    sets = {name: icons(name, packages) for name in SETS}
    names = [name for name in NAMES.split() if all(name in sets[whole][1] for whole in WHOLE)]
    print("not in all sets:", *sorted(set(NAMES.split()) - set(names)))
    for name, (_, drawn) in sets.items():
        sheet = Image.new("RGBA", (COLUMNS * SIDE_PX, -(-len(names) // COLUMNS) * SIDE_PX))
        for number, icon in enumerate(names):
            picture = rendered(drawn.get(icon))
            if picture is None:
                assert name not in WHOLE, f"{name} lacks {icon}"
                continue
            sheet.paste(picture, (number % COLUMNS * SIDE_PX, number // COLUMNS * SIDE_PX))
        sheet.save(target / f"{name}.webp", quality=82, alpha_quality=80, method=6)
        print(name, (target / f"{name}.webp").stat().st_size)
    (target / "names.txt").write_text(
        "\n".join(name if name == "t-shirt" else name.replace("-", " ") for name in names) + "\n", encoding="utf-8"
    )
    rows = [
        f"| {name}.webp | {title}, {by} | {licence} | {home}, npm @iconify-json/{name} {sets[name][0]} |"
        for name, (title, by, licence, home) in SETS.items()
    ]
    (target / "README.md").write_text(README + "\n".join(rows) + "\n", encoding="utf-8")


README = """# Pictures of the gym

Emoji drawn by six studios, made small by `tests/golden/make_pictures.py` (rasterised, compressed, otherwise
unchanged), and the names that Unicode gives them. Licence texts: `Apache-2.0.txt`, `MIT.txt`; CC BY 4.0:
https://creativecommons.org/licenses/by/4.0/legalcode. Names: Unicode CLDR short names, `Unicode-3.0.txt`.

| file | drawings | licence | source |
|---|---|---|---|
"""

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
