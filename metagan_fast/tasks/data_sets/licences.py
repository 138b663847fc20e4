"""Licences under which a data set's drawings may come, and their recognition in texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

LICENCES: Mapping[str, str] = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "BSD-3-Clause": "https://opensource.org/license/bsd-3-clause",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "ISC": "https://opensource.org/license/isc-license-txt",
    "MIT": "https://opensource.org/license/mit",
    "OFL-1.1": "https://openfontlicense.org/",
    "Unlicense": "https://unlicense.org/",
}
"""Allowed licences: SPDX name -> the place of their text. All permit changes and any use; those called CC-BY ask for
the author's name, which every image carries."""

BY_FILE = "by file"
"""Licence of a package whose files have their own."""

FONT_TEXTS = {  # words of a licence text -> its SPDX name; any other text refuses the font
    "OFL-1.1": ("sil open font license", "scripts.sil.org/ofl", "openfontlicense.org"),
    "Apache-2.0": ("apache license, version 2.0", "apache.org/licenses/license-2.0"),
}


def licence_of(texts: Iterable[str]) -> str | None:
    """Return the SPDX name that all of a font's texts agree on; None if one says otherwise or none says anything."""
    found = set()
    for text in filter(None, (" ".join(text.lower().split()) for text in texts)):
        names = {name for name, words in FONT_TEXTS.items() if any(word in text for word in words)}
        found.add(names.pop() if len(names) == 1 else None)
    return found.pop() if len(found) == 1 else None
