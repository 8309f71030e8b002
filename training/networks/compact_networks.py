"""Small networks that train on two cores: a backbone, and on it a decoder that marks pixels, or one that finds boxes.

`UNet` answers with a class for every pixel (Ronneberger et al. 2015, arXiv 1505.04597, with added instead of
concatenated skips). `CenterNet` answers with boxes around points (Zhou et al. 2019, arXiv 1904.07850; boxes as four
distances, as in FCOS, Tian et al. 2019, arXiv 1904.01355). Networks only: losses and answers are the tasks'.

Two backbones: `Residual`, which begins at random, and `Lite`, EfficientNet-Lite0 up to its features at stride 16, whose
ImageNet weights come with a package. All take uint8 images (n, 3, height, width) and normalise them themselves.
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
# The detector's points stand this far apart, in pixels.
POINT_STRIDE = 4


def _convolution(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class _Block(nn.Module):  # type: ignore[misc]
    """Two convolutions, and the way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inside, outside, 3, stride)
        self.second = nn.Sequential(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.around = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.second(self.first(x)) + self.around(x))


class Residual(nn.Module):  # type: ignore[misc]
    """Features at strides 2, 4, 8 and 16; begins at random."""

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
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Lite(nn.Module):  # type: ignore[misc]
    """The same of timm's `tf_efficientnet_lite0`: its stem and its first five groups of blocks, under its names."""

    widths = (16, 24, 40, 112)

    def __init__(self, classifier: nn.Module) -> None:
        """`classifier`: the whole network, of which the parts are taken."""
        super().__init__()
        self.conv_stem, self.bn1 = classifier.conv_stem, classifier.bn1
        self.blocks = nn.ModuleList(classifier.blocks[:5])

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = (images.float() / 255.0 - 0.5) * 2.0
        x = self.bn1(self.conv_stem(x.contiguous(memory_format=torch.channels_last)))
        found = []
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k != 3:  # blocks 3 and 4 have the same stride
                found.append(x)
        return found


class _Decoder(nn.Module):  # type: ignore[misc]
    """From the coarsest features back to those of stride 2 ** (1 + finest), DECODER[finest] channels."""

    def __init__(self, widths: Sequence[int], finest: int) -> None:
        super().__init__()
        self.finest = finest
        self.beside = nn.ModuleList(nn.Conv2d(widths[k], DECODER[k], 1) for k in range(finest, 4))
        self.narrow = nn.ModuleList(nn.Conv2d(DECODER[k + 1], DECODER[k], 1) for k in range(finest, 3))
        self.smooth = nn.ModuleList(_convolution(DECODER[k], DECODER[k]) for k in range(finest, 4))
        self.whole = nn.Linear(widths[3], DECODER[3])  # what the image is as a whole, told to every place

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        whole = self.whole(features[3].mean(dim=(2, 3)))[:, :, None, None]
        x = self.smooth[3 - self.finest](self.beside[3 - self.finest](features[3]) + whole)
        for k in range(2, self.finest - 1, -1):
            place = k - self.finest
            beside = self.beside[place](features[k])
            larger = functional.interpolate(self.narrow[place](x), size=beside.shape[2:], mode="bilinear")
            x = self.smooth[place](larger + beside)
        return x


class UNet(nn.Module):  # type: ignore[misc]
    """{"out": logits float (n, outputs, height, width)}, as torchvision's segmentation networks answer."""

    def __init__(self, backbone: Residual | Lite, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = _Decoder(backbone.widths, 0)
        self.dropout = nn.Dropout2d(dropout)
        # Four for each point at stride 2: edges are told to the pixel (Shi et al. 2016, arXiv 1609.05158).
        self.classifier = nn.Conv2d(DECODER[0], 4 * outputs, 1)

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        logits = self.classifier(self.dropout(self.decoder(self.backbone(images))))
        height, width = images.shape[2:]
        return OrderedDict(out=functional.pixel_shuffle(logits, 2)[:, :, :height, :width])


class CenterNet(nn.Module):  # type: ignore[misc]
    """For every point, one in POINT_STRIDE pixels each way: logits of the classes, and a box.

    Gives {"heat": float (n, classes, rows, columns), "distances": float (n, 4, rows, columns)}: from the middle of the
    point's square to the box's left, top, right and bottom edge, in pixels, positive.
    """

    def __init__(self, backbone: Residual | Lite, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = _Decoder(backbone.widths, 1)
        width = DECODER[1]
        self.dropout = nn.Dropout2d(dropout)
        self.heat = nn.Sequential(_convolution(width, width), nn.Conv2d(width, classes, 1))
        self.distances = nn.Sequential(_convolution(width, width), nn.Conv2d(width, 4, 1))
        # Nearly every point is no centre. Without this the first steps only unlearn the opposite (arXiv 1708.02002).
        nn.init.constant_(self.heat[1].bias, -4.6)

    def forward(self, images: torch.Tensor, targets: object = None) -> dict[str, torch.Tensor]:
        """`targets` are not looked at: torchvision's detectors want them, and are called the same way."""
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

    `file`: a whole network of ours. Without one, `pretrained` begins at Lite0's ImageNet weights. Raises BadInput when
    there are no weights to begin from, or the file does not fit.
    """
    if file is not None and not pretrained:
        raise BadInput("weights from a file and pretrained=false contradict each other")
    form, _, size = architecture.partition("-")
    backbone: Residual | Lite
    if size == "lite0":
        if pretrained and file is None:
            backbone = Lite(networks.efficientnet_lite0_classifier())
        else:
            backbone = Lite(torch_import.timm().create_model("tf_efficientnet_lite0", pretrained=False))
    elif pretrained and file is None:
        raise BadInput(
            f"no weights are published for {architecture}: begin at random with --set pretrained=false, pass --weights "
            f"FILE, or use {form}-lite0, whose backbone's weights come with a package"
        )
    else:
        backbone = Residual()
    network = UNet(backbone, outputs, dropout) if form == "unet" else CenterNet(backbone, outputs, dropout)
    if file is not None:
        state = weights.read(file, trust_sha256=trust_sha256)
        pretrained_weights.load(network, state, ("classifier.", "heat.1."), str(file))
    return network
