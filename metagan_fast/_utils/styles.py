"""Style sheet that the package's pages share."""

from pathlib import Path

BASE_STYLE = Path(__file__).with_name("base.css")
