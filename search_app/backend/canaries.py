"""The canaries of one server's models: which images they predict, what is measured, and their automatic roll back.

The registry has the decision, so that it holds for all servers and after a restart. Each server measures for itself.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lake.access import audit
from training.inference import served_model
from training.inference.canary_evidence import Evidence
from training.inference.canary_measurements import MeasurementFile
from training.registry import canary, promotion, versions

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.inference.served_model import ServedVersion
    from training.registry.versions import Version

_log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


@dataclass(eq=False)
class Trial:
    """One canary beside the promoted version. `over`: it passed a limit, and this server uses it no more."""

    version: Version
    canary: ServedVersion
    promoted: ServedVersion
    evidence: Evidence
    file: MeasurementFile
    over: bool = False

    def predicts(self, image_id: str) -> bool:
        """Whether the canary predicts this image now."""
        share = self.version.share or 0.0
        return not self.over and canary.predicts(share, self.version.model, image_id)


@dataclass(frozen=True)
class Source:
    """What a model's name stands for: the promoted (or named) version and, beside it, perhaps a canary."""

    version: ServedVersion
    trial: Trial | None = None

    def choose(self, image_id: str) -> tuple[ServedVersion, Trial | None]:
        """The version that predicts the image, and its trial if that is the canary."""
        if self.trial is not None and self.trial.predicts(image_id):
            return self.trial.canary, self.trial
        return self.version, None


@dataclass
class Canaries:
    """The trials of one server, by model. Thread-safe."""

    lake: Lake
    _trials: dict[str, Trial] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)

    def source(self, name: str) -> Source:
        """What NAME, NAME@V or a run's id stands for now. Raises as `served_model.served_version`."""
        served = served_model.served_version(self.lake, name)
        if name != served.model:  # a version was named: that one predicts, whatever is in production
            return Source(served)
        current = versions.canary(self.lake, name)
        with self._lock:
            trial = self._trials.get(name)
            if current is None:
                if trial is not None:
                    self._trials.pop(name).file.delete()
                return Source(served)
            if trial is None or trial.version != current or trial.promoted != served:
                evidence = Evidence(canary.limits_of_json(current.limits))
                file = MeasurementFile(self.lake, current)
                trial = Trial(current, served_model.served_version(self.lake, current.id), served, evidence, file)
                self._trials[name] = trial
        return Source(served, trial)

    def judge(self, trial: Trial) -> None:
        """Rolls the canary back if it passes a limit. This server stops to use it at once; the lake follows."""
        trial.file.write(trial.evidence.facts)
        objection = None if trial.over else trial.evidence.objection()
        if objection is not None:
            trial.over = True
            # A thread, because the lake may be slow and predictions must not wait for it.
            threading.Thread(target=self._end, args=(trial, objection), name="end canary", daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        for trial in self._trials.values():
            trial.file.delete()

    def _end(self, trial: Trial, objection: str) -> None:
        name, reason = trial.version.id, f"rolled back automatically: {objection}"
        while not self._closing.is_set():
            try:
                promoted = promotion.end_canary(self.lake, trial.version, reason)
                if promoted is not None:  # otherwise another server or a person was faster
                    _log.warning("canary %s was %s", name, reason)
                    detail = {"run": promoted.run, "reason": reason, "taken_back": name, "automatic": True}
                    audit.record(self.lake, "models rollback", promoted.id, detail=detail)
                return
            except Exception as error:  # whatever it is, the lake must learn of it: try until it does
                _log.warning("canary %s passed a limit, but the lake could not be written: %s", name, error)
                self._closing.wait(RETRY_SECONDS)
