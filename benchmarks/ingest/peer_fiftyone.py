"""FiftyOne as a contender of `ingest`; it runs in its own environment.

A folder becomes a dataset and `compute_embeddings` fills a field, as its documentation shows for custom models. The
network, weights (ours, exported), preprocessing, batch size and number of workers are the same. FiftyOne stores paths
and vectors in its MongoDB, whose CPU seconds are not counted; it stores no images and no thumbnails.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.harness.contender import Stopwatch


def run(
    turn: int, folder: str, work: str, weights: str, batch: int, cores: int, resize: int, crop: int,
    mean: list[float], std: list[float],
) -> dict[str, Any]:  # fmt: skip
    os.environ |= {"FIFTYONE_DO_NOT_TRACK": "true", "FIFTYONE_DATABASE_DIR": str(Path(work, "fiftyone"))}
    os.environ |= {"FIFTYONE_DATABASE_VALIDATION": "false", "FIFTYONE_SHOW_PROGRESS_BARS": "false"}
    with Stopwatch() as startup:
        from embeddings.embedders import torch_import

        torch, torchvision, timm = torch_import.torch(), torch_import.torchvision(), torch_import.timm()
        import fiftyone
        import fiftyone.utils.torch as wrappers
        import numpy as np
        from safetensors.torch import load_file

        torch.set_num_threads(cores)
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
        network.load_state_dict(load_file(weights))
        network = network.to(memory_format=torch.channels_last)
        transforms = torchvision.transforms
        prepare = transforms.Compose(
            [
                transforms.Resize(resize, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(crop),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )
        with torch.inference_mode():
            network(torch.zeros(batch, 3, crop, crop).contiguous(memory_format=torch.channels_last))
        settings = {
            "model": network,
            "transforms": prepare,
            "ragged_batches": False,
            "as_feature_extractor": True,
        }
        model = wrappers.TorchImageModel(wrappers.TorchImageModelConfig(settings))
        name = f"lakeloop-benchmark-{os.getpid()}"
        fiftyone.Dataset(f"{name}-warm")  # starts the database
    with Stopwatch() as whole:
        dataset = fiftyone.Dataset.from_images_dir(folder, name=name)
        dataset.compute_embeddings(model, embeddings_field="embedding", batch_size=batch, num_workers=cores)
    paths, vectors = dataset.values(["filepath", "embedding"])
    order = np.argsort([Path(p).name for p in paths])
    matrix = np.stack(vectors)[order].astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    np.savez(
        Path(work, "vectors-fiftyone.npz"),
        files=np.array([Path(p).name for p in paths])[order],
        vectors=matrix,
    )
    fiftyone.delete_dataset(name)
    fiftyone.delete_dataset(f"{name}-warm")
    return {
        "images": len(paths),
        "startup": startup.figures(),
        "whole": whole.figures(),
        "versions": {
            "fiftyone": fiftyone.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
