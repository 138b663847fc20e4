"""Publication of a run's initialisation, in the layout of Hugging Face's hub.

A folder with `model.safetensors`, `config.json`, `README.md`, the model card, and, where the run has them,
`evaluation.json` and `adaptation.png`. `metagan_fast.pretrained` and all commands take it in the place of a run.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoint
from ..learner import MetaGAN
from ..metrics import Evaluation
from ..metrics.results import FIGURES, METHODS
from ..tasks import NAMES, embedded
from ..tasks.data_sets.licences import LICENCES
from ..tasks.split import PARTS
from . import pretrained
from .run_folder import PUBLISHED, RunFolder, write_json

CARD, PICTURE = "README.md", "adaptation.png"

_KEPT = ("settings", "split", "image_shape", "contrast", "versions")  # of the record
_TAGS = ("metagan_fast", "gan", "few-shot", "meta-learning", "image-generation")


def publish(run: RunFolder, out: Path, *, licence: str, which: str | int | None = None) -> MetaGAN:
    """Write a run's initialisation and its card to a folder; files of earlier calls there are replaced.

    Args:
        run: the run.
        out: the folder, made if it is missing.
        licence: of the weights, as the hub names it, such as "apache-2.0".
        which: checkpoint, as for `RunFolder.read_checkpoint`.

    Returns:
        The learner that is published.

    Raises:
        FileExistsError: the folder holds something else.
        CheckpointError: there is no such checkpoint, or a file cannot be written.
    """
    _check_free(out)
    learner, record, _ = pretrained.load(run, which)
    public = _without_places({name: record[name] for name in _KEPT if name in record})
    evaluation = run.read_evaluation()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write(out / PUBLISHED, *learner.state())
    write_json(out / "config.json", public)
    for path, name in ((run.report_pictures / PICTURE, PICTURE), (run.evaluation, run.evaluation.name)):
        if path.is_file() and (name == PICTURE or evaluation):
            checkpoint.write_bytes(out / name, path.read_bytes())
        else:
            (out / name).unlink(missing_ok=True)
    has_picture = (out / PICTURE).is_file()
    licences = _licences(record["settings"]["data"]["source"])
    card = _card(
        out.absolute().name, public, learner, evaluation, licence=licence, licences=licences, has_picture=has_picture
    )
    checkpoint.write_bytes(out / CARD, card.encode())
    return learner


def _check_free(out: Path) -> None:
    """Raise FileExistsError unless the folder is empty, missing or published before."""
    if out.exists() and not (out.is_dir() and ((out / PUBLISHED).is_file() or not any(out.iterdir()))):
        raise FileExistsError(f"{out} holds something else: choose another folder, or empty it")


def _without_places(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record in which paths of this machine are names of files."""
    record = copy.deepcopy(record)
    settings = record["settings"]
    settings.pop("init", None)
    settings["device"] = "cpu"
    for section in (settings["data"], record.get("split", {})):
        for key, value in section.items():
            if key in PARTS:  # names of classes
                continue
            if isinstance(value, str):
                section[key] = _name(value)
            elif isinstance(value, list):
                section[key] = [_name(each) if isinstance(each, str) else each for each in value]
    return record


def _name(text: str) -> str:
    return Path(text).name if Path(text).is_absolute() else text


def _licences(source: str) -> list[str]:
    """Return the licences that a data set records: of the package's by its note, of `data get`'s by its arrays."""
    if source in NAMES:
        note = embedded.FOLDER / f"LICENSE.{source}.txt"
        text = note.read_text(encoding="utf-8") if note.is_file() else ""
        return [name for name in LICENCES if re.search(rf"\b{re.escape(name)}\b", text)]
    if source.endswith(".npz") and Path(source).is_file():
        with np.load(source, allow_pickle=False) as arrays:
            return sorted(set(map(str, arrays["licences"]))) if "licences" in arrays else []
    return []


def _card(
    name: str,
    record: Mapping[str, Any],
    learner: MetaGAN,
    evaluation: Mapping[str, Any],
    *,
    licence: str,
    licences: list[str],
    has_picture: bool,
) -> str:
    """Return the model card: Markdown after a front matter of YAML, here in its JSON form."""
    settings, split = record["settings"], record.get("split", {})
    channels, height, width = record["image_shape"]
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    algorithm = settings["meta"]["algorithm"]
    front = {
        "library_name": "metagan_fast",
        "license": licence,
        "pipeline_tag": "unconditional-image-generation",
        "tags": [*_TAGS, algorithm],
    }
    counts = ", ".join(f"{len(split[part]):,} classes for {part}" for part in PARTS if split.get(part))
    sizes = [sum(x.numel() for x in module.parameters()) for module in (learner.generator, learner.discriminator)]
    versions = ", ".join(f"{key} {value}" for key, value in record.get("versions", {}).items())
    parts = [
        "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---"]),
        f"# {name}",
        f"A GAN whose initialisation is meta-trained with `metagan_fast`: {learner.inner.steps} gradient steps on a "
        f"few {colours} images of {height} x {width} pixels adapt it to their class, and it generates more of them.",
        f"![Examples of held-out classes above images generated after more and more inner steps]({PICTURE})"
        if has_picture
        else None,
        "## Use",
        "```python\nimport metagan_fast as mgf\n\n"
        f'learner = mgf.pretrained("{name}")  # the folder of these files\n'
        f"adapted = learner.adapt(images)  # [shots, {channels}, {height}, {width}] in [-1, 1]\n"
        f"new_images = adapted.sample(16)\n```",
        f"On the command line: `metagan-fast adapt {name} FOLDER_OF_IMAGES`.",
        "## Data",
        f"`{settings['data']['source']}`{f': {counts}' if counts else ''}. Licences of the images: "
        f"{', '.join(licences) or 'not recorded'}.",
        "## Training",
        f"{settings['model']['name']} networks with {sizes[0]:,} (generator) and {sizes[1]:,} (discriminator) "
        f"parameters, {algorithm}, {learner.step:,} meta-steps; all settings are in `config.json`.",
        f"Versions: {versions}." if versions else None,
        "## Evaluation",
        *_evaluation(evaluation, learner.step),
        "## Limits",
        f"It generates images of {height} x {width} pixels and of the kind that it was trained on; other images adapt "
        "less well.",
    ]
    return "\n\n".join(part for part in parts if part is not None) + "\n"


def _evaluation(content: Mapping[str, Any], step: int) -> list[str]:
    """Return the headline's figures with their intervals as a table a feature space, if they are of this meta-step."""
    try:
        result = Evaluation.from_dict(content)
        place, is_current = f"{len(result.classes)} {content['split']} classes", content["meta_step"] == step
    except (KeyError, ValueError):  # none, or one of an earlier version
        is_current = False
    if not is_current:
        return ["Not evaluated; `metagan-fast evaluate` does so."]
    parts = [
        f"{place}: {result.shots[0]} shots, {result.steps[0]} inner steps. In brackets 95 % intervals of a bootstrap "
        "over classes."
    ]
    for space in result.spaces:
        rows = [["method", *(kind.heading for kind in FIGURES.values())], ["---"] * (1 + len(FIGURES))]
        rows += [
            [METHODS[row.method], *(row.figures[space][key].text(kind.decimals) for key, kind in FIGURES.items())]
            for row in result.headline
        ]
        parts.append(f"In the features of the {space}:")
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    parts.append("\n".join(f"- {kind.heading}: {kind.meaning}" for kind in FIGURES.values()))
    return parts
