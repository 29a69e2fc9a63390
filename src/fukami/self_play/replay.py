"""Replay window of positions with the targets of their searches."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.engine.buffer_files import BufferFiles
from fukami.errors import Error
from fukami.self_play.game import Game, States

RESERVE_FRACTION = 0.1  # slots, as a fraction of the largest window, that keep what the last checkpoint needs
MIN_RESERVE = 8192  # minimum number of these slots
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, near 2**64 over the golden ratio (Knuth, volume 3, section 6.4)
MAX_DUPLICATES = 8  # largest weight of the earlier targets of a position in their mean


class Positions(NamedTuple):
    """Positions with the targets of the network, from the point of view of the side to move.

    Attributes:
        states: ``(N, S)``.
        policies: improved policies, ``(N, A)``.
        values: values, -1..1, ``(N,)``.
        scores: final scores in points, ``(N,)``; empty for a game without scores.
        owners: final owners of the cells, ``(N, H·W)``; empty for a game without scores.
    """

    states: States
    policies: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    owners: npt.NDArray[np.float32]


class ReplayWindow:
    """Ring buffer of the last positions, in which the policies and values of equal positions are averaged.

    Positions that a symmetry maps to each other are equal. Each has one slot, the latest, with the mean policy and
    value, and the latest score and owners; the earlier slots are not sampled. With :meth:`open_files`, the slots are
    files, for resumed runs: a slot is written once, and slots beyond the window keep what the last checkpoint needs
    until the next one.

    Args:
        game: the rules.
        max_size: largest size of the window in positions.
        num_games: number of parallel games, whose positions may all be added between two checkpoints.
    """

    def __init__(self, game: Game, max_size: int, num_games: int = 1) -> None:
        self.game, self.max_size, self.symmetries = game, max_size, game.symmetries()
        game_length = game.shape[0] * game.shape[1]  # approximately
        self.num_reserve = max(MIN_RESERVE, round(RESERVE_FRACTION * max_size), num_games * game_length)
        self.num_slots = max_size + self.num_reserve
        state_size, num_cells = len(game.build_initial_state()), game.shape[0] * game.shape[1]
        index_type: type[np.generic] = np.uint8 if len(self.symmetries.cells) <= 256 else np.uint16
        self.specs: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "states": ((self.num_slots, state_size), np.uint8),
            "hashes": ((self.num_slots,), np.uint64),
            "orientations": ((self.num_slots,), index_type),  # symmetry that maps a state to the canonical orientation
            "counts": ((self.num_slots,), np.float32),  # equal positions whose targets are averaged
            "policies": ((self.num_slots, game.num_moves), np.float32),  # in the canonical orientation, like owners
            "values": ((self.num_slots,), np.float32),
            "total": ((1,), np.int64),  # positions that were written, also after the last checkpoint
        }
        if game.has_score:
            self.specs |= {
                "scores": ((self.num_slots,), np.float32),
                "owners": ((self.num_slots, num_cells), np.int8),
            }
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.files: BufferFiles | None = None
        self.total = self.start = 0  # positions so far, and the first one in the window
        self.is_current = np.zeros(self.num_slots, bool)  # whether no later slot has the same position
        self.latest: dict[int, int] = {}  # index of the latest position in the window of each hash
        self._hash_weights = self._build_hash_weights()

    def open_files(self, folder: Path) -> None:
        """Open or create the files in this folder.

        Raises:
            Error: a file cannot be created, or the disk is full.
        """
        sizes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (shape, dtype) in self.specs.items()}
        self.files = BufferFiles(folder, sizes, "--window-fraction")
        for name, (shape, dtype) in self.specs.items():
            self.arrays[name] = np.memmap(self.files.paths[name], dtype, "r+", shape=shape)

    def allocate(self) -> None:
        """Allocate the slots in memory, unless files contain them."""
        if not self.arrays:
            self.arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.specs.items()}

    def delete_files(self) -> None:
        """Delete the files and their folder."""
        self.arrays = {}
        if self.files is not None:
            self.files.delete()

    def add(self, positions: Positions, window_size: int) -> None:
        """Add positions, and let the window be the last ``window_size``, at most ``max_size``."""
        if len(positions.states) == 0:  # no move of the game had a full search
            return
        hashes, orientations = self.canonicalize(positions.states)
        moves, cells = self.symmetries.moves[orientations], self.symmetries.cells[orientations]
        policies = np.take_along_axis(positions.policies, moves, 1)
        owners = np.take_along_axis(positions.owners, cells, 1) if self.game.has_score else positions.owners
        arrays = self.arrays
        arrays["total"][0] = self.total + len(hashes)
        for row, key in enumerate(hashes.tolist()):
            slot, previous = self.total % self.num_slots, self.latest.get(key)
            values = {"policies": policies[row], "values": positions.values[row], "counts": np.float32(1)}
            if self.game.has_score:
                values |= {"scores": positions.scores[row], "owners": owners[row]}
            if previous is not None:
                old = previous % self.num_slots
                self.is_current[old] = False
                count = min(arrays["counts"][old], MAX_DUPLICATES)
                for name in ("policies", "values"):
                    values[name] = (count * arrays[name][old] + values[name]) / (count + 1)
                values["counts"] = count + 1
            arrays["states"][slot], arrays["hashes"][slot] = positions.states[row], hashes[row]
            arrays["orientations"][slot] = orientations[row]
            for name, value in values.items():
                arrays[name][slot] = value
            self.is_current[slot] = True
            self.latest[key] = self.total
            self.total += 1
        self._move_start(max(self.start, self.total - min(window_size, self.max_size)))

    def _move_start(self, start: int) -> None:
        """Remove the positions before ``start`` from the window."""
        for index in range(self.start, start):
            key = int(self.arrays["hashes"][index % self.num_slots])
            if self.latest.get(key) == index:
                del self.latest[key]
        self.start = start

    def restore(self, total: int, start: int) -> None:
        """Restore the window of a checkpoint from the files.

        Raises:
            Error: a number is invalid, or positions after the checkpoint have overwritten those that it needs.
        """
        if not 0 <= start <= total <= start + self.max_size:
            raise Error(f"the checkpoint contains an invalid replay window, positions {start} to {total}")
        if self.files is not None:
            self.files.was_resumed = True
            if not self.files.were_created and not total <= self.arrays["total"][0] <= start + self.num_slots:
                raise Error(
                    f"{self.files.folder} does not contain the positions of the last checkpoint, so the run cannot be "
                    "resumed; start a new one in another --out"
                )
        self.total, self.start = total, start
        indices = range(start, total)
        self.latest = {int(self.arrays["hashes"][index % self.num_slots]): index for index in indices}
        self.is_current[:] = False
        self.is_current[[index % self.num_slots for index in self.latest.values()]] = True

    def sample(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Sample slots ``(count,)`` of different positions of the window uniformly, with replacement.

        Raises:
            Error: the files were missing when the run was resumed.
        """
        if self.files is not None:
            self.files.check_content()
        slots = np.zeros(0, np.int64)
        while len(slots) < count:
            candidates = rng.integers(self.start, self.total, 2 * count) % self.num_slots
            slots = np.concatenate([slots, candidates[self.is_current[candidates]]])
        return slots[:count]

    def load(self, slots: npt.NDArray[np.int64], orientations: npt.NDArray[np.int64]) -> tuple[Any, Positions]:
        """Return the planes ``(N, C, H, W)`` and the targets of slots, transformed by a symmetry each."""
        arrays, (cells, moves) = self.arrays, self.symmetries
        states, own = arrays["states"][slots], arrays["orientations"][slots]
        self.game.check_states(states)
        planes = self.game.planes(states)
        flat = planes.reshape(*planes.shape[:2], -1)
        indices = np.take_along_axis(cells[own], cells[orientations], 1)
        planes = np.take_along_axis(flat, indices[:, None], 2).reshape(planes.shape)
        policies = np.take_along_axis(arrays["policies"][slots], moves[orientations], 1)
        scores, owners = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
        if self.game.has_score:
            scores = arrays["scores"][slots]
            owners = np.take_along_axis(arrays["owners"][slots].astype(np.float32), cells[orientations], 1)
        return planes, Positions(states, policies, arrays["values"][slots], scores, owners)

    def canonicalize(self, states: States) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """Return a hash of each position that its symmetric positions share, and the symmetry to their orientation."""
        planes = self.game.planes(states)
        bits = planes.reshape(len(states), -1).astype(np.float32).view(np.uint32).astype(np.uint64)
        words = bits * HASH_FACTOR >> np.uint64(32)
        hashes = words @ self._hash_weights  # (N, K)
        hashes ^= hashes >> np.uint64(29)
        orientations = hashes.argmin(1)
        return hashes.min(1), orientations

    def _build_hash_weights(self) -> npt.NDArray[np.uint64]:
        """Build random weights ``(C·H·W, K)`` of the planes for the hash of a position in each orientation."""
        num_cells = self.symmetries.cells.shape[1]
        rng = np.random.default_rng(0)
        weights = rng.integers(1, 2**63, (self.game.num_planes, num_cells), np.uint64) | np.uint64(1)
        columns = []
        for cells in self.symmetries.cells:
            column = np.empty_like(weights)
            column[:, cells] = weights  # the transformed plane has at i what the plane has at cells[i]
            columns.append(column.ravel())
        return np.stack(columns, 1)
