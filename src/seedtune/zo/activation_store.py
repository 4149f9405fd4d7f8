"""Tensors by key: in memory up to a budget, beyond it in a temporary file, beyond that not at all.

The file has no name: it is gone when the process ends, however it ends. Does not decide what is kept.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from weakref import finalize

import torch

from ..errors import RunStoreError


@dataclass(eq=False)
class ActivationStore:
    """Keep tensors of one dtype.

    memory_bytes: budget in memory. on_disk: whether what exceeds it goes to a file. folder: where the file is made;
    None: the system's folder for temporary files.
    """

    memory_bytes: int
    on_disk: bool = True
    folder: Path | None = None
    bytes_in_memory: int = 0
    bytes_on_disk: int = 0
    _held: dict[bytes, torch.Tensor] = field(default_factory=dict, repr=False)
    _places: dict[bytes, tuple[int, torch.Size, torch.dtype]] = field(default_factory=dict, repr=False)
    _file: IO[bytes] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self._held) + len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held or key in self._places

    @property
    def has_room(self) -> bool:
        """Return that one more tensor would be kept, as far as is known."""
        return self.on_disk or self.bytes_in_memory < self.memory_bytes

    def get(self, key: bytes) -> torch.Tensor | None:
        """Return the tensor kept under `key`, on the CPU; None where there is none."""
        if key in self._held:
            return self._held[key]
        place = self._places.get(key)
        return None if place is None else self._read(*place)

    def put(self, key: bytes, value: torch.Tensor) -> None:
        """Keep a copy of `value` under a key that is not taken, if there is room for it.

        Raises:
            RunStoreError: the disk is full or cannot be written.
        """
        if key in self:
            return
        if self.bytes_in_memory + value.nbytes <= self.memory_bytes:
            self._held[key] = value.to("cpu", copy=True)
            self.bytes_in_memory += value.nbytes
        elif self.on_disk:
            self._write(key, value.cpu().contiguous())

    def _write(self, key: bytes, value: torch.Tensor) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  # closed with the store
                finalize(self, self._file.close)
            self._file.seek(self.bytes_on_disk)
            written = self._file.write(value.view(torch.uint8).numpy().data)
        except OSError as error:
            raise self._refused(error.strerror or str(error)) from None
        if written != value.nbytes:
            raise self._refused("the disk is full")
        self._places[key] = (self.bytes_on_disk, value.shape, value.dtype)
        self.bytes_on_disk += value.nbytes

    def _read(self, start: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        assert self._file is not None
        self._file.seek(start)
        value = torch.empty(shape, dtype=dtype)
        if self._file.readinto(value.view(torch.uint8).numpy().data) != value.nbytes:  # type: ignore[attr-defined]
            raise self._refused("what was written cannot be read back")
        return value

    def _refused(self, reason: str) -> RunStoreError:
        return RunStoreError(
            f"activations of frozen layers cannot be kept in {self.folder or tempfile.gettempdir()} after "
            f"{self.bytes_on_disk / 1e6:.0f} MB: {reason}: free some disk space, give more memory with "
            "--activation-memory, or pass --keep-activations memory, which computes the rest each time"
        )
