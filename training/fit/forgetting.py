"""Against forgetting, beside replay (`sampling.py`): a pull towards the old weights, and averaging with them.

"Old" weights are those a run began from, mapped into its network: the parent's, its head's rows moved to where their
classes are now; without a parent, the pretrained ones.
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
    strength / 2 * |w - w0|^2, for all parameters that were there before.
    """

    def __init__(self, network: torch.nn.Module, old: State, strength: float, skip: Sequence[str] = ()) -> None:
        """`skip`: names of parameters that began at random, and have no old value worth staying at."""
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

    1 is the new model, 0 the old one. Tensors of whole numbers are taken from `new`. Raises BadInput when the two are
    not of one shape.
    """
    if {k: tuple(v.shape) for k, v in old.items()} != {k: tuple(v.shape) for k, v in new.items()}:
        raise BadInput("only models of the same architecture and classes can be averaged")
    return {
        name: tensor if not tensor.is_floating_point() else old[name].to(tensor) * (1 - share) + tensor * share
        for name, tensor in new.items()
    }


def refresh_norms(network: torch.nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Means and deviations of batch normalisation found anew, as averaged weights need; returns how many layers.

    `batches`: uint8 (n, 3, side, side) of training images. Plain means over all batches, as in stochastic weight
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
    """Loads an older model's weights into a network of perhaps more classes; the names of tensors made longer.

    `classes` begins with `old_classes`. A head's tensor of a row for each class keeps the rows it had, the others stay
    as drawn. Raises BadInput when anything else does not fit.
    """
    if [*classes[: len(old_classes)]] != [*old_classes]:
        raise BadInput("the classes of the older model come first, in their order")
    own: dict[str, Any] = network.state_dict()
    if set(own) != set(old):
        odd = sorted(set(own) ^ set(old))[0]
        raise BadInput(f"the older model is of another architecture: only one of the two has a tensor {odd!r}")
    longer: list[str] = []
    for name, tensor in own.items():
        before = old[name]
        if before.shape == tensor.shape:
            own[name] = before
            continue
        added = len(classes) - len(old_classes)
        rows = before.ndim > 0 and before.shape[0] in (len(old_classes), len(old_classes) + 1)  # or with a background
        if not rows or before.shape[0] + added != tensor.shape[0] or before.shape[1:] != tensor.shape[1:]:
            raise BadInput(
                f"{name} of the older model is {tuple(before.shape)}, here {tuple(tensor.shape)}: it is of another "
                "architecture, or its head cannot take new classes"
            )
        own[name] = tensor.clone()
        own[name][: before.shape[0]] = before
        longer.append(name)
    network.load_state_dict(own)
    return longer
