"""torchvision's segmentation networks and detectors by name, with the weights published for them or a file's.

The files are torchvision's own: a pickled state dict with the network's names (`backbone.`, `classifier.`,
`aux_classifier.`, `head.`, `rpn.`, `roi_heads.`), pinned by the SHA-256 in the table below. Any other pickle needs the
hash its user vouches for; safetensors need none. A head for other classes is made anew, and that is said.

The networks take uint8 images and keep torchvision's parameter names: normalising is a hook, not a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embeddings.embedders import torch_import, weights
from lake.errors import BadInput, HubUnreachable
from training.networks import nms, pretrained_weights

if TYPE_CHECKING:
    import torch

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What belongs to the classes: parameters below these names may be of another size in a file.
_HEADS = ("classifier.", "aux_classifier.", "head.classification_head.", "roi_heads.box_predictor.")


@dataclass(frozen=True)
class Published:
    """`side`: pixels of the square its publisher evaluated at, or the shorter side of it. `file`: torchvision's file;
    its SHA-256 begins with what stands before `.pth`. `old_norm`: made for normalisation without an epsilon.
    """

    task: Literal["segmentation", "detection"]
    side: int
    file: str
    auxiliary: bool = False
    old_norm: bool = False

    @property
    def sha256_prefix(self) -> str:
        return self.file.removesuffix(".pth").rpartition("-")[2]


NETWORKS: Mapping[str, Published] = {
    "deeplabv3_mobilenet_v3_large": Published("segmentation", 520, "deeplabv3_mobilenet_v3_large-fc3c493d.pth", True),
    "deeplabv3_resnet50": Published("segmentation", 520, "deeplabv3_resnet50_coco-cd0a2569.pth", True),
    "deeplabv3_resnet101": Published("segmentation", 520, "deeplabv3_resnet101_coco-586e9e4e.pth", True),
    "fcn_resnet50": Published("segmentation", 520, "fcn_resnet50_coco-1167a1af.pth", True),
    "fcn_resnet101": Published("segmentation", 520, "fcn_resnet101_coco-7ecb50ca.pth", True),
    "lraspp_mobilenet_v3_large": Published("segmentation", 520, "lraspp_mobilenet_v3_large-d234d4ea.pth"),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Published(
        "detection", 320, "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": Published("detection", 800, "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth"),
    "fasterrcnn_resnet50_fpn": Published("detection", 800, "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", old_norm=True),
    "fasterrcnn_resnet50_fpn_v2": Published("detection", 800, "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"),
    "retinanet_resnet50_fpn": Published("detection", 800, "retinanet_resnet50_fpn_coco-eeacb38b.pth", old_norm=True),
    "retinanet_resnet50_fpn_v2": Published("detection", 800, "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth"),
    "ssd300_vgg16": Published("detection", 300, "ssd300_vgg16_coco-b556d3b4.pth"),
    "ssdlite320_mobilenet_v3_large": Published("detection", 320, "ssdlite320_mobilenet_v3_large_coco-a79551df.pth"),
}


def build(
    architecture: str,
    outputs: int,
    *,
    pretrained: bool = True,
    file: Path | None = None,
    trust_sha256: str | None = None,
    dropout: float = 0.0,
) -> torch.nn.Module:
    """The network with `outputs` classes, background counted; with `pretrained` the published weights or the file's.

    `remade` of what is returned names the parts of the head that were not in the weights, or for other classes.
    Raises BadInput for a file that does not fit, HubUnreachable when the published one is not on this machine.
    """
    if file is not None and not pretrained:
        raise BadInput("weights from a file and pretrained=false contradict each other")
    facts = NETWORKS[architecture]
    state = None
    if pretrained:
        place = file or _published_file(architecture)
        state = dict(weights.read(place, sha256_prefix=facts.sha256_prefix, trust_sha256=trust_sha256))
        if facts.old_norm and _is_published(place, facts):
            _fold_missing_epsilon(state)
    network = _make(architecture, outputs, state)
    network.remade = (
        pretrained_weights.load(network, state, _HEADS, str(file or facts.file)) if state is not None else ()
    )
    if dropout:
        _set_dropout(network, dropout, architecture)
    return network


def _make(architecture: str, outputs: int, state: Mapping[str, Any] | None) -> Any:
    facts = NETWORKS[architecture]
    torchvision = nms.prepare()
    maker = getattr(getattr(torchvision.models, facts.task), architecture)
    more: dict[str, Any] = {}
    if facts.auxiliary:
        # A second head, which only training uses: files for answering may lack it.
        more["aux_loss"] = state is None or any(name.startswith("aux_classifier.") for name in state)
    network = maker(weights=None, weights_backbone=None, num_classes=outputs, **more)
    if facts.task == "segmentation":
        network.register_forward_pre_hook(_normalised)
    else:
        network.transform.resize = _as_it_is
        network.register_forward_pre_hook(_listed)
    return network


def _normalised(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    images = given[0]
    mean, std = (images.new_tensor(v, dtype=_torch().float32).view(3, 1, 1) for v in (_MEAN, _STD))
    return ((images.float() / 255 - mean) / std, *given[1:])


def _listed(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """torchvision's detectors take a list of images from 0 to 1, and normalise them themselves."""
    return ([image.float() / 255 for image in given[0]], *given[1:])


def _as_it_is(image: Any, target: Any = None) -> tuple[Any, Any]:
    """Instead of torchvision's resizing: an image comes in the size that the recipe says."""
    return image, target


def _is_published(place: Path, facts: Published) -> bool:
    return place.suffix != ".safetensors" and weights.file_sha256(place).startswith(facts.sha256_prefix)


def _fold_missing_epsilon(state: dict[str, Any], epsilon: float = 1e-5) -> None:
    """Makes weights meant for w * (x - mean) / sqrt(var) answer the same from w * (x - mean) / sqrt(var + epsilon)."""
    for name in [k for k in state if k.startswith("backbone.body.") and k.endswith(".running_var")]:
        weight, variance = name.removesuffix("running_var") + "weight", state[name]
        state[weight] = state[weight] * ((variance + epsilon) / variance).sqrt()


def _set_dropout(network: Any, dropout: float, architecture: str) -> None:
    found = [m for m in network.modules() if isinstance(m, _torch().nn.Dropout)]
    if not found:
        raise BadInput(f"{architecture} has no dropout: leave --set dropout={dropout:g} away")
    for module in found:
        module.p = dropout


def _published_file(architecture: str) -> Path:
    torch = _torch()
    facts = NETWORKS[architecture]
    file = Path(torch.hub.get_dir(), "checkpoints", facts.file)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            url = f"https://download.pytorch.org/models/{facts.file}"
            torch.hub.download_url_to_file(url, str(file), hash_prefix=facts.sha256_prefix, progress=False)
        except Exception as error:  # urllib, ssl and socket errors, and a wrong hash
            raise HubUnreachable(
                f"the weights of {architecture} are not on this machine and cannot be fetched ({error}). Put "
                f"{facts.file} into {file.parent}, pass --weights FILE, or begin at random: --set pretrained=false"
            ) from error
    return file


def _torch() -> Any:
    return torch_import.torch()
