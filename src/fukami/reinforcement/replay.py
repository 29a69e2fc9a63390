"""Experience: the games that an agent plays, and the memory of what it saw, from which it learns."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fukami.errors import Error, UsageError
from fukami.reinforcement.vector_env import VectorEnv

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

SLACK_FRACTION = 0.05  # share of the memory beyond what is remembered, which a resumed run finds as it was
MIN_SLACK = 1024  # steps of it at least
MAX_GPU_FRACTION = 0.8  # share of what is free on a GPU that it may take
NUM_RECENT_EPISODES = 100  # episodes whose return is averaged


class TransitionBatch(NamedTuple):
    """Moments to learn from.

    Attributes:
        frames: ``(N, H + 1, ...)``: what was seen up to the moment and once after it, the oldest first.
        actions: ``(N,)``, taken then.
        rewards: ``(N,)``, which followed.
        going: ``(N,)``: 1 where the game went on, 0 where it was over.
        counted: ``(N,)``: 0 where what followed was not seen, since the game was cut off.
        epsilon: the share of actions that are taken by chance.
        returned: the mean return of the last episodes.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    going: Tensor
    counted: Tensor
    epsilon: Tensor
    returned: Tensor


class ReplayBuffer:
    """What was seen, done and given at each step of several games, each frame once, in a ring.

    It lies on the device if it is told to, and else in memory; with a folder it lies in files there as well, where a
    resumed run finds it: what is written after a checkpoint never takes the place of what that remembers, as long as
    there is a checkpoint every :attr:`slack` steps.

    Args:
        games: side by side.
        shape: of a frame, whose two sides are of a picture in bytes, or its length that of a vector of float32.
        steps: that are remembered, of each game.
    """

    def __init__(self, games: int, shape: tuple[int, ...], steps: int) -> None:
        kind = torch.uint8 if len(shape) == 2 else torch.float32
        self.games, self.steps = games, steps
        self.slack = max(MIN_SLACK, round(SLACK_FRACTION * steps))
        self.length = steps + self.slack
        self.forms: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "frames": ((self.length, games, *shape), kind),
            "first": ((self.length, games), torch.bool),  # whether an episode begins with the frame
            "actions": ((self.length, games), torch.uint8),
            "rewards": ((self.length, games), torch.float32),
            "ended": ((self.length, games), torch.bool),
            "cut": ((self.length, games), torch.bool),
        }
        self.device = torch.device("cpu")
        self.files: dict[str, Tensor] = {}
        self.parts: dict[str, Tensor] = {}
        self.now = -1  # the step whose frames are the last ones
        self.is_new = False  # whether the files were not there before

    @property
    def bytes(self) -> int:
        """What it takes."""
        return sum(torch.Size(shape).numel() * kind.itemsize for shape, kind in self.forms.values())

    def keep(self, folder: Path) -> None:
        """Lie in files of this folder.

        Raises:
            Error: there is no room for them, or one of them is a link.
        """
        self.folder, new = folder, []
        for name, (shape, kind) in self.forms.items():
            path = folder / f"{name}.bin"
            size = torch.Size(shape).numel()
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if not path.exists() or path.stat().st_size != size * kind.itemsize:
                    new.append(path)
                with path.open("ab") as file:
                    if hasattr(os, "posix_fallocate"):  # else there is none until it is written, if then
                        os.posix_fallocate(file.fileno(), 0, size * kind.itemsize)
                    file.truncate(size * kind.itemsize)
            except OSError as error:
                for made in new:
                    made.unlink(missing_ok=True)
                raise Error(
                    f"{path} cannot be made ({error.strerror}); the memory needs {self.bytes / 1e9:.1f} GB on the disk"
                ) from None
            self.files[name] = torch.from_file(str(path), shared=True, size=size, dtype=kind).view(shape)
        self.is_new = bool(new)

    @property
    def paths(self) -> list[Path]:
        """Where the files are."""
        return [self.folder / f"{name}.bin" for name in self.files]

    def forget(self) -> None:
        """Remove the files."""
        for path in self.paths:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def place(self, device: torch.device) -> None:
        """Lie on a device, besides the files."""
        self.device = device
        if device.type == "cpu" and self.files:
            self.parts = self.files
        else:
            self.parts = {
                name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in self.forms.items()
            }

    def see(self, frames: Tensor, first: Tensor) -> None:
        """Go on by a step: what there is to see of each game, and in which ones an episode begins with it."""
        self.now += 1
        self.write(self.now, frames=frames, first=first)

    def write(self, step: int, **values: Tensor) -> None:
        """Remember what belongs to a step."""
        slot = step % self.length
        for name, value in values.items():
            self.parts[name][slot].copy_(value, non_blocking=True)
            if self.parts is not self.files and self.files:
                self.files[name][slot].copy_(value)

    def recall(self) -> None:
        """Fetch what the files hold, after they were found again."""
        if self.files and self.parts is not self.files:
            for name, part in self.parts.items():
                part.copy_(self.files[name])

    def stack(self, steps: Tensor, games: Tensor, count: int, after: int = 0) -> Tensor:
        """What was seen in ``count`` steps up to each of ``steps`` ``(N,)``, and after it: ``(N, count + after, ...)``.

        Before the episode's beginning there is its first frame again.
        """
        ages = torch.arange(1 - count, 1 + after, device=self.device)
        early = (steps.unsqueeze(1) + ages[:count]) % self.length
        first = self.parts["first"][early, games.unsqueeze(1)]
        begun = ages[:count].where(first, 1 - count).amax(1, keepdim=True)
        slots = (steps.unsqueeze(1) + ages.maximum(begun)) % self.length
        rows = slots * self.games + games.unsqueeze(1)
        frames = self.parts["frames"].flatten(0, 1).index_select(0, rows.flatten())  # each a copy of one piece
        return frames.view(*rows.shape, *frames.shape[1:])

    def sample(self, count: int) -> Tensor:
        """So many of the frames that are remembered, at even distances, ``(M, ...)``."""
        seen = min(self.now + 1, self.length) * self.games
        rows = torch.linspace(0, seen - 1, min(count, seen), device=self.device).long()
        return self.parts["frames"].flatten(0, 1).index_select(0, rows)

    def oldest(self) -> int:
        """The first step that is remembered."""
        return max(0, self.now - self.steps + 1)


