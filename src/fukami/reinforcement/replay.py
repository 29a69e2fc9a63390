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
        not_terminated: ``(N,)``: 1 where the game went on, 0 where it was over.
        not_truncated: ``(N,)``: 0 where what followed was not seen, since the game was cut off.
        epsilon: the share of actions that are taken by chance.
        mean_return: the mean return of the last episodes.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    not_terminated: Tensor
    not_truncated: Tensor
    epsilon: Tensor
    mean_return: Tensor


class ReplayBuffer:
    """What was seen, done and given at each step of several games, each frame once, in a ring.

    It lies on the device if it is told to, and else in memory; with a folder it lies in files there as well, where a
    resumed run finds it: what is written after a checkpoint never takes the place of what that remembers, as long as
    there is a checkpoint every :attr:`slack` steps.

    Args:
        num_envs: side by side.
        frame_shape: of a frame, whose two sides are of an image in bytes, or its length that of a vector of float32.
        capacity: that are remembered, of each game.
    """

    def __init__(self, num_envs: int, frame_shape: tuple[int, ...], capacity: int) -> None:
        kind = torch.uint8 if len(frame_shape) == 2 else torch.float32
        self.num_envs, self.capacity = num_envs, capacity
        self.slack = max(MIN_SLACK, round(SLACK_FRACTION * capacity))
        self.num_slots = capacity + self.slack
        self.specs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "frames": ((self.num_slots, num_envs, *frame_shape), kind),
            "first": ((self.num_slots, num_envs), torch.bool),  # whether an episode begins with the frame
            "actions": ((self.num_slots, num_envs), torch.uint8),
            "rewards": ((self.num_slots, num_envs), torch.float32),
            "ended": ((self.num_slots, num_envs), torch.bool),
            "cut": ((self.num_slots, num_envs), torch.bool),
        }
        self.device = torch.device("cpu")
        self.file_tensors: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        self.current_step = -1  # the step whose frames are the last ones
        self.is_new = False  # whether the files were not there before

    @property
    def num_bytes(self) -> int:
        """What it takes."""
        return sum(torch.Size(shape).numel() * kind.itemsize for shape, kind in self.specs.values())

    def open_files(self, folder: Path) -> None:
        """Lie in files of this folder.

        Raises:
            Error: there is no room for them, or one of them is a link.
        """
        self.folder, new = folder, []
        for name, (shape, kind) in self.specs.items():
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
                    f"{path} cannot be made ({error.strerror}); the memory needs {self.num_bytes / 1e9:.1f} GB on the "
                    "disk"
                ) from None
            self.file_tensors[name] = torch.from_file(str(path), shared=True, size=size, dtype=kind).view(shape)
        self.is_new = bool(new)

    @property
    def paths(self) -> list[Path]:
        """Where the files are."""
        return [self.folder / f"{name}.bin" for name in self.file_tensors]

    def delete_files(self) -> None:
        """Remove the files."""
        for path in self.paths:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def allocate(self, device: torch.device) -> None:
        """Lie on a device, besides the files."""
        self.device = device
        if device.type == "cpu" and self.file_tensors:
            self.tensors = self.file_tensors
        else:
            self.tensors = {
                name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in self.specs.items()
            }

    def add(self, frames: Tensor, episode_starts: Tensor) -> None:
        """Go on by a step: what there is to see of each game, and in which ones an episode begins with it."""
        self.current_step += 1
        self.write(self.current_step, frames=frames, first=episode_starts)

    def write(self, step: int, **values: Tensor) -> None:
        """Remember what belongs to a step."""
        slot = step % self.num_slots
        for name, value in values.items():
            self.tensors[name][slot].copy_(value, non_blocking=True)
            if self.tensors is not self.file_tensors and self.file_tensors:
                self.file_tensors[name][slot].copy_(value)

    def restore(self) -> None:
        """Fetch what the files hold, after they were found again."""
        if self.file_tensors and self.tensors is not self.file_tensors:
            for name, part in self.tensors.items():
                part.copy_(self.file_tensors[name])

    def stack_frames(self, steps: Tensor, env_indices: Tensor, num_frames: int, num_next_frames: int = 0) -> Tensor:
        """What was seen in ``num_frames`` steps up to each of ``steps`` ``(N,)``, and after it: ``(N, frames, ...)``.

        Before the episode's beginning there is its first frame again.
        """
        ages = torch.arange(1 - num_frames, 1 + num_next_frames, device=self.device)
        early = (steps.unsqueeze(1) + ages[:num_frames]) % self.num_slots
        first = self.tensors["first"][early, env_indices.unsqueeze(1)]
        begun = ages[:num_frames].where(first, 1 - num_frames).amax(1, keepdim=True)
        slots = (steps.unsqueeze(1) + ages.maximum(begun)) % self.num_slots
        rows = slots * self.num_envs + env_indices.unsqueeze(1)
        frames = self.tensors["frames"].flatten(0, 1).index_select(0, rows.flatten())  # each a copy of one piece
        return frames.view(*rows.shape, *frames.shape[1:])

    def sample_frames(self, count: int) -> Tensor:
        """So many of the frames that are remembered, at even distances, ``(M, ...)``."""
        seen = min(self.current_step + 1, self.num_slots) * self.num_envs
        rows = torch.linspace(0, seen - 1, min(count, seen), device=self.device).long()
        return self.tensors["frames"].flatten(0, 1).index_select(0, rows)

    def find_oldest_step(self) -> int:
        """The first step that is remembered."""
        return max(0, self.current_step - self.capacity + 1)


