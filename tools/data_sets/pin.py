"""Print a table of pinned archives for `metagan_fast/tasks/data_sets`, from downloaded ones.

    python -m data_sets.pin FOLDER [FAMILIES.tsv]        (in tools/)

The licence and the author of an Iconify package are those of its info.json, to be read before the table is kept; the
fonts of a Debian or `@fontsource` package have their own, which are read when they are drawn. FAMILIES.tsv has lines of
a package and the family of its maker; a package without a line is a family of its own.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path

from metagan_fast.tasks.data_sets.archives import read_files
from metagan_fast.tasks.data_sets.licences import BY_FILE, LICENCES

COLUMNS = ("source", "name", "version", "sha256", "size", "licence", "family", "author")


def pin(path: Path, families: dict[str, str]) -> list[str]:
    """Return the row of one archive."""
    if path.suffix == ".deb":
        name, version, _ = path.name.split("_")
        source, licence, author = "debian", BY_FILE, ""
    else:
        wanted = {"package/package.json", "package/info.json"}
        found = {name: json.loads(text) for name, text in read_files(path, wanted.__contains__)}
        package, info = found["package/package.json"], found.get("package/info.json")
        source, name, version = "npm", package["name"], package["version"]
        licence, author = (BY_FILE, "") if info is None else (info["license"]["spdx"], info["author"]["name"])
        if info is not None and (licence not in LICENCES or package["license"] != licence):
            raise SystemExit(f"{path}: {licence} and {package['license']} are not one allowed licence")
    data = path.read_bytes()
    stem = name.rpartition("/")[2]
    return [
        *(source, name, version.replace("%3a", ":"), hashlib.sha256(data).hexdigest(), str(len(data))),
        *(licence, families.get(stem, stem), author),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", type=Path, nargs="?")
    arguments = parser.parse_args()
    families: dict[str, str] = {}
    if arguments.families is not None:
        with arguments.families.open(encoding="utf-8") as file:
            families = dict(csv.reader(file, delimiter="\t"))
    print("\t".join(COLUMNS))
    for path in sorted(arguments.folder.iterdir()):
        if path.suffix in (".deb", ".tgz"):
            print("\t".join(pin(path, families)))


if __name__ == "__main__":
    main()