class ExperienceCollector:
    """Rounds of play, in each of which every game goes on by a step, and moments of the past to learn from.

    What is drawn by chance depends on the seed and on how far it is alone, so a resumed run goes on as it would have;
    the games themselves are begun again with their seeds, and played to where they were.

    Args:
        games: side by side.
        batch: moments that are learned from together.
        history: frames of a state.
        steps: that are remembered, of all games together.
        begin: steps that are played by chance before anything is learned.
        every: steps between two updates.
        explore: steps in which the share of actions that are taken by chance falls to ``least``.
        seed: decides every choice.
    """

    def __init__(
        self,
        games: VectorEnv,
        *,
        batch: int,
        history: int,
        steps: int,
        begin: int,
        every: int,
        explore: int,
        least: float,
        seed: int,
    ) -> None:
        self.games, self.batch, self.history, self.seed = games, batch, history, seed
        self.begin, self.every, self.explore, self.least = begin, every, explore, least
        self.memory = ReplayBuffer(games.count, games.shape, -(-steps // games.count))
        self.device = self.memory.device
        self.rounds = self.updates = 0
        self.saved = 0  # the step of the last checkpoint
        self.lost = False  # whether a resumed run did not find its memory
        self.episodes = np.zeros(games.count, np.int64)  # which one each game is in
        self.taken: list[list[int]] = [[] for _ in range(games.count)]  # actions of that episode
        self.gained = np.zeros(games.count)  # rewards of that episode
        self.returns: list[float] = []

    def keep(self, folder: Path) -> None:
        """Remember in files of the run's folder."""
        self.memory.keep(folder / "memory")

    def forget(self) -> None:
        """Give the files back; nothing more is learned."""
        self.memory.forget()

    def place(self, runtime: "Runtime") -> None:
        """Remember on the device, where there is room; what is learned from lies there in any case.

        Raises:
            UsageError: there are several processes.
        """
        if runtime.world > 1:
            raise UsageError(f"one process plays and learns, not {runtime.world}; start one, with more --games")
        self.device = device = runtime.device
        if device.type == "cuda" and self.memory.bytes > MAX_GPU_FRACTION * torch.cuda.mem_get_info(device)[0]:
            device = torch.device("cpu")
        self.memory.place(device)

    @property
    def due(self) -> int:
        """Rounds of play that are due before the next update, so that there are ``every`` steps for each."""
        count = self.games.count
        return (self.begin + self.updates * self.every - self.rounds * count + count - 1) // count

    @property
    def epsilon(self) -> float:
        """The share of actions that are taken by chance."""
        played = self.rounds * self.games.count - self.begin
        return 1.0 + (self.least - 1.0) * min(max(played / max(self.explore, 1), 0.0), 1.0)

    @property
    def pace(self) -> tuple[int, str]:
        """What is seen for an update."""
        return self.every, "steps"

    @property
    def pressing(self) -> bool:
        """Whether a checkpoint is due before more is written over what the last one on the disk remembers.

        That may be the last but one, while the last is written; it is written when the next one begins. So from one
        that is on the disk to the end of the next there are two thirds of the slack, and some steps.
        """
        return self.memory.now - self.saved > self.memory.slack // 3

    @property
    def files(self) -> list[Path]:
        """What has to be on the disk before a checkpoint that refers to it."""
        return self.memory.paths

    def name(self, number: int) -> str:
        """Where training step ``number`` is, in words."""
        return f"moments from {self.rounds * self.games.count:,} steps of play (update {number + 1})"

    def play(self, choose: Callable[[Tensor], Tensor]) -> None:
        """A round: see what has become of the last actions, and take the next, by chance or as ``choose`` says.

        ``choose`` is given states ``(G, H, ...)`` and tells an action of each.
        """
        count = self.games.count
        if self.rounds == 0:
            seen = self.games.reset(np.ones(count, bool), self._seeds())
            begun = np.ones(count, bool)
        else:
            seen = self.games.receive()
            begun = seen.ended | seen.cut
            self.memory.write(
                self.memory.now,
                rewards=torch.from_numpy(seen.rewards),
                ended=torch.from_numpy(seen.ended | seen.lost),
                cut=torch.from_numpy(seen.cut),
            )
            self.gained += seen.rewards
            for game in np.flatnonzero(begun):
                self.returns = [*self.returns, float(self.gained[game])][-NUM_RECENT_EPISODES:]
                self.gained[game], self.taken[game] = 0.0, []
            if begun.any():
                self.episodes += begun
                seen = self.games.reset(begun, self._seeds())
        self.memory.see(torch.from_numpy(np.ascontiguousarray(seen.frames)), torch.from_numpy(begun))
        chance = np.random.default_rng([self.seed, 1, self.rounds])
        actions = chance.integers(len(self.games.actions), size=count)
        guided = chance.random(count) >= self.epsilon
        if guided.any():
            actions = np.where(guided, choose(self.state()).cpu().numpy(), actions)
        self.memory.write(self.memory.now, actions=torch.from_numpy(actions.astype(np.uint8)))
        for own, action in zip(self.taken, actions.tolist(), strict=True):
            own.append(action)
        self.games.send(actions)
        self.rounds += 1

    def state(self) -> Tensor:
        """What there is to see of each game now, ``(G, H, ...)``."""
        games = torch.arange(self.games.count, device=self.memory.device)
        return self.memory.stack(torch.full_like(games, self.memory.now), games, self.history)

    def lesson(self) -> TransitionBatch:
        """Moments of the past, drawn evenly.

        Raises:
            Error: the files in which they are remembered were not there when the run was resumed.
        """
        memory = self.memory
        if self.lost:
            raise Error(
                f"{memory.folder} is not what the run left, so it cannot go on; begin it again in another --out"
            )
        chance = np.random.default_rng([self.seed, 2, self.updates])
        oldest = memory.oldest() + self.history - 1
        drawn = chance.integers(oldest, memory.now, size=self.batch), chance.integers(memory.games, size=self.batch)
        steps, games = (torch.from_numpy(each).to(memory.device) for each in drawn)
        slots = steps % memory.length
        actions, rewards, ended, cut = (
            memory.parts[name][slots, games] for name in ("actions", "rewards", "ended", "cut")
        )
        recent = sum(self.returns) / len(self.returns) if self.returns else 0.0
        facts = torch.tensor([self.epsilon, recent], device=memory.device)
        frames = memory.stack(steps, games, self.history, after=1)
        found = TransitionBatch(frames, actions.long(), rewards, 1 - ended.float(), 1 - cut.float(), facts[0], facts[1])
        return TransitionBatch(*(each.to(self.device) for each in found))

    def _seeds(self) -> npt.NDArray[np.int64]:
        """That of the episode that each game is in."""
        return np.array(
            [np.random.SeedSequence([self.seed, game, int(number)]).generate_state(1)[0] >> 1
             for game, number in enumerate(self.episodes)], np.int64,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """How far it is; what is remembered lies in the files."""
        self.saved = self.memory.now
        return {
            "rounds": self.rounds,
            "updates": self.updates,
            "now": self.memory.now,
            "episodes": torch.from_numpy(self.episodes.copy()),
            "taken": [torch.tensor(each, dtype=torch.uint8) for each in self.taken],
            "gained": torch.from_numpy(self.gained.copy()),
            "returns": list(self.returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: each game is begun with the seed of its episode and played to where it was."""
        self.rounds, self.updates = state["rounds"], state["updates"]
        self.memory.now = self.saved = state["now"]
        self.episodes, self.gained = state["episodes"].cpu().numpy(), state["gained"].cpu().numpy()
        self.taken = [each.tolist() for each in state["taken"]]
        self.returns = state["returns"]
        self.lost = self.memory.is_new
        self.memory.recall()
        if self.rounds:
            longest = max(map(len, self.taken))
            waits = np.array([longest - len(each) for each in self.taken])  # so that all arrive together
            seeds = self._seeds()
            self.games.reset(np.ones(self.games.count, bool), seeds)
            for number in range(longest):
                self.games.reset(waits == number, seeds)
                actions = [
                    each[number - wait] if number >= wait else 0 for each, wait in zip(self.taken, waits, strict=True)
                ]
                self.games.send(np.array(actions))
                if number < longest - 1:  # what becomes of the last ones is seen when it goes on
                    self.games.receive()
