"""Weights are data: read without running code, told apart by their tensors, kept with the lake."""

import hashlib
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from embeddings.embedders import specs, torch_import, weights
from lake.errors import BadInput, CouldNot
from lake.open_lake import OpenLake

torch = torch_import.torch()
ROOT = Path(__file__).parents[3]


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    torch.save(network().state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_the_same_weights_have_one_fingerprint_whatever_file_they_came_in(tmp_path: Path, pth: Path) -> None:
    save_file(network().state_dict(), tmp_path / "net.safetensors")
    prints = set()
    for path in (pth, tmp_path / "net.safetensors"):
        module = network(seed=9)
        weights.load_into(module, weights.read(path, trust_sha256=sha(path)), path.name)
        prints.add(weights.fingerprint(module))
    assert prints == {weights.fingerprint(network())}
    assert weights.fingerprint(network()) != weights.fingerprint(network(seed=1))


def test_a_counter_of_training_steps_does_not_count() -> None:
    counted = network()
    counted.load_state_dict(network().state_dict() | {"1.num_batches_tracked": torch.tensor(7)})
    assert weights.fingerprint(counted) == weights.fingerprint(network())


def test_an_unknown_pth_is_read_only_if_trusted(pth: Path) -> None:
    with pytest.raises(BadInput, match=f"--trust-sha256 {sha(pth)}"):
        weights.read(pth)
    with pytest.raises(BadInput, match="not the published file"):
        weights.read(pth, sha256="0" * 64)
    with pytest.raises(BadInput, match="it is not the file you trust"):
        weights.read(pth, sha256=sha(pth), trust_sha256="0" * 64)
    assert set(weights.read(pth, trust_sha256=sha(pth).upper())) == set(network().state_dict())
    assert set(weights.read(pth, sha256=sha(pth))) == set(network().state_dict())


def test_a_part_of_the_hash_vouches_for_nothing(pth: Path) -> None:
    """A file with the same first 32 bits takes minutes to make."""
    with pytest.raises(BadInput, match="not the published file"):
        weights.read(pth, sha256=sha(pth)[:8])
    assert all(spec.sha256 is None or len(spec.sha256) == 64 for spec in specs.SPECS.values())


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("open('/tmp/lakeloop-ran', 'w')",)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_trusted_file_is_not_run(tmp_path: Path, form: str) -> None:
    path, trace = tmp_path / "evil.pth", Path("/tmp/lakeloop-ran")
    if form == "torch":
        torch.save({"weight": Code()}, path)
    else:
        path.write_bytes(pickle.dumps(Code()))
    with pytest.raises(BadInput, match="holds more than tensors or is damaged"):
        weights.read(path, trust_sha256=sha(path))
    assert not trace.exists()


def test_a_damaged_file_is_refused(tmp_path: Path, pth: Path) -> None:
    whole = tmp_path / "net.safetensors"
    save_file(network().state_dict(), whole)
    for path, reason in ((whole, "not a readable safetensors"), (pth, "damaged")):
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(BadInput, match=reason):
            weights.read(path, trust_sha256=sha(path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no weights file"):
        weights.read(tmp_path / "gone.pth")
    (tmp_path / "net.onnx").touch()
    with pytest.raises(BadInput, match="weights come as"):
        weights.read(tmp_path / "net.onnx")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(BadInput, match="holds no state_dict"):
        weights.read(tmp_path / "list.pt", trust_sha256=sha(tmp_path / "list.pt"))


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped(tmp_path: Path, key: str) -> None:
    state = {f"module.{k}": v for k, v in network().state_dict().items()}
    torch.save({key: state, "epoch": 3}, tmp_path / "run.pt")
    assert set(weights.read(tmp_path / "run.pt", trust_sha256=sha(tmp_path / "run.pt"))) == set(network().state_dict())


def test_weights_that_do_not_fit_say_where() -> None:
    state = dict(network().state_dict())
    for wrong, reason in (
        ({k: v for k, v in state.items() if k != "0.bias"}, r"1 missing \(0.bias"),
        (state | {"head": torch.zeros(1)}, r"1 unknown \(head"),
        (state | {"0.bias": torch.zeros(5)}, r"1 of another shape \(0.bias"),
    ):
        with pytest.raises(BadInput, match=reason):
            weights.load_into(network(), wrong, "mine.pth")


def test_stored_weights_are_found_again(lk: OpenLake) -> None:
    module = network()
    name = weights.fingerprint(module)
    assert weights.stored(lk, name) is None
    path = weights.store(lk, module, name)
    assert weights.stored(lk, name) == path == weights.store(lk, module, name)
    other = network(seed=3)
    weights.load_into(other, weights.read(path), path.name)
    assert weights.fingerprint(other) == name
    assert [p.name for p in path.parent.iterdir()] == [f"{name}.safetensors"]


def test_weights_cannot_be_stored_in_a_bucket() -> None:
    with pytest.raises(CouldNot, match="only in a lake on a local disk"):
        weights.store(OpenLake("s3://bucket/lake"), network(), "0" * 64)
    assert weights.stored(OpenLake("s3://bucket/lake"), "0" * 64) is None


def test_torch_load_is_called_in_one_place() -> None:
    """Pickles can carry code: one function checks the hash first."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    loading = re.compile(r"\btorch(\(\))?\.load\(|pickle\.loads?\(|hub\.load\(|load_state_dict_from_url\(")
    modules = [f for f in files for line in (ROOT / f).read_text().splitlines() if loading.search(line)]
    assert modules == ["embeddings/embedders/weights.py"]
