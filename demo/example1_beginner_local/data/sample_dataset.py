"""Two real data sets of handwritten digits, read from local files, no download.

* ``digits`` ships inside scikit-learn: 1,797 images of 8 x 8 pixels (UCI ML
  repository, "Optical Recognition of Handwritten Digits"). It has one part, so the
  split is made here: the same images on every machine, each digit in equal share.
* ``mnist`` is read from its own four IDX files, in a folder that the user names:
  70,000 images of 28 x 28 pixels.

An IDX file is a magic number (two zero bytes, a type code, the number of
dimensions), one big-endian 32-bit size per dimension, then the values. The files may
come from anywhere, so nothing in a header is believed, and no memory is taken for it,
before the length of the file has borne it out.

Source of the format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

__all__ = ["NUM_CLASSES", "SPLITS", "DatasetError", "Images", "load_split", "read_idx"]

NUM_CLASSES = 10
SPLITS = {"digits": ("train", "validation"), "mnist": ("train", "test")}
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTE = 0x08
MAX_IDX_BYTES = 1 << 30  # MNIST's largest file holds 47 MB
MAX_DEFLATE_RATIO = 1032  # zlib's own documentation: no stream expands further
CHUNK_BYTES = 1 << 20


class DatasetError(Exception):
    """The data asked for is unknown, missing or damaged; the text is for users."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images and what they show.

    Attributes:
        pixels: Brightness from 0 to 1, float32, shape ``(num_images, num_pixels)``.
        labels: The digit in each image, 0 to 9, int64, shape ``(num_images,)``.
    """

    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def load_split(dataset: str, split: str, root: Path | None = None) -> Images:
    """Load one part of a data set.

    Args:
        dataset: ``digits`` or ``mnist``.
        split: ``train`` or ``validation`` of digits, ``train`` or ``test`` of MNIST.
        root: The folder that holds MNIST's files; digits needs none.

    Raises:
        DatasetError: If there is no such data set or split, or its files are missing
            or damaged.
    """
    if dataset not in SPLITS:
        message = f"unknown data set {dataset!r}: choose {' or '.join(SPLITS)}"
        raise DatasetError(message)
    if split not in SPLITS[dataset]:
        choices = " or ".join(SPLITS[dataset])
        message = f"{dataset} has no split {split!r}: choose {choices}"
        raise DatasetError(message)
    return _load_digits(split) if dataset == "digits" else _load_mnist(split, root)


def _load_digits(split: str, *, val_fraction: float = 0.2, seed: int = 0) -> Images:
    """Load 1,437 training or 360 validation images; *seed* chooses which."""
    # scikit-learn takes seconds to load, and MNIST does without it.
    from sklearn.datasets import load_digits  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    pixels, labels = load_digits(return_X_y=True)
    train, validation = train_test_split(
        np.arange(len(labels)),
        test_size=val_fraction,
        stratify=labels,
        random_state=seed,
    )
    rows = train if split == "train" else validation
    return Images(
        pixels=(pixels[rows] / 16).astype(np.float32),
        labels=np.asarray(labels[rows], dtype=np.int64),
    )


def _load_mnist(split: str, root: Path | None) -> Images:
    images_path, labels_path = (_find(root, name) for name in MNIST_FILES[split])
    images, labels = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
    if len(images) != len(labels):
        message = (
            f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} "
            f"labels: they do not belong together"
        )
        raise DatasetError(message)
    if labels.max() >= NUM_CLASSES:
        where = int(labels.argmax())
        message = f"{labels_path}: label {where} is {labels[where]}, not a digit"
        raise DatasetError(message)
    return Images(
        pixels=images.reshape(len(images), -1).astype(np.float32) / np.float32(255),
        labels=labels.astype(np.int64),
    )


def _find(root: Path | None, name: str) -> Path:
    """Return the file *name*, gzipped or not, or say which files belong where."""
    if root is not None:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    names = [name for pair in MNIST_FILES.values() for name in pair]
    lines = [
        f"the folder {root} (data.root) holds no file {name} or {name}.gz"
        if root is not None
        else "data.root must name the folder that holds MNIST's files",
        "Put these four files there, as they are or ending in .gz:",
        *(f"  {name}" for name in names),
        "or say where you have them: data.root=FOLDER",
    ]
    raise DatasetError("\n".join(lines))


def read_idx(path: Path, *, ndim: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Args:
        path: A regular file.
        ndim: The number of dimensions it must have: 3 for images, 1 for labels.

    Returns:
        The values, in the shape that the file states; no dimension is 0.

    Raises:
        DatasetError: If the file cannot be read or is not exactly such an IDX file.
    """
    try:
        with path.open("rb") as file:
            size_bytes = path.stat().st_size
            if path.suffix != ".gz":
                return _parse_idx(file, path, ndim, limit_bytes=size_bytes)
            limit_bytes = size_bytes * MAX_DEFLATE_RATIO
            # GzipFile reads like any binary file; typeshed does not say so.
            with gzip.GzipFile(fileobj=file) as unzipped:
                stream = cast("BinaryIO", unzipped)
                return _parse_idx(stream, path, ndim, limit_bytes=limit_bytes)
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path} cannot be read: {error}"
        raise DatasetError(message) from error


def _parse_idx(
    file: BinaryIO, path: Path, ndim: int, *, limit_bytes: int
) -> npt.NDArray[np.uint8]:
    """Parse *file*, which can hold at most *limit_bytes*."""
    header = file.read(4 + 4 * ndim)
    expected = bytes((0, 0, UNSIGNED_BYTE, ndim))
    if header[:4] != expected:
        message = (
            f"{path} is not an IDX file of unsigned bytes in {ndim} dimension(s): "
            f"it begins with {header[:4].hex()}, not {expected.hex()}"
        )
        raise DatasetError(message)
    if len(header) < 4 + 4 * ndim:
        message = f"{path} ends inside its header"
        raise DatasetError(message)
    shape = struct.unpack_from(f">{ndim}I", header, 4)
    num_values = math.prod(shape)
    stated = f"{path} says that it holds {' x '.join(map(str, shape))} values"
    if num_values == 0:
        message = f"{stated}: it is empty"
        raise DatasetError(message)
    if num_values > min(limit_bytes, MAX_IDX_BYTES):
        message = f"{stated}: more than a file of its size can, or than 1 GiB"
        raise DatasetError(message)
    values = bytearray()
    while len(values) <= num_values:  # one byte more than stated is one too many
        chunk = file.read(min(CHUNK_BYTES, num_values + 1 - len(values)))
        if not chunk:
            break
        values += chunk
    if len(values) != num_values:
        problem = "shorter" if len(values) < num_values else "longer"
        message = f"{stated}, and is {problem} than that"
        raise DatasetError(message)
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
