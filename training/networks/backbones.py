"""Backbones by name: networks that turn images into features, for the head of a task.

efficientnet-lite0, resnet18 / 34 / 50, clip-vit-b-32 and open_clip:ARCH/PRETRAINED are the embedders' networks
(`embeddings/embedders/networks.py`): a probe and a fine-tuned model begin with the same weights. Every other name is a
network of timm. Weights come from the installed package, a cache or a file, through `embeddings/embedders/weights.py`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embeddings.embedders import networks, torch_import, weights
from embeddings.embedders.specs import OPEN_CLIP_PREFIX, SPECS
from lake.errors import BadInput, HubUnreachable

if TYPE_CHECKING:
    import torch

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Backbone:
    """`module` turns normalised images (n, 3, side, side) into features (n, dim)."""

    module: torch.nn.Module
    dim: int
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def build(
    architecture: str, *, pretrained: bool = True, file: Path | None = None, trust_sha256: str | None = None
) -> Backbone:
    """The backbone of that name: with `pretrained` the published weights or those of `file`, otherwise random weights.

    Raises BadInput for an unknown name, HubUnreachable if the weights are not on this machine and cannot be fetched.
    """
    check(architecture)
    if file is not None and not pretrained:
        raise BadInput("pass a weights file or pretrained=false, not both")
    if architecture in SPECS or architecture.startswith(OPEN_CLIP_PREFIX):
        return _embedders_backbone(architecture, pretrained, file, trust_sha256)
    return _timm_backbone(architecture, pretrained, file, trust_sha256)


def side(architecture: str) -> int:
    """The side in pixels of the square images it was trained on. Raises BadInput for an unknown name."""
    check(architecture)
    if architecture in SPECS:
        prep = SPECS[architecture].preprocessing
        assert prep is not None
        return prep.crop
    if architecture.startswith(OPEN_CLIP_PREFIX):
        arch = architecture.removeprefix(OPEN_CLIP_PREFIX).partition("/")[0]
        size = torch_import.open_clip().get_model_config(arch)["vision_cfg"]["image_size"]
        return int(size if isinstance(size, int) else size[0])
    return int(_timm_cfg(architecture).input_size[1])


def check(architecture: str) -> None:
    """Raises BadInput, with the nearest names, for an unknown architecture."""
    if architecture in SPECS:
        return
    if architecture.startswith(OPEN_CLIP_PREFIX):
        arch = architecture.removeprefix(OPEN_CLIP_PREFIX).partition("/")[0]
        if arch in torch_import.open_clip().list_models():
            return
        raise BadInput(f"open_clip has no architecture {arch!r}")
    timm = torch_import.timm()
    if not timm.is_model(architecture):
        names = [*SPECS, *timm.list_models()]
        nearest = difflib.get_close_matches(architecture, names, 3, 0.5) or [*SPECS]
        raise BadInput(f"no architecture {architecture!r}; did you mean {', '.join(nearest)}? timm's names work, too")


def rate_groups(
    network: torch.nn.Module, rate: float, backbone_rate: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters in groups with the same learning rate.

    The head has `rate`, the last stage of the backbone `rate` * `backbone_rate`, each stage before it `layer_decay`
    times the rate of the next. Each group has names, params, rate.
    """
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    parameters = dict(network.named_parameters())
    stages: dict[str, list[str]] = {}
    for name in names:
        if name.startswith("backbone."):
            stages.setdefault(_stage(name), []).append(name)
    groups: list[dict[str, Any]] = []
    for depth, stage in enumerate(reversed([*stages.values()])):
        groups.append({"names": stage, "rate": rate * backbone_rate * layer_decay**depth})
    groups.append({"names": [name for name in names if not name.startswith("backbone.")], "rate": rate})
    return [group | {"params": [parameters[name] for name in group["names"]]} for group in groups if group["names"]]


