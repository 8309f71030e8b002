"""torchvision's segmentation networks and detectors by name, with published weights or those of a file.

The published files are pickled state dicts with torchvision's parameter names (`backbone.`, `classifier.`,
`aux_classifier.`, `head.`, `rpn.`, `roi_heads.`), pinned by the SHA-256 in the table below. Any other pickle needs the
hash that its user trusts; safetensors need none. A head for other classes begins at random, and a warning says so.

The networks take uint8 images and keep torchvision's parameter names: a hook normalises the images, not a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embeddings.embedders import torch_import, weights
from lake.errors import BadInput, HubUnreachable
from training.networks import pretrained_weights, torchvision_operators

if TYPE_CHECKING:
    import torch

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The parameters of the classes: in a file they may have another size.
_HEADS = ("classifier.", "aux_classifier.", "head.classification_head.", "roi_heads.box_predictor.")


@dataclass(frozen=True)
class Published:
    """`side`: pixels of the square, or of the shorter side, that its publisher evaluated it with. `file`: torchvision's
    file, whose name holds the first 32 bits of `sha256`. `auxiliary`: it has a second head for training. `old_norm`:
    trained with normalisation without an epsilon.
    """

    task: Literal["segmentation", "detection"]
    side: int
    file: str
    sha256: str
    auxiliary: bool = False
    old_norm: bool = False


NETWORKS: Mapping[str, Published] = {
    "deeplabv3_mobilenet_v3_large": Published(
        "segmentation",
        520,
        "deeplabv3_mobilenet_v3_large-fc3c493d.pth",
        "fc3c493d68e89cc31ef488c803d5d7dd2f3190fb570598faa49fef69be8e5e70",
        True,
    ),
    "deeplabv3_resnet50": Published(
        "segmentation",
        520,
        "deeplabv3_resnet50_coco-cd0a2569.pth",
        "cd0a25694c4a0f7106b38f4938bf90a874f2f241cc410b8f63c7024399538f06",
        True,
    ),
    "deeplabv3_resnet101": Published(
        "segmentation",
        520,
        "deeplabv3_resnet101_coco-586e9e4e.pth",
        "586e9e4e203fcbf17e1ad45533d8d33ab133fc762bf03101c5dd743995c08c0d",
        True,
    ),
    "fcn_resnet50": Published(
        "segmentation",
        520,
        "fcn_resnet50_coco-1167a1af.pth",
        "1167a1affa42e1e62858f8d3fac12d109e0108327ffc91c5855a324b11683c36",
        True,
    ),
    "fcn_resnet101": Published(
        "segmentation",
        520,
        "fcn_resnet101_coco-7ecb50ca.pth",
        "7ecb50ca17844860a70d5ed0c748d997cf8adb62932abaa0233430c68594d749",
        True,
    ),
    "lraspp_mobilenet_v3_large": Published(
        "segmentation",
        520,
        "lraspp_mobilenet_v3_large-d234d4ea.pth",
        "d234d4eae9d55d5f76de18b77cf0dc62c66fe5c5482758209d00f950c92bb280",
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Published(
        "detection",
        320,
        "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
        "907ea3f91ff92242bc1baea8049276a3e76bca48ce7560bd268cc029f37977b5",
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": Published(
        "detection",
        800,
        "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
        "fb6a3cc702b1df54c18a44b26708cd083614211062d0c36d2ca7bf9270df3533",
    ),
    "fasterrcnn_resnet50_fpn": Published(
        "detection",
        800,
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        "258fb6c638b15964ddcdd1ae0748c5eef1be9e732750120cc857feed3faac384",
        old_norm=True,
    ),
    "fasterrcnn_resnet50_fpn_v2": Published(
        "detection",
        800,
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        "dd69338a24b8d7381807e247652bdc356325bcbaf1cd3e092e00e0a1a58706bf",
    ),
    "retinanet_resnet50_fpn": Published(
        "detection",
        800,
        "retinanet_resnet50_fpn_coco-eeacb38b.pth",
        "eeacb38b7cec8cf93c57867e05eaab621047f19b0d2ec5accaa405f690da15b7",
        old_norm=True,
    ),
    "retinanet_resnet50_fpn_v2": Published(
        "detection",
        800,
        "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
        "5905b1c544219215e544dbe319720397bc4e68de61a733a59350d7976645b769",
    ),
    "ssd300_vgg16": Published(
        "detection",
        300,
        "ssd300_vgg16_coco-b556d3b4.pth",
        "b556d3b43ab6c3f63d81bfb8835fe8756ac22da664357da100dccf96b6a6b42d",
    ),
    "ssdlite320_mobilenet_v3_large": Published(
        "detection",
        320,
        "ssdlite320_mobilenet_v3_large_coco-a79551df.pth",
        "a79551df90c79834bcd3bb3845ef9d966b5449a3a9b2833ae8404778ca5d65d2",
    ),
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
    """The network with `outputs` classes, including background; with `pretrained` the published weights or the file's.

    Its attribute `remade` names the layers of the head that begin at random. Raises BadInput for a file that does not
    fit, HubUnreachable if the published file is not on this machine and cannot be fetched.
    """
    if file is not None and not pretrained:
        raise BadInput("pass a weights file or pretrained=false, not both")
    facts = NETWORKS[architecture]
    state = None
    if pretrained:
        path = file or _published_file(architecture)
        state = dict(weights.read(path, sha256=facts.sha256, trust_sha256=trust_sha256))
        if facts.old_norm and _is_published(path, facts):
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
    torchvision = torchvision_operators.prepare()
    builder = getattr(getattr(torchvision.models, facts.task), architecture)
    options: dict[str, Any] = {}
    if facts.auxiliary:
        # A second head that only training uses; a file may lack it.
        options["aux_loss"] = state is None or any(name.startswith("aux_classifier.") for name in state)
    network = builder(weights=None, weights_backbone=None, num_classes=outputs, **options)
    if facts.task == "segmentation":
        network.register_forward_pre_hook(_normalised)
    else:
        network.transform.resize = _unresized
        network.register_forward_pre_hook(_as_list)
    return network


def _normalised(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    images = arguments[0]
    mean, std = (images.new_tensor(v, dtype=_torch().float32).view(3, 1, 1) for v in (_MEAN, _STD))
    return ((images.float() / 255 - mean) / std, *arguments[1:])


def _as_list(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """torchvision's detectors take a list of images from 0 to 1, and normalise them."""
    return ([image.float() / 255 for image in arguments[0]], *arguments[1:])


