"""clip-retrieval as a contender of `ingest`: runs under its own Python (`benchmarks/peers.py`).

`clip-retrieval inference` on the folder, images only, with the checkpoint given. Its vectors go to a .npy in
half precision, paths to Parquet; it stores neither images nor thumbnails. The network is loaded before its
clock starts: its own cache then hands it over.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

from benchmarks.contender import Stopwatch


def run(turn: int, folder: str, work: str, arch: str, weights: str, batch: int, cores: int) -> dict[str, Any]:
    with Stopwatch() as startup:
        from embeddings import torch_import

        torch, _ = torch_import.torch(), torch_import.torchvision()
        import numpy as np

        pandas = importlib.import_module("pandas")
        load_clip = importlib.import_module("all_clip").load_clip
        worker = importlib.import_module("clip_retrieval.clip_inference.worker").worker

        torch.set_num_threads(cores)
        model = f"open_clip:{arch}/{weights}"
        # These arguments, in this order, are what it asks its cache for.
        load_clip(clip_model=model, use_jit=False, warmup_batch_size=batch, clip_cache_path=None)
        out = Path(work, f"clip-retrieval-{turn}")
    with Stopwatch() as whole:
        worker(
            [0],
            folder,
            str(out),
            1,
            batch_size=batch,
            num_prepro_workers=cores,
            enable_text=False,
            clip_model=model,
            use_jit=False,
        )
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
