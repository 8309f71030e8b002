"""Networks by name: features of the length that is said, weights only where asked for, rates by depth."""

from __future__ import annotations

from pathlib import Path

import pytest

from embeddings.embedders import torch_import
from lake.errors import BadInput, HubUnreachable
from training.fit import forgetting
from training.networks import backbones
from training.tasks.classification import Classification


@pytest.mark.parametrize(
    ("name", "dim", "side"), [("efficientnet-lite0", 1280, 224), ("resnet18", 512, 224), ("test_resnet", 96, 160)]
)
def test_features_have_the_stated_length(name: str, dim: int, side: int) -> None:
    torch = torch_import.torch()
    backbone = backbones.build(name, pretrained=False)
    assert (backbone.dim, backbone.side, backbones.side(name)) == (dim, side, side)
    with torch.no_grad():
        assert backbone.module.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, dim)


def test_the_packaged_weights_are_those_of_the_embedder() -> None:
    from embeddings.embedders import networks, weights

    torch = torch_import.torch()
    network = Classification().network("efficientnet-lite0", ["a", "b"])
    same = networks.build("efficientnet-lite0", None, None).module
    assert weights.fingerprint(network.backbone) == weights.fingerprint(same)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        features = same.eval()((images.float() / 255 - 0.5) / 0.5)
        assert torch.allclose(network.eval()(images), network.head(features), atol=1e-5)


def test_weights_from_a_file_leave_its_classifier_behind(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    published = torch_import.timm().create_model("test_resnet", pretrained=False, num_classes=7)
    save_file(published.state_dict(), tmp_path / "w.safetensors")
    backbone = backbones.build("test_resnet", file=tmp_path / "w.safetensors")
    assert backbone.module.state_dict()["conv1.0.weight"].equal(published.state_dict()["conv1.0.weight"])


def test_missing_weights_name_the_way_out() -> None:
    with pytest.raises(HubUnreachable, match=r"--weights FILE.*pretrained=false"):
        backbones.build("test_resnet")
    with pytest.raises(BadInput, match="did you mean resnet"):
        backbones.build("resnet19")
    with pytest.raises(BadInput, match="not both"):
        backbones.build("resnet18", pretrained=False, file=Path("x.safetensors"))


def test_rates_fall_towards_the_input() -> None:
    network = Classification().network("resnet18", ["a", "b"], pretrained=False)
    groups = backbones.rate_groups(network, 1.0, 0.1, 0.5)
    rate = {name: group["rate"] for group in groups for name in group["names"]}
    assert rate["head.weight"] == 1.0
    assert rate["backbone.layer4.1.conv2.weight"] == pytest.approx(0.1)
    assert rate["backbone.layer3.0.conv1.weight"] == pytest.approx(0.05)
    assert rate["backbone.layer1.0.conv1.weight"] == pytest.approx(0.0125)
    assert rate["backbone.conv1.weight"] < rate["backbone.layer1.0.conv1.weight"]
    assert len(rate) == len(list(network.parameters()))


def test_frozen_norms_keep_their_means() -> None:
    torch = torch_import.torch()
    network = Classification().network("test_resnet", ["a", "b"], pretrained=False)
    backbones.freeze(network, "norms")
    backbones.training_mode(network, "norms")
    before = {k: v.clone() for k, v in network.state_dict().items() if "running_mean" in k}
    assert before
    network(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    assert all(network.state_dict()[k].equal(v) for k, v in before.items())
    learns = {name for name, p in network.named_parameters() if p.requires_grad}
    assert "backbone.conv1.0.weight" in learns
    assert not any(".bn" in name for name in learns)


def test_averages_of_weights() -> None:
    torch = torch_import.torch()
    old, new = {"w": torch.zeros(2), "n": torch.tensor(3)}, {"w": torch.ones(2), "n": torch.tensor(5)}
    assert forgetting.average(old, new, 0.25)["w"].tolist() == [0.25, 0.25]
    assert forgetting.average(old, new, 0.25)["n"].item() == 5
    with pytest.raises(BadInput, match="same architecture"):
        forgetting.average({"w": torch.zeros(3)}, {"w": torch.zeros(2)}, 0.5)


def test_the_pull_is_the_gradient_of_half_the_squared_distance() -> None:
    torch = torch_import.torch()
    network = torch.nn.Linear(3, 2)
    old = {k: torch.randn_like(v) for k, v in network.state_dict().items()}
    penalty = 0.5 * 0.7 * ((network.weight - old["weight"]) ** 2).sum()
    (wanted,) = torch.autograd.grad(penalty, network.weight)
    network(torch.zeros(1, 3)).sum().backward()
    forgetting.Pull(network, old, 0.7, skip=["bias"])()
    assert torch.allclose(network.weight.grad, wanted)
    assert network.bias.grad.tolist() == [1.0, 1.0]


def test_norms_are_measured_again() -> None:
    torch = torch_import.torch()
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    images = torch.rand(4, 3, 8, 8) * 5
    assert forgetting.refresh_norms(network, [images[:2], images[2:]]) == 1
    assert torch.allclose(network[0].running_mean, images.mean(dim=(0, 2, 3)), atol=1e-5)
    assert network[0].momentum == 0.1
    assert not network.training


def test_another_architecture_cannot_be_continued_from() -> None:
    small = Classification().network("test_resnet", ["a", "b"], pretrained=False)
    other = Classification().network("resnet18", ["a", "b"], pretrained=False)
    with pytest.raises(BadInput, match="another architecture"):
        forgetting.carry_over(small, other.state_dict(), ["a", "b"], ["a", "b"])
    with pytest.raises(BadInput, match="come first"):
        forgetting.carry_over(small, small.state_dict(), ["a", "b"], ["b", "a"])
