"""Weights into a network whose head may be for other classes: what does not fit is made anew, and that is said."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from embeddings.embedders import weights

_log = logging.getLogger(__name__)


def load(network: Any, state: Mapping[str, Any], heads: Sequence[str], place: str) -> tuple[str, ...]:
    """Loads `state`; layers whose names begin as in `heads` may be missing or of another size.

    These keep what the network has: its random beginning. Returns their names, sorted, and logs them as a warning.
    Raises BadInput, naming `place`, when anything else is missing, too much or of another size.
    """
    own = network.state_dict()
    # Counters that no answer depends on; files of frozen normalisation have none.
    given = {k: v for k, v in state.items() if k in own or not k.endswith("num_batches_tracked")}
    of_head = [k for k in own if k.startswith(tuple(heads)) and not k.endswith("num_batches_tracked")]
    wrong = [k for k in of_head if k not in given or given[k].shape != own[k].shape]
    # A layer is the file's as a whole or not at all.
    remade = sorted({k.rpartition(".")[0] for k in wrong})
    if remade:
        known = [f"{tuple(given[k].shape)} there, {tuple(own[k].shape)} here" for k in wrong if k in given]
        reason = f"of another size ({known[0]})" if known else "not in it"
        _log.warning("%s: layers %s are %s and begin at random", place, ", ".join(remade), reason)
    kept = {k: v for k, v in given.items() if k.rpartition(".")[0] not in remade}
    weights.load_into(network, kept | {k: own[k] for k in own if k.rpartition(".")[0] in remade}, place)
    return tuple(remade)
