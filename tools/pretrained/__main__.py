"""Make an initialisation of the package from a finished run: `python tools/pretrained RUN NAME` in the checkout.

    metagan-fast train --out runs/glyphs && python tools/pretrained runs/glyphs glyphs

Keeps the averaged initialisation of the run's best checkpoint, and its record without the classes of the split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from metagan_fast import checkpoint
from metagan_fast.learner.state import averaged
from metagan_fast.training.run_folder import KID, RunFolder

DESTINATION = Path(__file__).resolve().parents[2] / "metagan_fast" / "training" / "pretrained"


def main() -> None:
    """Write the run folder of a name and its hashes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    given = parser.parse_args()
    run = RunFolder.open(given.run)
    record = run.read_config()
    tensors, metadata = run.read_checkpoint()
    networks = {name: x for name, x in averaged(tensors).items() if name.startswith(("generator.", "discriminator."))}
    out = DESTINATION / given.name
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    record["split"] = {name: x for name, x in record["split"].items() if not isinstance(x, list)}
    config = {name: record[name] for name in ("settings", "image_shape", "contrast", "split", "versions")}
    config[KID] = metadata[KID]
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    counters = {name: metadata[name] for name in ("step", "updates", "inner_updates")}
    checkpoint.write(out / "checkpoints" / f"step-{counters['step']:08d}.safetensors", networks, counters)
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out).as_posix()}" for path in files]
    (out / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out}: {sum(path.stat().st_size for path in files):,} bytes, after {counters['step']} meta-steps")


if __name__ == "__main__":
    main()