def _unresized(image: Any, target: Any = None) -> tuple[Any, Any]:
    """Replaces torchvision's resizing: images already have the size of the recipe."""
    return image, target


def _is_published(path: Path, facts: Published) -> bool:
    return path.suffix != ".safetensors" and weights.file_sha256(path) == facts.sha256


def _fold_missing_epsilon(state: dict[str, Any], epsilon: float = 1e-5) -> None:
    """Changes weights for w * (x - mean) / sqrt(var) to give the same with w * (x - mean) / sqrt(var + epsilon)."""
    for name in [k for k in state if k.startswith("backbone.body.") and k.endswith(".running_var")]:
        weight, variance = name.removesuffix("running_var") + "weight", state[name]
        state[weight] = state[weight] * ((variance + epsilon) / variance).sqrt()


def _set_dropout(network: Any, dropout: float, architecture: str) -> None:
    layers = [m for m in network.modules() if isinstance(m, _torch().nn.Dropout)]
    if not layers:
        raise BadInput(f"{architecture} has no dropout: remove --set dropout={dropout:g}")
    for layer in layers:
        layer.p = dropout


def _published_file(architecture: str) -> Path:
    torch = _torch()
    facts = NETWORKS[architecture]
    file = Path(torch.hub.get_dir(), "checkpoints", facts.file)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            url = f"https://download.pytorch.org/models/{facts.file}"
            torch.hub.download_url_to_file(url, str(file), hash_prefix=facts.sha256, progress=False)
        except Exception as error:  # urllib, ssl and socket errors, and a wrong hash
            raise HubUnreachable(
                f"the weights of {architecture} are not on this machine and cannot be fetched ({error}). Put "
                f"{facts.file} into {file.parent}, pass --weights FILE, or begin at random: --set pretrained=false"
            ) from error
    return file


def _torch() -> Any:
    return torch_import.torch()
