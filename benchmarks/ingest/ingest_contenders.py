"""The contenders of `ingest`, one process each: lakeloop, a plain DataLoader loop, and single steps.

Every contender reports `startup` apart from its timed section: everything before the first image is read (imports,
loading the network, one batch, creating a lake). Vectors are saved outside the timed section, sorted by file name.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.contender import Stopwatch
from benchmarks.harness.rounds import CORES, tree_rss

if TYPE_CHECKING:
    from embeddings.embedders.engine import EngineName

EMBEDDER = "efficientnet-lite0"
CLIP = "clip-vit-b-32"
# The batch size that lakeloop uses on CPU; every contender uses the same.
BATCH = 16


def lakeloop(
    turn: int,
    folder: str,
    work: str,
    engine: EngineName,
    embedder: str = EMBEDDER,
    weights: str | None = None,
) -> dict[str, Any]:
    """Ingests a folder into a new lake and embeds it: from the first file read to the last row committed.

    Thumbnails and image bytes are stored, as always. The two worker pools start inside the timed section; `pools` is
    the time of two such starts alone, until the first result.
    """
    with Stopwatch() as startup:
        import lance  # noqa: F401

        from embeddings.backfill.backfill import backfill
        from embeddings.embedders import embedder as embedders
        from lake import open_lake
        from lake.images.workers import WorkerPool
        from lake.ingest.ingest import ingest

        file = Path(weights) if weights else None
        model = embedders.load(embedder, file=file, engine=engine)
        preprocessing = model.spec.preprocessing
        assert preprocessing is not None
        model.embed_batch([np.zeros((preprocessing.crop, preprocessing.crop, 3), np.uint8)] * BATCH)
        uri = Path(work, f"lake-{embedder}-{engine}-{turn}")
        lake = open_lake.create(str(uri), embedders=[embedder])
    with Stopwatch() as pools:
        for function, arguments in (
            ("lake.images.decode:decode_many", ([], 1, None)),
            ("embeddings.embedders.preprocess:prepare_many", ([], preprocessing, None)),
        ):
            with WorkerPool(function, CORES) as pool:
                list(pool.map([(arguments, None)] * CORES))
    with Stopwatch() as whole:
        with Stopwatch() as first:
            report = ingest(lake, folder)
        with Stopwatch() as second:
            filled = backfill(lake, lake.embedders()[0], model, file=file)
    if report.rejected or filled.failed:
        raise RuntimeError(f"not everything went in: {report.rejected[:3]} {list(filled.reasons.items())[:3]}")
    table = lake.scan("samples", ["source", lake.embedders()[0].column]).sort_by("source")
    vectors = np.stack(table.column(1).to_numpy(zero_copy_only=False)).astype(np.float32)
    _save(work, f"lakeloop-{embedder}-{engine}", [Path(s).name for s in table["source"].to_pylist()], vectors)
    shutil.rmtree(uri)
    return {
        "images": filled.embedded,
        "startup": startup.figures(),
        "pools": pools.figures(),
        "whole": whole.figures(),
        "ingest": first.figures(),
        "backfill": second.figures(),
        "peak_rss_parent": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


def forward_only(
    turn: int, squares: str, engine: EngineName, embedder: str = EMBEDDER, weights: str | None = None
) -> dict[str, Any]:
    """The network alone on prepared images in memory, with the engine that lakeloop uses."""
    with Stopwatch() as startup:
        from embeddings.embedders import embedder as embedders

        model = embedders.load(embedder, file=Path(weights) if weights else None, engine=engine)
        images = np.load(squares)
        model.embed_batch(images[:BATCH])
    with Stopwatch() as whole:
        for start in range(0, len(images), BATCH):
            model.embed_batch(images[start : start + BATCH])
    return {"images": len(images), "startup": startup.figures(), "whole": whole.figures()}


def stages(turn: int, folder: str, squares: str | None = None) -> dict[str, Any]:
    """CPU seconds of each step before the network, alone, on one core, with the files' bytes in memory.

    `prepare` is the input of the network: the decode (DCT-scaled where that is allowed) and the square crop;
    `scaled_decode` is the first half of it. `thumbnail` is the work of ingest on a file (another decode, a reduction,
    an encode); `read_and_hash` reads the file and computes its SHA-256. `squares`: the path to save the crops to.
    `full_size`: the files that are decoded without scaling. No pixels are kept, as in a worker.
    """
    from embeddings.embedders.preprocess import DCT_MARGIN, prepare
    from embeddings.embedders.specs import SPECS
    from lake import ids
    from lake.images import decode

    preprocessing = SPECS[EMBEDDER].preprocessing
    assert preprocessing is not None
    side = round(preprocessing.resize * DCT_MARGIN)
    files = sorted(Path(folder).rglob("*.*"))
    prepare(files[0].read_bytes(), preprocessing)
    with Stopwatch() as reading:
        contents = [path.read_bytes() for path in files]
        for data in contents:
            ids.image_id(data)
    with Stopwatch() as thumbnails:
        for data in contents:
            decode.decode(data)
    with Stopwatch() as decoding:
        sizes = [decode.pixels(decode.open_image(data), shortest_side=side).size for data in contents]
    with Stopwatch() as preparing:
        prepared = [prepare(data, preprocessing) for data in contents]
    if squares is not None:
        np.save(squares, np.stack(prepared))
    whole = [sorted(decode.open_image(data).size) == sorted(size) for data, size in zip(contents, sizes, strict=True)]
    full = [path.name for path, is_whole in zip(files, whole, strict=True) if is_whole]
    return {
        "images": len(files),
        "full_size": full,
        "read_and_hash": reading.figures(),
        "thumbnail": thumbnails.figures(),
        "scaled_decode": decoding.figures(),
        "prepare": preparing.figures(),
    }


def plain_dataloader(turn: int, folder: str, work: str) -> dict[str, Any]:
    """A script without lakeloop: torch's DataLoader (one worker per core), torchvision transforms, a Lance table.

    The same weights, preprocessing, batch size, thread count, channels_last and inference_mode as in lakeloop.
    Rows have the columns of predictions and the vector. It stores no thumbnails and no images, and checks nothing.
    """
    with Stopwatch() as startup:
        from embeddings.embedders import networks, torch_import

        torch, torchvision = torch_import.torch(), torch_import.torchvision()
        import lance
        import pyarrow as pa

        from embeddings.embedders.specs import SPECS
        from lake import ids
        from lake.storage import schema, store

        preprocessing = SPECS[EMBEDDER].preprocessing
        assert preprocessing is not None
        torch.set_num_threads(CORES)
        network = networks.build(EMBEDDER, None, None).features.to(memory_format=torch.channels_last)
        transforms = torchvision.transforms
        prepare = transforms.Compose(
            [
                transforms.Resize(preprocessing.resize, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(preprocessing.crop),
                transforms.ToTensor(),
                transforms.Normalize(preprocessing.mean, preprocessing.std),
            ]
        )
        with torch.inference_mode():
            blank = torch.zeros(BATCH, 3, preprocessing.crop, preprocessing.crop).contiguous(
                memory_format=torch.channels_last
            )
            dim = network(blank).shape[1]
        column = schema.vector_column(EMBEDDER)
        kind = pa.schema([*schema.SAMPLES.arrow(), pa.field(column, schema.vector_type(dim))])
        uri = str(Path(work, f"plain-{turn}.lance"))
    with Stopwatch() as whole:
        files = [str(p) for p in sorted(Path(folder).rglob("*.*"))]
        loader = torch.utils.data.DataLoader(_Photographs(files, prepare), batch_size=BATCH, num_workers=CORES)
        rows: list[dict[str, Any]] = []
        for names, batch, indices in loader:
            with torch.inference_mode():
                vectors = network(batch.contiguous(memory_format=torch.channels_last))
                vectors = torch.nn.functional.normalize(vectors, dim=1).numpy()
            for name, vector, index in zip(names, vectors, indices.tolist(), strict=True):
                row = {
                    "prediction_id": ids.bare_prediction_id(name),
                    "image_id": name,
                    "source": files[index],
                }
                rows.append({**row, "ingested_at": store.now(), column: vector})
        del loader
        lance.write_dataset(pa.Table.from_pylist(rows, schema=kind), uri)
    _save(work, "plain_dataloader", [Path(f).name for f in files], np.stack([row[column] for row in rows]))
    shutil.rmtree(uri)
    return {"images": len(rows), "startup": startup.figures(), "whole": whole.figures()}


def export(turn: int, work: str) -> dict[str, Any]:
    """For peers: weights and preprocessing of the default embedder, and a CLIP with seeded random weights."""
    import torch
    from safetensors.torch import save_file

    from embeddings.embedders import networks, torch_import
    from embeddings.embedders.specs import SPECS

    torch.manual_seed(0)
    modules = {
        EMBEDDER: networks.build(EMBEDDER, None, None).module,
        CLIP: torch_import.open_clip().create_model("ViT-B-32", pretrained=None),
    }
    paths = {name: str(Path(work, f"{name}.safetensors")) for name in modules}
    for name, module in modules.items():
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, paths[name])
    preprocessing = SPECS[EMBEDDER].preprocessing
    assert preprocessing is not None
    return {
        **paths,
        "resize": preprocessing.resize,
        "crop": preprocessing.crop,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
    }


class _Photographs:
    """A map-style dataset of torch: (SHA-256, tensor, index)."""

    def __init__(self, files: Sequence[str], prepare: Callable[[Any], Any]) -> None:
        self._files = files
        self._prepare = prepare

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[str, Any, int]:
        import hashlib
        import io

        from PIL import Image

        data = Path(self._files[index]).read_bytes()
        with closing(io.BytesIO(data)) as file:
            tensor = self._prepare(Image.open(file).convert("RGB"))
        return hashlib.sha256(data).hexdigest(), tensor, index


def many_small(turn: int, folder: str, work: str, images: int) -> dict[str, Any]:
    """Ingests many tiny files without embedding, then the same folder again.

    Resident memory is sampled after a quarter, a half, three quarters and all of the files.
    """
    import os

    with Stopwatch() as startup:
        import lance  # noqa: F401
        import psutil

        from lake import open_lake
        from lake.ingest.ingest import ingest

        uri = Path(work, f"lake-small-{turn}")
        lake = open_lake.create(str(uri))
    done = 0
    memory: dict[str, dict[str, int]] = {}
    marks = {images * q // 4: f"{q * 25}%" for q in (1, 2, 3, 4)}

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if done in marks:
            memory[marks[done]] = {"parent": psutil.Process().memory_info().rss, "all": tree_rss(os.getpid())}

    with Stopwatch() as first:
        report = ingest(lake, folder, progress=progress)
    rows = lake.dataset("samples").count_rows()
    with Stopwatch() as again:
        second = ingest(lake, folder)
    added = lake.dataset("samples").count_rows() - rows
    shutil.rmtree(uri)
    return {
        "files": images,
        "images_new": report.images_new,
        "images_known": report.images_known,
        "rejected": len(report.rejected),
        "startup": startup.figures(),
        "whole": first.figures(),
        "again": again.figures(),
        "again_rows_added": added + second.images_new,
        "rss": memory,
        "peak_rss_parent": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


def _save(work: str, name: str, files: Sequence[str], vectors: np.ndarray) -> None:
    order = np.argsort(files)
    np.savez(Path(work, f"vectors-{name}.npz"), files=np.asarray(files)[order], vectors=vectors[order])
