"""The names that libraries give to what their checkpoints hold.

Facts were read from the libraries' public sources and model pages; docs/zoo.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OURS = "ssl-toolkit"


@dataclass(frozen=True)
class Format:
    """Which names a library's checkpoints have beside the backbone's own.

    Attributes:
        backbone: beginnings of the backbone's names; of those that are there the first counts.
        heads: beginnings of the names of heads, and what the heads are called here.
        ignored: beginnings of names that are known, and of no use here: momentum networks, queues, probes.
        on_top: whether a head may lie among the backbone's own names (``fc``, ``head``).
    """

    backbone: tuple[str, ...]
    heads: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    on_top: bool = True


def _same(*names: str) -> dict[str, str]:
    return {f"{name}.": name for name in names}


VICREG = {"projector.": "expander"}
MAE_DECODER = ("mask_token", "decoder_embed.", "decoder_pos_embed", "decoder_blocks.", "decoder_norm.", "decoder_pred.")

PARTS_WITH_TEACHER = ("backbone", "projector")

FORMATS: dict[str, Format] = {
    OURS: Format(("method.backbone.",), {"method.head.": "expander", "method.local_head.": "local_projector"}),
    "vicreg": Format(("backbone.", ""), VICREG, on_top=False),
    "vicregl": Format(
        ("backbone.", ""),
        {**VICREG, "maps_projector.": "local_projector", **_same("classifier")},
        on_top=False,
    ),
    "moco": Format(
        ("encoder_q.", "base_encoder.", ""),
        _same("predictor"),
        ("encoder_k.", "momentum_encoder.", "queue", "queue_ptr"),
    ),
    "dino": Format(("backbone.", ""), _same("head"), ("backbone.masked_embed", "masked_embed")),
    "mae": Format(("",), {}, MAE_DECODER),
    "pixpro": Format(
        ("encoder.",),
        _same("projector", "value_transform"),
        ("encoder_k.", "projector_k."),
    ),
    "lightly": Format(
        ("backbone.vit.", "backbone."),
        _same(
            "projection_head",
            "prediction_head",
            "prediction_mlp",
            "projection_mlp",
            "online_classifier",
            "prototypes",
            "decoder",
            "head",
            "student_head",
            "student_projection_head",
            "student_prediction_head",
            "projection_head_global",
            "projection_head_local",
        ),
        (
            "backbone.mask_token",
            "teacher_backbone.",
            "teacher_projection_head.",
            "teacher_head.",
            "student_backbone.",
            "backbone_momentum.",
            "projection_head_momentum.",
            "query_backbone.",
            "query_projection_head.",
            "key_backbone.",
            "key_projection_head.",
            "criterion.",
            "memory_bank.",
            "start_queue_at_epoch",
            "queues.",
        ),
    ),
    "solo-learn": Format(
        ("backbone.", "encoder."),
        _same("projector", "predictor", "classifier", "head", "prototypes", "decoder", "whitening"),
        (
            "momentum_backbone.",
            "momentum_encoder.",
            "momentum_projector.",
            "momentum_predictor.",
            "momentum_classifier.",
            "momentum_head.",
            "queue",
            "queue_y",
            "queue_ptr",
            "dino_loss_func.",
            "mask_token",
            "decoder_embed.",
            "decoder_pos_embed",
            "local_memory_embeddings",
            "local_memory_index",
        ),
    ),
    "stable-pretraining": Format(
        ("backbone.teacher.", "backbone.backbone.", "backbone."),
        {**_same("projector", "predictor", "prototypes", "classifier"), "projector.teacher.": "projector"},
        (
            "backbone.student.",
            "projector.student.",
            "callbacks_modules.",
            "callbacks_metrics.",
            "_callbacks_modules.",
            "_callbacks_metrics.",
            *(
                f"{part}.{each}ema_coefficient"
                for part in ("backbone", "projector")
                for each in ("", "base_", "final_")
            ),
            "queue.",
        ),
    ),
    "mmpretrain": Format(
        ("backbone.", ""),
        _same("neck", "head", "predictor"),
        (
            "encoder_q.",
            "encoder_k.",
            "online_net.",
            "target_net.",
            "teacher.",
            "target_generator.",
            "memory_bank.",
            "data_preprocessor.",
            "queue",
            "queue2",
            "queue_ptr",
            "queue2_ptr",
        ),
    ),
    "torchvision": Format(("",)),
    "timm": Format(("",)),
    "detectron2": Format(("backbone.bottom_up.", "backbone.", "")),
    "lightning": Format(("",)),
}
"""All formats. ``lightning`` is any state dict whose names have one beginning in common."""