class ExperienceCollector:
    """Rounds of play, in each of which every game goes on by a step, and moments of the past to learn from.

    What is drawn by chance depends on the seed and on how far it is alone, so a resumed run goes on as it would have;
    the games themselves are begun again with their seeds, and played to where they were.

    Args:
        envs: side by side.
        batch_size: moments that are learned from together.
        frame_stack: frames of a state.
        buffer_size: that are remembered, of all games together.
        learning_starts: steps that are played by chance before anything is learned.
        train_frequency: steps between two updates.
        exploration_steps: steps in which the share of actions that are taken by chance falls to ``epsilon_end``.
        seed: decides every choice.
    """

    def __init__(
        self,
        envs: VectorEnv,
        *,
        batch_size: int,
        frame_stack: int,
        buffer_size: int,
        learning_starts: int,
        train_frequency: int,
        exploration_steps: int,
        epsilon_end: float,
        seed: int,
    ) -> None:
        self.envs, self.batch_size, self.frame_stack, self.seed = envs, batch_size, frame_stack, seed
        self.learning_starts, self.train_frequency, self.exploration_steps, self.epsilon_end = (
            learning_starts,
            train_frequency,
            exploration_steps,
            epsilon_end,
        )
        self.buffer = ReplayBuffer(envs.num_envs, envs.frame_shape, -(-buffer_size // envs.num_envs))
        self.device = self.buffer.device
        self.num_vector_steps = self.num_updates = 0
        self.checkpoint_step = 0  # the step of the last checkpoint
        self.is_buffer_missing = False  # whether a resumed run did not find its memory
        self.episode_numbers = np.zeros(envs.num_envs, np.int64)  # which one each game is in
        self.episode_actions: list[list[int]] = [[] for _ in range(envs.num_envs)]  # actions of that episode
        self.episode_returns = np.zeros(envs.num_envs)  # rewards of that episode
        self.recent_returns: list[float] = []

    def open_files(self, folder: Path) -> None:
        """Remember in files of the run's folder."""
        self.buffer.open_files(folder / "memory")

    def delete_files(self) -> None:
        """Give the files back; nothing more is learned."""
        self.buffer.delete_files()

    def setup(self, runtime: "Runtime") -> None:
        """Remember on the device, where there is room; what is learned from lies there in any case.

        Raises:
            UsageError: there are several processes.
        """
        if runtime.world_size > 1:
            raise UsageError(f"one process plays and learns, not {runtime.world_size}; start one, with more --num-envs")
        self.device = device = runtime.device
        if device.type == "cuda" and self.buffer.num_bytes > MAX_GPU_FRACTION * torch.cuda.mem_get_info(device)[0]:
            device = torch.device("cpu")
        self.buffer.allocate(device)

    @property
    def steps_until_update(self) -> int:
        """Rounds of play that are due before the next update, so that there are ``every`` steps for each."""
        count = self.envs.num_envs
        return (
            self.learning_starts + self.num_updates * self.train_frequency - self.num_vector_steps * count + count - 1
        ) // count

    @property
    def epsilon(self) -> float:
        """The share of actions that are taken by chance."""
        played = self.num_vector_steps * self.envs.num_envs - self.learning_starts
        return 1.0 + (self.epsilon_end - 1.0) * min(max(played / max(self.exploration_steps, 1), 0.0), 1.0)

    @property
    def items_per_step(self) -> tuple[int, str]:
        """What is seen for an update."""
        return self.train_frequency, "steps"

    @property
    def needs_checkpoint(self) -> bool:
        """Whether a checkpoint is due before more is written over what the last one on the disk remembers.

        That may be the last but one, while the last is written; it is written when the next one begins. So from one
        that is on the disk to the end of the next there are two thirds of the slack, and some steps.
        """
        return self.buffer.current_step - self.checkpoint_step > self.buffer.slack // 3

    @property
    def checkpoint_files(self) -> list[Path]:
        """What has to be on the disk before a checkpoint that refers to it."""
        return self.buffer.paths

    def describe_batch(self, step: int) -> str:
        """Where training step ``step`` is, in words."""
        return f"moments from {self.num_vector_steps * self.envs.num_envs:,} steps of play (update {step + 1})"

    def collect(self, policy: Callable[[Tensor], Tensor]) -> None:
        """A round: see what has become of the last actions, and take the next, by chance or as ``policy`` says.

        ``policy`` is given states ``(G, H, ...)`` and tells an action of each.
        """
        count = self.envs.num_envs
        if self.num_vector_steps == 0:
            seen = self.envs.reset(np.ones(count, bool), self._compute_seeds())
            begun = np.ones(count, bool)
        else:
            seen = self.envs.receive()
            begun = seen.terminated | seen.truncated
            self.buffer.write(
                self.buffer.current_step,
                rewards=torch.from_numpy(seen.rewards),
                ended=torch.from_numpy(seen.terminated | seen.life_lost),
                cut=torch.from_numpy(seen.truncated),
            )
            self.episode_returns += seen.rewards
            for game in np.flatnonzero(begun):
                self.recent_returns = [*self.recent_returns, float(self.episode_returns[game])][-NUM_RECENT_EPISODES:]
                self.episode_returns[game], self.episode_actions[game] = 0.0, []
            if begun.any():
                self.episode_numbers += begun
                seen = self.envs.reset(begun, self._compute_seeds())
        self.buffer.add(torch.from_numpy(np.ascontiguousarray(seen.frames)), torch.from_numpy(begun))
        chance = np.random.default_rng([self.seed, 1, self.num_vector_steps])
        actions = chance.integers(len(self.envs.action_names), size=count)
        guided = chance.random(count) >= self.epsilon
        if guided.any():
            actions = np.where(guided, policy(self.get_states()).cpu().numpy(), actions)
        self.buffer.write(self.buffer.current_step, actions=torch.from_numpy(actions.astype(np.uint8)))
        for own, action in zip(self.episode_actions, actions.tolist(), strict=True):
            own.append(action)
        self.envs.send(actions)
        self.num_vector_steps += 1

    def get_states(self) -> Tensor:
        """What there is to see of each game now, ``(G, H, ...)``."""
        games = torch.arange(self.envs.num_envs, device=self.buffer.device)
        return self.buffer.stack_frames(torch.full_like(games, self.buffer.current_step), games, self.frame_stack)

    def sample_batch(self) -> TransitionBatch:
        """Moments of the past, drawn evenly.

        Raises:
            Error: the files in which they are remembered were not there when the run was resumed.
        """
        memory = self.buffer
        if self.is_buffer_missing:
            raise Error(
                f"{memory.folder} is not what the run left, so it cannot go on; begin it again in another --out"
            )
        chance = np.random.default_rng([self.seed, 2, self.num_updates])
        oldest = memory.find_oldest_step() + self.frame_stack - 1
        drawn = (
            chance.integers(oldest, memory.current_step, size=self.batch_size),
            chance.integers(memory.num_envs, size=self.batch_size),
        )
        steps, games = (torch.from_numpy(each).to(memory.device) for each in drawn)
        slots = steps % memory.num_slots
        actions, rewards, ended, cut = (
            memory.tensors[name][slots, games] for name in ("actions", "rewards", "ended", "cut")
        )
        recent = sum(self.recent_returns) / len(self.recent_returns) if self.recent_returns else 0.0
        facts = torch.tensor([self.epsilon, recent], device=memory.device)
        frames = memory.stack_frames(steps, games, self.frame_stack, num_next_frames=1)
        found = TransitionBatch(frames, actions.long(), rewards, 1 - ended.float(), 1 - cut.float(), facts[0], facts[1])
        return TransitionBatch(*(each.to(self.device) for each in found))

    def _compute_seeds(self) -> npt.NDArray[np.int64]:
        """That of the episode that each game is in."""
        return np.array(
            [np.random.SeedSequence([self.seed, game, int(number)]).generate_state(1)[0] >> 1
             for game, number in enumerate(self.episode_numbers)], np.int64,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """How far it is; what is remembered lies in the files."""
        self.checkpoint_step = self.buffer.current_step
        return {
            "rounds": self.num_vector_steps,
            "updates": self.num_updates,
            "now": self.buffer.current_step,
            "episodes": torch.from_numpy(self.episode_numbers.copy()),
            "taken": [torch.tensor(each, dtype=torch.uint8) for each in self.episode_actions],
            "gained": torch.from_numpy(self.episode_returns.copy()),
            "returns": list(self.recent_returns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: each game is begun with the seed of its episode and played to where it was."""
        self.num_vector_steps, self.num_updates = state["rounds"], state["updates"]
        self.buffer.current_step = self.checkpoint_step = state["now"]
        self.episode_numbers, self.episode_returns = state["episodes"].cpu().numpy(), state["gained"].cpu().numpy()
        self.episode_actions = [each.tolist() for each in state["taken"]]
        self.recent_returns = state["returns"]
        self.is_buffer_missing = self.buffer.is_new
        self.buffer.restore()
        if self.num_vector_steps:
            longest = max(map(len, self.episode_actions))
            waits = np.array([longest - len(each) for each in self.episode_actions])  # so that all arrive together
            seeds = self._compute_seeds()
            self.envs.reset(np.ones(self.envs.num_envs, bool), seeds)
            for number in range(longest):
                self.envs.reset(waits == number, seeds)
                actions = [
                    each[number - wait] if number >= wait else 0
                    for each, wait in zip(self.episode_actions, waits, strict=True)
                ]
                self.envs.send(np.array(actions))
                if number < longest - 1:  # what becomes of the last ones is seen when it goes on
                    self.envs.receive()
