"""The ``dali`` engine: decoding and pixel work by NVIDIA DALI, on a GPU or (for tests) on the CPU.

Worker processes read files and draw what is done to each view, with the generator of the ``torch`` engine: both engines
give the same boxes, flips and order of images, and a stopped run finds the same views again without any state of DALI.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.probe import jpeg_header
from ssl_toolkit.errors import UserError
from ssl_toolkit.views.batch import View, ViewBatch
from ssl_toolkit.views.dali_graph import flatten, view_pipeline
from ssl_toolkit.views.loader import EpochBatches, ViewLoader, epoch_of, stop_workers, worker_loader
from ssl_toolkit.views.reading import BatchDataset, Images, Unreadable, read_or_replace, read_pixels
from ssl_toolkit.views.settings import random_numbers, settings_of
from ssl_toolkit.views.spec import ViewsConfig

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_NO_FILE = np.zeros(1, np.uint8)
_NO_PIXELS = np.zeros((1, 1, 1), np.uint8)
_NO_TURN = (0, 0, 0, 0)
_TURNS = [(1, o > 4, o in (3, 4, 7, 8), o in (2, 3, 6, 7)) for o in range(9)]
"""By EXIF orientation, what `view_pipeline` is told of a file."""


@dataclass(frozen=True)
class SourceBatch:
    """What the graph needs of a batch, and what passes by it.

    Attributes:
        keys: the ``(epoch, index)`` it was made for.
        data: ``(n,)`` uint8, files and pixels one after the other: few tensors cross between processes quickly.
        shapes: ``(N, 3)`` int64, height, width and channels of pixels; for a file its length, its EXIF orientation, 0.
        numbers: ``(V, N, K)`` float32, see `flatten`.
        boxes, flips: ``(V, N, 4)`` float32 and ``(V, N)`` bool.
        image_size, index, label, unreadable: as in `ViewBatch`.
        decoded: whether no file is left to DALI to decode.
    """

    keys: list[tuple[int, int]]
    data: Tensor
    shapes: Tensor
    numbers: Tensor
    boxes: Tensor
    flips: Tensor
    image_size: Tensor
    index: Tensor
    label: Tensor | None
    unreadable: tuple[str, ...]
    decoded: bool

    def inputs(self, files_too: bool) -> list[Any]:
        """The inputs of `view_pipeline`, with ``files_too`` those that DALI decodes."""
        data, files, pixels, turns, start = self.data.numpy(), [], [], [], 0
        for height, width, channels in self.shapes.tolist():
            file = channels == 0
            end = start + (height if file else height * width * channels)
            part = data[start:end]
            files.append(part if file else _NO_FILE)
            pixels.append(_NO_PIXELS if file else part.reshape(height, width, channels))
            turns.append(_TURNS[width] if file else _NO_TURN)
            start = end
        return [pixels, *self.numbers.numpy(), *([files, np.array(turns, np.int32)] if files_too else [])]


class SourceDataset(BatchDataset[SourceBatch]):
    """Reads the files of a whole batch and draws its views."""

    def batch(self, keys: Sequence[tuple[int, int]], decode: bool = False) -> SourceBatch:
        """Of ``(epoch, index)`` keys; with ``decode`` no file is left to DALI."""
        parts, shapes, sizes, indices, unreadable = [], [], [], [], []  # type: ignore[var-annotated]
        numbers: list[list[list[float]]] = [[] for _ in self.positions]
        boxes = np.empty((len(self.positions), len(keys), 4), np.float32)
        flips = np.empty((len(self.positions), len(keys)), bool)
        read = self._pixels if decode else self._file_or_pixels
        for row, key in enumerate(keys):
            (part, shape, size), index = read_or_replace(read, key, self.seed, len(self.images), unreadable)
            parts.append(part)
            shapes.append(shape)
            sizes.append(size)
            indices.append(index)
            drawn = random_numbers(self.seed, *key, len(self.positions))
            for view, (group, position) in enumerate(self.positions):
                settings = settings_of(drawn[view], group, position, *size, self.images.in_channels == 3)
                numbers[view].append(flatten(settings))
                boxes[view, row], flips[view, row] = settings.box(), settings.flip
        return SourceBatch(
            keys=list(keys),
            data=torch.from_numpy(np.concatenate(parts)),
            shapes=torch.tensor(shapes),
            numbers=torch.tensor(numbers, dtype=torch.float32),
            boxes=torch.from_numpy(boxes),
            flips=torch.from_numpy(flips),
            image_size=torch.tensor(sizes, dtype=torch.float32),
            index=torch.tensor(indices),
            label=None if self.images.classes is None else torch.tensor([self.images.label(i) for i in indices]),
            unreadable=tuple(unreadable),
            decoded=decode,
        )

    def _file_or_pixels(self, index: int) -> tuple[NDArray[np.uint8], tuple[int, int, int], tuple[int, int]]:
        raw = self.images.encoded(index)
        # A JPEG without its end marker may be cut short: DALI would fill the rest with gray, our decoder says so.
        if raw is None or raw[:3].tobytes() != _JPEG_START or raw[-2:].tobytes() != _JPEG_END:
            return self._pixels(index)
        try:
            info, orientation = jpeg_header(raw)
        except Exception:  # on damaged files parsers raise whatever they stumble over
            return self._pixels(index)  # names the image
        if info.channels not in (1, 3):
            return self._pixels(index)
        size = (info.height, info.width) if orientation < 5 else (info.width, info.height)
        return raw, (len(raw), orientation, 0), size

    def _pixels(self, index: int) -> tuple[NDArray[np.uint8], tuple[int, int, int], tuple[int, int]]:
        image = read_pixels(self.images, index, "uint8")
        height, width, channels = image.shape
        return image.reshape(-1), (height, width, channels), (height, width)


class _Feed:
    """Hands batches to the pipeline and remembers what the pipeline has not given back yet.

    Attributes:
        pending: batches that the pipeline holds, the next one first.
        error: in place of the batch after those. It never goes through DALI, which has errors of the same types.
        ended: whether the pipeline was told that no batch follows.
    """

    def __init__(self, files_too: bool) -> None:
        self.files_too = files_too
        self.start(())

    def start(self, batches: Iterable[SourceBatch | UserError]) -> None:
        self.incoming = iter(batches)
        self.pending: deque[SourceBatch] = deque()
        self.error: Exception | None = None
        self.ended = False

    def __call__(self) -> list[Any]:
        batch = self._next()
        if not isinstance(batch, SourceBatch):
            self.ended, self.error = True, batch
            raise StopIteration  # the end of the epoch for DALI
        self.pending.append(batch)
        return batch.inputs(self.files_too)

    def _next(self) -> SourceBatch | Exception | None:
        try:
            return next(self.incoming, None)
        except Exception as error:  # a worker's, or that one was killed
            return error


class DaliLoader(ViewLoader):
    """Batches of the ``dali`` engine.

    An image that passes for whole and cannot be decoded ends a pipeline of DALI. The batches it held are then decoded
    by the decoder of the ``torch`` engine, which says which image it is, and go through a new pipeline.

    Args:
        images, config, seed: see `SourceDataset`.
        batches, position, unreadable: see `ViewLoader`.
        workers: threads of DALI; a quarter as many processes read files (0: this one does).
        device: ``cpu``, or the GPU that decodes and holds the views.
    """

    def __init__(
        self,
        images: Images,
        config: ViewsConfig,
        seed: int,
        batches: EpochBatches,
        position: Callable[[], int],
        unreadable: Unreadable,
        *,
        workers: int,
        device: torch.device,
    ) -> None:
        super().__init__(batches, position, unreadable)
        self.config, self.channels, self.device = config, images.in_channels, device
        self.threads = max(1, workers)
        self._source = SourceDataset(images, config, seed)
        self._loader = worker_loader(self._source, batches, -(-workers // 4))
        self._feed = _Feed(self.channels == 3)
        self._pipeline: Any = None

    def _build(self) -> Any:
        gpu = self.device.type == "cuda"
        pipeline = view_pipeline(
            self._feed,
            self.config,
            self.channels,
            "gpu" if gpu else "cpu",
            batch_size=self.batches.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if gpu else None,
        )
        pipeline.build()
        return pipeline

    def _batches(self) -> Iterator[ViewBatch | UserError]:
        if self._loader is None:
            raise RuntimeError("this loader is closed")
        incoming = epoch_of(self._loader)  # workers start before a pipeline does: a fork would copy its locks
        # A pipeline that was left in the middle of an epoch holds batches of it: begin with a new one.
        if self._feed.pending or not self._feed.ended:
            self._pipeline = None
        self._feed.start(incoming)
        if self._pipeline is None:
            self._pipeline = self._build()
        else:
            self._pipeline.reset()  # here, since who takes no more than an epoch has never stops it at its end
        while True:
            try:
                outputs = self._run()
            except StopIteration:
                break
            except Exception:
                if all(batch.decoded for batch in self._feed.pending):
                    raise
                outputs = None  # goes on below, where the error no longer keeps the pipeline alive
            if outputs is None:
                self._retry()
            else:
                yield self._view_batch(outputs, self._feed.pending.popleft())
        if isinstance(self._feed.error, UserError):
            yield self._feed.error
        elif self._feed.error is not None:
            raise self._feed.error

    def _run(self) -> Any:
        return self._pipeline.run(torch.cuda.current_stream(self.device)) if self._on_gpu() else self._pipeline.run()

    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _retry(self) -> None:
        feed = self._feed
        decoded = (self._source.batch(batch.keys, decode=True) for batch in list(feed.pending))
        rest: Iterable[Any] = feed.incoming if not feed.ended else () if feed.error is None else (feed.error,)
        self._pipeline = None  # first: two would need twice the memory
        feed.start(chain(decoded, rest))
        self._pipeline = self._build()

    def _view_batch(self, outputs: Any, source: SourceBatch) -> ViewBatch:
        images = [self._to_torch(output.as_tensor()).permute(0, 3, 1, 2) for output in outputs]
        views = tuple(View(i, b, f) for i, b, f in zip(images, source.boxes, source.flips))
        return ViewBatch(views, self.config.num_large, source.image_size, source.index, source.label, source.unreadable)

    def _to_torch(self, tensor: Any) -> Tensor:
        """A copy: DALI uses its buffer again."""
        if not self._on_gpu():
            return torch.from_numpy(np.array(tensor))
        from nvidia.dali.plugin.pytorch import feed_ndarray  # type: ignore[attr-defined]

        result = torch.empty(tensor.shape(), dtype=torch.uint8, device=self.device)
        feed_ndarray(tensor, result, cuda_stream=torch.cuda.current_stream(self.device))
        return result

    def _release(self) -> None:
        stop_workers(self._loader)
        self._feed.start(())
        self._loader = self._pipeline = None
