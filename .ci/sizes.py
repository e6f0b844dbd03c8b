"""What `pip install --dry-run --report FILE` would fetch: packages and megabytes, in one line."""

import json
import os
import sys
import urllib.parse
import urllib.request


def num_bytes(url: str) -> int | None:
    """Size of a file or of what a server would send; None if it does not tell."""
    if url.startswith("file:"):
        return os.path.getsize(urllib.request.url2pathname(urllib.parse.urlparse(url).path))
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def main(report: str) -> None:
    with open(report, encoding="utf-8") as file:
        packages = json.load(file)["install"]
    if not packages:
        print("already there")
        return
    sizes = [num_bytes(package["download_info"]["url"]) for package in packages]
    known = sum(size for size in sizes if size is not None)
    more = " and some of unknown size" if None in sizes else ""
    metadata = {package["metadata"]["name"]: package["metadata"]["version"] for package in packages}
    print(f"{metadata.get('torch', '')}, {len(packages)} packages, {known / 1e6:.0f} MB to fetch{more}")


main(sys.argv[1])
