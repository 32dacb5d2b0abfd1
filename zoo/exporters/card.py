"""The model card of an exported backbone: what it is, what it learned from, what was measured, how it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from ssl_toolkit.zoo.exporters.base import Subject
from ssl_toolkit.zoo.exporters.timm_format import TimmModel

METHODS = {
    "vicreg": ("VICReg", "https://arxiv.org/abs/2105.04906"),
    "vicregl": ("VICRegL", "https://arxiv.org/abs/2210.01571"),
    "simclr": ("SimCLR", "https://arxiv.org/abs/2002.05709"),
    "simclr_l": ("SimCLR-L: SimCLR with local matching", "https://arxiv.org/abs/2210.01571"),
}
HUB_DATA = {"imagenet": "imagenet-1k", "cifar10": "cifar10", "cifar100": "cifar100", "fashion_mnist": "fashion_mnist"}
"""Names of data sets on the hub."""
TRAINING = (
    ("epochs", "trainer.epochs"),
    ("steps", "trainer.steps"),
    ("batch size", "trainer.batch_size"),
    ("optimizer", "optimizer.name"),
    ("learning rate", "optimizer.lr"),
    ("weight decay", "optimizer.weight_decay"),
    ("seed", "seed"),
)
"""Rows of the training table and where a run's config has them."""


def model_card(subject: Subject, model: TimmModel | None) -> str:
    """The README of a hub folder: YAML front matter and Markdown."""
    front = OmegaConf.to_yaml(OmegaConf.create(_front(subject, model)))
    parts = [
        f"---\n{front}---\n\n# {subject.name}\n",
        _what(subject),
        _use(subject, model),
        _section("Training", _rows(_training(subject.facts.config))),
        _section("Results", _results(subject)),
        _section("Published numbers", _rows(dict(subject.facts.published))),
        _section("Preprocessing", _preprocessing(subject)),
        _section("Licence", _licence(subject)),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts if part)


def _front(subject: Subject, model: TimmModel | None) -> dict[str, Any]:
    method, data = (subject.facts.config.get(key, {}).get("name") for key in ("method", "data"))
    front: dict[str, Any] = {
        "license": subject.facts.license or "unknown",
        "library_name": "ssl-toolkit" if model is None else "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["self-supervised-learning", "ssl-toolkit", *([method] if method else [])],
    }
    if data in HUB_DATA:
        front["datasets"] = [HUB_DATA[data]]
    measured = [entry for result in subject.facts.results for entry in _index(result)]
    if measured:
        front["model-index"] = [{"name": subject.name, "results": measured}]
    return front


def _index(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A result as the hub's ``model-index`` has it: the metric that stands for the protocol."""
    metric, metrics = result["metric"], result["metrics"]
    if metric in metrics:
        yield {
            "task": {"type": "image-feature-extraction", "name": _title(result)},
            "dataset": {"type": HUB_DATA.get(result["data"], result["data"]), "name": result["data"]},
            "metrics": [
                {"type": metric, "value": round(float(metrics[metric]), 2), "name": f"{_title(result)} {metric}"}
            ],
        }


def _title(result: Mapping[str, Any]) -> str:
    variant = result.get("variant")
    return f"{result['protocol']} ({variant})" if variant else str(result["protocol"])


def _what(subject: Subject) -> str:
    config = subject.backbone.config
    method = subject.facts.config.get("method", {}).get("name")
    data = subject.facts.config.get("data", {}).get("name")
    weights = sum(value.numel() for value in subject.backbone.parameters())
    words = f"A `{config.name}` backbone ({weights / 1e6:.1f} M weights, {subject.backbone.num_features} features)"
    if method in METHODS:
        name, paper = METHODS[method]
        words += f", pretrained without labels with [{name}]({paper})"
    elif method:
        words += f", pretrained without labels with {method}"
    words += f" on `{data}`" if data else ""
    source = f" The weights come from a file with SHA-256 `{subject.digest}`." if subject.digest else ""
    return f"{words}. It has no classifier.{source}\n"


def _use(subject: Subject, model: TimmModel | None) -> str:
    ours = (
        "import ssl_toolkit\nfrom PIL import Image\n\n"
        f'backbone = ssl_toolkit.load_backbone("{subject.name}")  # this folder, downloaded\n'
        'images = backbone.preprocess(Image.open("photo.jpg"))[None]\n'
        "maps, pooled = backbone(images)  # (1, C, H, W) and (1, C)\n"
    )
    text = f"\n## Use\n\n```python\n{ours}```\n"
    if model is not None:
        theirs = f'import timm\n\nmodel = timm.create_model("hf-hub:USER/{subject.name}", pretrained=True).eval()\n'
        text += f"\n```python\n{theirs}```\n"
    return text


def _training(config: Mapping[str, Any]) -> dict[str, str]:
    rows = {}
    for key in ("method", "data"):
        if config.get(key):
            rows[key] = str(config[key].get("name"))
    if config.get("method", {}).get("alpha") is not None:
        rows["alpha"] = str(config["method"]["alpha"])
    for name, path in TRAINING:
        node: Any = config
        for key in path.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is not None:
            rows[name] = str(node)
    return rows


def _results(subject: Subject) -> str:
    if not subject.facts.results:
        return ""
    lines = ["| protocol | data | on the test split | chosen on the validation split |", "|---|---|---|---|"]
    for result in subject.facts.results:
        metrics = ", ".join(f"{key} {float(value):.2f}" for key, value in result["metrics"].items())
        chosen = ", ".join(f"{key} {value}" for key, value in result.get("selected", {}).items())
        lines.append(f"| {_title(result)} | {result['data']} | {metrics} | {chosen} |")
    notes = [f"- {_title(result)}: {note}" for result in subject.facts.results for note in result.get("notes", [])]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _preprocessing(subject: Subject) -> str:
    prepared = subject.preprocess
    return (
        f"The shorter side is resized to {prepared.resize} pixels (bilinear, antialiased), a centre square of "
        f"{prepared.size} pixels is cut, values are scaled to [0, 1], then mean {list(prepared.mean)} is subtracted "
        f"and the rest divided by {list(prepared.std)}.\n"
    )


def _licence(subject: Subject) -> str:
    if subject.facts.license is None:
        return "Not stated. Who publishes these weights says under which licence, and has the right to them.\n"
    return f"`{subject.facts.license}`\n"


def _rows(values: Mapping[str, str]) -> str:
    rows = [f"| {key} | {value} |\n" for key, value in values.items()]
    return "".join(["| | |\n|---|---|\n", *rows]) if rows else ""


def _section(title: str, text: str) -> str:
    return f"\n## {title}\n\n{text}" if text else ""
