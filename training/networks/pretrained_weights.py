"""Loads weights into a network whose head may have other classes: layers of the head that do not fit stay random."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from embeddings.embedders import weights

_log = logging.getLogger(__name__)


def load(network: Any, state: Mapping[str, Any], heads: Sequence[str], source: str) -> tuple[str, ...]:
    """Loads `state`. Layers whose names begin with one of `heads` may be missing or of another size.

    These keep their random weights. Returns their names, sorted, and logs them as a warning. Raises BadInput, naming
    `source`, if anything else is missing, unknown or of another size.
    """
    own = network.state_dict()
    # Counters that no prediction depends on; files of frozen normalisation have none.
    loaded = {k: v for k, v in state.items() if k in own or not k.endswith("num_batches_tracked")}
    of_head = [k for k in own if k.startswith(tuple(heads)) and not k.endswith("num_batches_tracked")]
    unfit = [k for k in of_head if k not in loaded or loaded[k].shape != own[k].shape]
    # A layer is loaded as a whole or not at all.
    random = sorted({k.rpartition(".")[0] for k in unfit})
    if random:
        sizes = [f"{tuple(loaded[k].shape)}, the network {tuple(own[k].shape)}" for k in unfit if k in loaded]
        reason = f"have another size (the file {sizes[0]})" if sizes else "are not in it"
        _log.warning("%s: layers %s %s and begin at random", source, ", ".join(random), reason)
    fitting = {k: v for k, v in loaded.items() if k.rpartition(".")[0] not in random}
    weights.load_into(network, fitting | {k: own[k] for k in own if k.rpartition(".")[0] in random}, source)
    return tuple(random)
