"""Record the episodes of the embedded glyphs' held-out parts: `python tools/episodes`.

Episodes are drawn once, before anything is measured on them; recorded again, all earlier figures lose their meaning.
"""

import json

from metagan_fast import tasks
from metagan_fast.metrics import Episodes
from metagan_fast.metrics.episodes import RECORDED
from metagan_fast.metrics.features import images_digest


def main() -> None:
    """Write one file a part."""
    data = tasks.load("glyphs")
    RECORDED.mkdir(exist_ok=True)
    for part in ("validation", "test"):
        distribution = getattr(data, part)
        episodes = Episodes.draw(distribution)
        content = {"images": images_digest(distribution), **episodes.to_dict()}
        path = RECORDED / f"glyphs-{part}.json"
        path.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path}: {len(episodes.classes)} classes, SHA-256 {episodes.digest}")


main()
