"""clip-retrieval as a contender of `ingest`; it runs in its own environment.

It runs what `clip-retrieval inference` runs: its Runner with its own reader, mapper and writer, images only. Vectors go
to a .npy in half precision, paths to Parquet; it stores no images and no thumbnails. Two costs are left out in its
favour: loading the network counts as start-up, and its process for statistics is not started.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

from benchmarks.harness.contender import Stopwatch


def run(turn: int, folder: str, work: str, arch: str, weights: str, batch: int, cores: int) -> dict[str, Any]:
    with Stopwatch() as startup:
        from embeddings.embedders import torch_import

        torch, _ = torch_import.torch(), torch_import.torchvision()
        import numpy as np

        pandas, parts = (
            importlib.import_module("pandas"),
            importlib.import_module("clip_retrieval.clip_inference.worker"),
        )
        torch.set_num_threads(cores)
        model = f"open_clip:{arch}/{weights}"
        # The mapper calls load_clip with these arguments in this order, and gets the network from its cache.
        load = {"clip_model": model, "use_jit": False, "warmup_batch_size": batch, "clip_cache_path": None}
        _, preprocess, tokenizer = parts.load_clip(**load)
        out = Path(work, f"clip-retrieval-{turn}")
        images_only = {"enable_text": False, "enable_image": True, "enable_metadata": False}
        runner = parts.Runner(
            lambda sampler: parts.FilesReader(sampler, preprocess, tokenizer, folder, batch, cores, **images_only),
            lambda: parts.ClipMapper(**images_only, use_mclip=False, mclip_model="", **load),
            lambda i: parts.NumpyWriter(
                partition_id=i, output_folder=str(out), output_partition_count=1, **images_only
            ),
            lambda i: _NoStatistics(),
            1,
        )
    with Stopwatch() as whole:
        runner(0)
    vectors = np.concatenate([np.load(p) for p in sorted(out.glob("img_emb/*.npy"))]).astype(np.float32)
    tables = [pandas.read_parquet(p) for p in sorted(out.glob("metadata/*.parquet"))]
    files = np.array([Path(p).name for p in pandas.concat(tables)["image_path"]])
    order = np.argsort(files)
    np.savez(Path(work, "vectors-clip-retrieval.npz"), files=files[order], vectors=vectors[order])
    return {
        "images": len(files),
        "startup": startup.figures(),
        "whole": whole.figures(),
        "versions": {p: importlib.metadata.version(p) for p in ("clip-retrieval", "torch", "open-clip-torch")},
    }


class _NoStatistics:
    """Replaces its LoggerWriter."""

    def start(self) -> None:
        pass

    def __call__(self, stats: dict[str, Any]) -> None:
        pass

    def end(self) -> None:
        pass
