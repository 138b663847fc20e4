"""Scripts of `glyphs` and `glyphs-large`: the part that each belongs to, and its ordinary letters and digits."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from functools import cached_property

from fontTools.unicodedata import script as script_of

RESERVED = {"Hani", "Hira", "Kana", "Bopo"}
"""ISO codes of the scripts of which no character may be drawn, compatibility forms included."""


@dataclass(frozen=True)
class Script:
    """One script: its part, its ISO code, the names of its subsets in font packages, and its code points.

    `every` keeps each n-th character alone, for scripts of very many; `weights` is the number of weights drawn of a
    family, more where few families have the script.
    """

    part: str
    code: str
    subsets: tuple[str, ...]
    ranges: str
    every: int = 1
    weights: int = 4

    @property
    def is_rare(self) -> bool:
        """Whether few families have the script."""
        return self.weights > 4

    @property
    def characters(self) -> list[str]:
        """The characters that are drawn."""
        return self._ordinary[:: self.every]

    @property
    def scale_characters(self) -> list[str]:
        """Characters whose size sets a typeface's scale: capitals, where the script has them."""
        return [character for character in self._ordinary if character.isupper()] or self._ordinary

    @cached_property
    def _ordinary(self) -> list[str]:
        """Letters and digits of the script without marks, composed forms and compatibility forms."""
        found = [chr(code) for first, last in _spans(self.ranges) for code in range(first, last + 1)]
        return [character for character in found if self._is_ordinary(character)]

    def _is_ordinary(self, character: str) -> bool:
        if script_of(character) != self.code or unicodedata.category(character) not in ("Lu", "Ll", "Lo", "Nd"):
            return False
        if self.code == "Hang":
            return _is_common_syllable(character)
        return unicodedata.normalize("NFKD", character) == character


def is_reserved(character: str) -> bool:
    """Return whether a character, or a part of its NFKC form, belongs to a reserved script."""
    return any(script_of(c) in RESERVED for c in character + unicodedata.normalize("NFKC", character))


def _spans(ranges: str) -> list[tuple[int, int]]:
    pairs = (part.partition("-") for part in ranges.split())
    return [(int(first, 16), int(last or first, 16)) for first, _, last in pairs]


def _is_common_syllable(character: str) -> bool:
    """Return whether KS X 1001 has the syllable, as every Korean font does."""
    try:
        return len(character.encode("euc_kr")) == 2
    except UnicodeEncodeError:
        return False


SCRIPTS = {
    "Latin": Script("train", "Latn", ("latin",), "41-5A 61-7A C6 D8 DE DF E6 F0 F8 FE 152 153"),
    "Greek": Script("train", "Grek", ("greek",), "391-3A9 3B1-3C9"),
    "Cyrillic": Script("train", "Cyrl", ("cyrillic",), "400-45F 490-491 4B0-4B1"),
    "Armenian": Script("train", "Armn", ("armenian",), "531-556 561-586", weights=9),
    "Georgian": Script("train", "Geor", ("georgian",), "10D0-10F0", weights=9),
    "Arabic": Script(
        "train", "Arab", ("arabic",), "621-63A 641-64A 671 679 67E 686 688 691 698 6A9 6AF 6BA 6BE 6C1 6CC 6D2 6F0-6F9"
    ),
    "Ethiopic": Script("train", "Ethi", ("ethiopic",), "1200-135A", every=2, weights=9),
    "Bengali": Script("train", "Beng", ("bengali",), "985-9B9 9BD 9CE 9E0-9F1", weights=9),
    "Gurmukhi": Script("train", "Guru", ("gurmukhi",), "A05-A39 A66-A74", weights=9),
    "Gujarati": Script("train", "Gujr", ("gujarati",), "A85-AB9 ABD AD0 AE0 AE6-AEF", weights=9),
    "Oriya": Script("train", "Orya", ("oriya",), "B05-B39 B3D B5F-B61 B66-B6F B71", weights=9),
    "Tamil": Script("train", "Taml", ("tamil",), "B83-BB9 BD0 BE6-BF2"),
    "Telugu": Script("train", "Telu", ("telugu",), "C05-C39 C58-C5A C60 C61 C66-C6F"),
    "Kannada": Script("train", "Knda", ("kannada",), "C85-CB9 CBD CE0 CE1 CE6-CEF", weights=9),
    "Malayalam": Script("train", "Mlym", ("malayalam",), "D05-D3A D54-D56 D60 D61 D66-D78 D7A-D7F", weights=9),
    "Sinhala": Script("train", "Sinh", ("sinhala",), "D85-DC6", weights=9),
    "Lao": Script("train", "Laoo", ("lao",), "E81-EB0 EB2 EBD EC0-EC4 ED0-ED9", weights=9),
    "Myanmar": Script("train", "Mymr", ("myanmar",), "1000-102A 103F-1055", weights=9),
    "Khmer": Script("train", "Khmr", ("khmer",), "1780-17B3 17E0-17E9"),
    "Hangul": Script("train", "Hang", (), "AC00-D7A3", every=6),
    "Hebrew": Script("validation", "Hebr", ("hebrew",), "5D0-5EA"),
    "Thai": Script("validation", "Thai", ("thai",), "E01-E2F E30 E32 E40-E46 E50-E59"),
    "Devanagari": Script("test", "Deva", ("devanagari",), "905-914 915-939 93D 950 960 961 966-96F"),
}
"""Scripts by name. Latin, Greek and Cyrillic share letters, so they share a part."""

LARGE_SCRIPTS = {
    **SCRIPTS,
    "Latin": replace(SCRIPTS["Latin"], ranges=f"{SCRIPTS['Latin'].ranges} 131 138 14A-14B 166-167 180-24F 250-2AF"),
    "Cyrillic": replace(SCRIPTS["Cyrillic"], ranges="400-45F 460-481 48A-52F"),
    "Ethiopic": replace(SCRIPTS["Ethiopic"], every=1),
    "Hangul": replace(SCRIPTS["Hangul"], every=1, weights=9),
    "Runic": Script("train", "Runr", (), "16A0-16EA", weights=9),
    "Tifinagh": Script("train", "Tfng", (), "2D30-2D67", weights=9),
}
"""Scripts by name, with more characters than the embedded ones have; the parts are the same."""