def freeze(network: torch.nn.Module, part: str) -> None:
    """Freezes the whole backbone ("backbone"), its normalisation layers ("norms"), or nothing ("none")."""
    for name, module in network.named_modules():
        if name.startswith("backbone") and (part == "backbone" or (part == "norms" and _is_norm(module))):
            for parameter in module.parameters():
                parameter.requires_grad_(False)


def training_mode(network: torch.nn.Module, part: str) -> None:
    """`network.train()`, but the frozen part keeps its running means, and has no dropout."""
    network.train()
    for name, module in network.named_modules():
        if name.startswith("backbone") and (part == "backbone" or (part == "norms" and _is_norm(module))):
            module.eval()


def _stage(name: str) -> str:
    """The stage of a parameter: `backbone.blocks.3` of `backbone.blocks.3.conv.weight`, else its module."""
    numbered = re.match(r"backbone\.(?:\w+\.)*?\w*\d+(?=\.)", name)
    return numbered.group() if numbered else ".".join(name.split(".")[:2])


def _is_norm(module: Any) -> bool:
    nn = torch_import.torch().nn
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)


def _embedders_backbone(name: str, pretrained: bool, file: Path | None, trust_sha256: str | None) -> Backbone:
    if pretrained:
        try:
            built = networks.build(name, file, trust_sha256)
        except HubUnreachable as error:
            raise HubUnreachable(
                f"the weights of {name} are not on this machine and cannot be fetched. Offline: pass --weights FILE "
                "(safetensors, or the published .pth) or --set pretrained=false to begin at random, or use "
                "--architecture efficientnet-lite0, whose weights come with a package"
            ) from error
        module, prep, dim = built.features, built.spec.preprocessing, built.spec.dim
        assert prep is not None
        return Backbone(module, dim, prep.crop, prep.mean, prep.std)
    spec = SPECS.get(name)
    if spec is None or name.startswith("clip"):
        arch = "ViT-B-32" if spec else name.removeprefix(OPEN_CLIP_PREFIX).partition("/")[0]
        open_clip = torch_import.open_clip()
        model = open_clip.create_model(arch, pretrained=None)
        dim = open_clip.get_model_config(arch)["embed_dim"]
        return Backbone(model.visual, dim, side(name), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert spec.preprocessing is not None
    builder: Callable[..., Any]
    if name == "efficientnet-lite0":
        module = torch_import.timm().create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    else:
        builder = getattr(torch_import.torchvision().models, name)
        module = builder(weights=None)
        module.fc = torch_import.torch().nn.Identity()
    return Backbone(module, spec.dim, spec.preprocessing.crop, spec.preprocessing.mean, spec.preprocessing.std)


def _timm_cfg(name: str) -> Any:
    timm = torch_import.timm()
    return timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg(input_size=(3, 224, 224))


def _timm_backbone(name: str, pretrained: bool, file: Path | None, trust_sha256: str | None) -> Backbone:
    timm = torch_import.timm()
    cfg = _timm_cfg(name)
    module = timm.create_model(name, pretrained=False, num_classes=0)
    if pretrained:
        if file is None:
            raise HubUnreachable(
                f"no package contains the weights of {name}: pass --weights FILE (safetensors, or a .pth with "
                "--trust-sha256), or --set pretrained=false to begin at random"
            )
        _load(module, weights.read(file, trust_sha256=trust_sha256), cfg.classifier, str(file))
    mean, std = (tuple(cfg.mean), tuple(cfg.std)) if len(tuple(cfg.mean)) == 3 else _IMAGENET
    return Backbone(module, int(module.num_features), int(cfg.input_size[1]), mean, std)


def _load(module: Any, state: Any, classifier: str | Sequence[str] | None, source: str) -> None:
    """Loads a published checkpoint without its classifier."""
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    features = {k: v for k, v in state.items() if not any(k.startswith(f"{head}.") for head in heads)}
    weights.load_into(module, features, source)
