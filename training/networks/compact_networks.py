"""Small networks that train on two cores: a backbone with a decoder that classifies pixels, or one that finds boxes.

`UNet` predicts a class for every pixel (Ronneberger et al. 2015, arXiv 1505.04597, with added instead of concatenated
skips). `CenterNet` predicts boxes around points (Zhou et al. 2019, arXiv 1904.07850; boxes as four distances, as in
FCOS, Tian et al. 2019, arXiv 1904.01355). Losses and predictions are in `training/tasks`.

There are two backbones: `Residual` begins at random; `Lite` is EfficientNet-Lite0 up to stride 16, whose ImageNet
weights come with a package. All networks take uint8 images (n, 3, height, width) and normalise them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from embeddings.embedders import networks, torch_import, weights
from lake.errors import BadInput
from training.networks import pretrained_weights

# Channels of the decoder at strides 2, 4, 8 and 16.
DECODER = (24, 48, 64, 64)
# The distance between the detector's points, in pixels.
POINT_STRIDE = 4


def _convolution(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class _Block(nn.Module):  # type: ignore[misc]
    """Two convolutions with a residual connection."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inside, outside, 3, stride)
        self.second = nn.Sequential(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.second(self.first(x)) + self.shortcut(x))


class Residual(nn.Module):  # type: ignore[misc]
    """Features at strides 2, 4, 8 and 16. Begins at random."""

    widths = (16, 40, 80, 128)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, self.widths[0], 5, 2)
        stages: list[nn.Module] = [_Block(self.widths[0], self.widths[0], 1)]
        for inside, outside in zip(self.widths, self.widths[1:], strict=False):
            stages.append(nn.Sequential(_Block(inside, outside, 2), _Block(outside, outside, 1)))
        self.stages = nn.ModuleList(stages)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(((images.float() / 255.0 - 0.5) * 4.0).contiguous(memory_format=torch.channels_last))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class Lite(nn.Module):  # type: ignore[misc]
    """Features at strides 2, 4, 8 and 16: the stem and first five groups of blocks of `tf_efficientnet_lite0`."""

    widths = (16, 24, 40, 112)

    def __init__(self, classifier: nn.Module) -> None:
        """`classifier`: the whole network of timm. Parameters keep their names."""
        super().__init__()
        self.conv_stem, self.bn1 = classifier.conv_stem, classifier.bn1
        self.blocks = nn.ModuleList(classifier.blocks[:5])

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = (images.float() / 255.0 - 0.5) * 2.0
        x = self.bn1(self.conv_stem(x.contiguous(memory_format=torch.channels_last)))
        features = []
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k != 3:  # blocks 3 and 4 have the same stride
                features.append(x)
        return features


class _Decoder(nn.Module):  # type: ignore[misc]
    """Upsamples the coarsest features to stride 2 ** (1 + finest), with DECODER[finest] channels."""

    def __init__(self, widths: Sequence[int], finest: int) -> None:
        super().__init__()
        self.finest = finest
        self.beside = nn.ModuleList(nn.Conv2d(widths[k], DECODER[k], 1) for k in range(finest, 4))
        self.narrow = nn.ModuleList(nn.Conv2d(DECODER[k + 1], DECODER[k], 1) for k in range(finest, 3))
        self.smooth = nn.ModuleList(_convolution(DECODER[k], DECODER[k]) for k in range(finest, 4))
        self.whole = nn.Linear(widths[3], DECODER[3])  # a summary of the whole image, added at every point

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        whole = self.whole(features[3].mean(dim=(2, 3)))[:, :, None, None]
        x = self.smooth[3 - self.finest](self.beside[3 - self.finest](features[3]) + whole)
        for k in range(2, self.finest - 1, -1):
            level = k - self.finest
            beside = self.beside[level](features[k])
            larger = functional.interpolate(self.narrow[level](x), size=beside.shape[2:], mode="bilinear")
            x = self.smooth[level](larger + beside)
        return x


class UNet(nn.Module):  # type: ignore[misc]
    """{"out": logits float (n, outputs, height, width)}, as torchvision's segmentation networks."""

    def __init__(self, backbone: Residual | Lite, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = _Decoder(backbone.widths, 0)
        self.dropout = nn.Dropout2d(dropout)
        # Four logits for each point at stride 2 give edges in full resolution (Shi et al. 2016, arXiv 1609.05158).
        self.classifier = nn.Conv2d(DECODER[0], 4 * outputs, 1)

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        logits = self.classifier(self.dropout(self.decoder(self.backbone(images))))
        height, width = images.shape[2:]
        return OrderedDict(out=functional.pixel_shuffle(logits, 2)[:, :, :height, :width])


class CenterNet(nn.Module):  # type: ignore[misc]
    """Logits of the classes and a box for every point; points are POINT_STRIDE pixels apart.

    Returns {"heat": float (n, classes, rows, columns), "distances": float (n, 4, rows, columns)}. Distances are
    positive, in pixels, from the middle of the point's square to the box's left, top, right and bottom edge.
    """

    def __init__(self, backbone: Residual | Lite, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = _Decoder(backbone.widths, 1)
        width = DECODER[1]
        self.dropout = nn.Dropout2d(dropout)
        self.heat = nn.Sequential(_convolution(width, width), nn.Conv2d(width, classes, 1))
        self.distances = nn.Sequential(_convolution(width, width), nn.Conv2d(width, 4, 1))
        # Hardly any point is a centre. Without this bias the first steps only learn that (arXiv 1708.02002).
        nn.init.constant_(self.heat[1].bias, -4.6)

    def forward(self, images: torch.Tensor, targets: object = None) -> dict[str, torch.Tensor]:
        """`targets` is not used: torchvision's detectors need it, and the call is the same."""
        x = self.dropout(self.decoder(self.backbone(images)))
        distances = functional.softplus(self.distances(x)) * (2.0 * POINT_STRIDE)
        return {"heat": self.heat(x), "distances": distances}


def build(
    architecture: str,
    outputs: int,
    *,
    pretrained: bool = True,
    file: Path | None = None,
    trust_sha256: str | None = None,
    dropout: float = 0.0,
) -> UNet | CenterNet:
    """`unet-lite0`, `unet-small`, `centernet-lite0` or `centernet-small`, with `outputs` channels of classes.

    `file`: the weights of a whole network of this module. Without it, `pretrained` loads Lite0's ImageNet weights.
    Raises BadInput if there are no weights to begin with, or if the file does not fit.
    """
    if file is not None and not pretrained:
        raise BadInput("pass a weights file or pretrained=false, not both")
    kind, _, size = architecture.partition("-")
    backbone: Residual | Lite
    if size == "lite0":
        if pretrained and file is None:
            backbone = Lite(networks.efficientnet_lite0_classifier())
        else:
            backbone = Lite(torch_import.timm().create_model("tf_efficientnet_lite0", pretrained=False))
    elif pretrained and file is None:
        raise BadInput(
            f"{architecture} has no published weights: begin at random with --set pretrained=false, pass --weights "
            f"FILE, or use {kind}-lite0, whose backbone's weights come with a package"
        )
    else:
        backbone = Residual()
    network = UNet(backbone, outputs, dropout) if kind == "unet" else CenterNet(backbone, outputs, dropout)
    if file is not None:
        state = weights.read(file, trust_sha256=trust_sha256)
        pretrained_weights.load(network, state, ("classifier.", "heat.1."), str(file))
    return network
