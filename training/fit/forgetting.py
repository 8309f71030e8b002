"""Against forgetting, besides replay: a pull towards the old weights (L2-SP), and averaging with them (WiSE-FT).

The "old" weights are those that a run began with, in its own network: the parent's, with the rows of its head moved to
where their classes are now; without a parent, the pretrained weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embeddings.embedders import torch_import
from lake.errors import BadInput

if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]


class Pull:
    """L2-SP (Li et al., ICML 2018, arXiv 1802.01483): adds `strength` * (w - w0) to the gradients, the gradient of
    strength / 2 * |w - w0|^2, for all parameters with an old value w0.
    """

    def __init__(self, network: torch.nn.Module, old: State, strength: float, skip: Sequence[str] = ()) -> None:
        """`skip`: names of parameters that began at random; they have no old value to stay near."""
        self._strength = strength
        self._pairs = [
            (p, old[name].to(p.device))
            for name, p in network.named_parameters()
            if p.requires_grad and name in old and name not in skip
        ]

    def __call__(self) -> None:
        for parameter, before in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - before, alpha=self._strength)


def average(old: State, new: State, share: float) -> dict[str, torch.Tensor]:
    """share * new + (1 - share) * old, tensor by tensor (WiSE-FT: Wortsman et al., CVPR 2022, arXiv 2109.01903).

    A `share` of 1 is the new model, 0 the old one. Integer tensors are taken from `new`. Raises BadInput if the shapes
    differ.
    """
    if {k: tuple(v.shape) for k, v in old.items()} != {k: tuple(v.shape) for k, v in new.items()}:
        raise BadInput("only models of the same architecture and classes can be averaged")
    return {
        name: tensor if not tensor.is_floating_point() else old[name].to(tensor) * (1 - share) + tensor * share
        for name, tensor in new.items()
    }


def refresh_norms(network: torch.nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Measures means and variances of batch normalisation again, which averaged weights need. Returns how many layers.

    `batches`: uint8 (n, 3, side, side), training images. It takes plain means over all batches, as in stochastic weight
    averaging (arXiv 1803.05407).
    """
    torch = torch_import.torch()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.running_mean is not None]
    if not norms:
        return 0
    before = {m: m.momentum for m in norms}
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for images in batches:
            network(images)
    for norm, momentum in before.items():
        norm.momentum = momentum
    network.eval()
    return len(norms)


def carry_over(network: torch.nn.Module, old: State, old_classes: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Loads an older model's weights into a network that may have more classes. Returns the names of enlarged tensors.

    `classes` begins with `old_classes`. A tensor of the head with a row for each class keeps its old rows; the new rows
    stay random. Raises BadInput if anything else does not fit.
    """
    if [*classes[: len(old_classes)]] != [*old_classes]:
        raise BadInput("the classes of the older model must come first, in their order")
    own: dict[str, Any] = network.state_dict()
    if set(own) != set(old):
        name = sorted(set(own) ^ set(old))[0]
        raise BadInput(f"the older model has another architecture: only one of the two has a tensor {name!r}")
    enlarged: list[str] = []
    for name, tensor in own.items():
        before = old[name]
        if before.shape == tensor.shape:
            own[name] = before
            continue
        added = len(classes) - len(old_classes)
        rows = before.ndim > 0 and before.shape[0] in (len(old_classes), len(old_classes) + 1)  # or with a background
        if not rows or before.shape[0] + added != tensor.shape[0] or before.shape[1:] != tensor.shape[1:]:
            raise BadInput(
                f"{name} of the older model is {tuple(before.shape)}, here {tuple(tensor.shape)}: it has another "
                "architecture, or its head cannot take new classes"
            )
        own[name] = tensor.clone()
        own[name][: before.shape[0]] = before
        enlarged.append(name)
    network.load_state_dict(own)
    return enlarged
