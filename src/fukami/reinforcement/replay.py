"""Replay buffer and collection of experience (Mnih et al. 2015)."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fukami.data.loader import Loader, StateDict, check_counts
from fukami.engine.buffer_files import BufferFiles
from fukami.errors import UsageError
from fukami.reinforcement.vector_env import VectorEnv

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime

RESERVE_FRACTION = 0.05  # reserve slots, as a fraction of the capacity, that keep the last checkpoint's time steps
MIN_RESERVE_STEPS = 1024  # minimum number of reserve slots
MAX_GPU_FRACTION = 0.8  # maximum fraction of the free GPU memory that the buffer may use
NUM_RECENT_EPISODES = 100  # episodes whose returns are averaged


class TransitionBatch(NamedTuple):
    """Batch of transitions.

    Attributes:
        frames: ``(N, H + 1, ...)``, the stacked frames of the state and the next frame, oldest first.
        actions: ``(N,)``.
        rewards: ``(N,)``.
        not_terminated: ``(N,)``, 0 if the transition ended the episode or lost a life, else 1.
        not_truncated: ``(N,)``, 0 if the time limit cut off the episode, so the next frame is missing, else 1.
        epsilon: exploration rate epsilon.
        mean_return: mean return of the last episodes.
    """

    frames: Tensor
    actions: Tensor
    rewards: Tensor
    not_terminated: Tensor
    not_truncated: Tensor
    epsilon: Tensor
    mean_return: Tensor


class ReplayBuffer:
    """Ring buffer of the frames, actions and rewards of parallel environments; it stores each frame once.

    The buffer is on the device or in CPU memory. With :meth:`open_files`, files contain it as well, for resumed runs.
    A time step is a step of all environments. Beyond the capacity, :attr:`num_reserve_steps` slots protect the time
    steps that the last checkpoint needs from being overwritten until the next checkpoint.

    Args:
        num_envs: number of environments.
        frame_shape: shape of a frame: two sides for uint8 images, one length for float32 vectors.
        capacity: number of time steps.
        is_saved: whether checkpoints refer to its files, so that it needs the additional slots.
    """

    def __init__(self, num_envs: int, frame_shape: tuple[int, ...], capacity: int, *, is_saved: bool = True) -> None:
        dtype = torch.uint8 if len(frame_shape) == 2 else torch.float32
        self.num_envs, self.capacity = num_envs, capacity
        self.num_reserve_steps = max(MIN_RESERVE_STEPS, round(RESERVE_FRACTION * capacity)) if is_saved else 0
        self.num_slots = capacity + self.num_reserve_steps
        self.specs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "frames": ((self.num_slots, num_envs, *frame_shape), dtype),
            "episode_starts": ((self.num_slots, num_envs), torch.bool),  # whether the frame is an episode's first
            "actions": ((self.num_slots, num_envs), torch.uint8),
            "rewards": ((self.num_slots, num_envs), torch.float32),
            "terminated": ((self.num_slots, num_envs), torch.bool),
            "truncated": ((self.num_slots, num_envs), torch.bool),
        }
        self.device = torch.device("cpu")
        self.file_tensors: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        self.current_step = -1  # time step of the latest frames
        self.files: BufferFiles | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the values in bytes, by name."""
        return {name: torch.Size(shape).numel() * dtype.itemsize for name, (shape, dtype) in self.specs.items()}

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return sum(self.sizes.values())

    def open_files(self, folder: Path) -> None:
        """Open or create the files in this folder.

        Raises:
            Error: a file cannot be created, or the disk is full.
        """
        self.files = BufferFiles(folder, self.sizes, "--buffer-size")
        for name, (shape, dtype) in self.specs.items():
            count = self.sizes[name] // dtype.itemsize
            tensor = torch.from_file(str(self.files.paths[name]), shared=True, size=count, dtype=dtype)
            self.file_tensors[name] = tensor.view(shape)

    def allocate(self, device: torch.device) -> None:
        """Allocate the buffer on a device, in addition to the files; on the CPU the files are the buffer."""
        self.device = device
        if device.type == "cpu" and self.file_tensors:
            self.tensors = self.file_tensors
        else:
            self.tensors = {
                name: torch.zeros(shape, dtype=dtype, device=device) for name, (shape, dtype) in self.specs.items()
            }

    def add(self, frames: Tensor, episode_starts: Tensor) -> None:
        """Start a time step: store the frames of the environments and whether they are the first of an episode."""
        self.current_step += 1
        self.write(self.current_step, frames=frames, episode_starts=episode_starts)

    def write(self, step: int, **values: Tensor) -> None:
        """Write values of a time step by name."""
        slot = step % self.num_slots
        for name, value in values.items():
            self.tensors[name][slot].copy_(value, non_blocking=True)
            if self.tensors is not self.file_tensors and self.file_tensors:
                self.file_tensors[name][slot].copy_(value)

    def restore(self) -> None:
        """Copy the content of the files of a resumed run to the device."""
        if self.files is not None:
            self.files.was_resumed = True
        if self.file_tensors and self.tensors is not self.file_tensors:
            for name, tensor in self.tensors.items():
                tensor.copy_(self.file_tensors[name])

    def stack_frames(self, steps: Tensor, env_indices: Tensor, num_frames: int, num_next_frames: int = 0) -> Tensor:
        """Return the frames up to and after each of the time ``steps`` ``(N,)``.

        The shape is ``(N, num_frames + num_next_frames, ...)``. The first frame of an episode is repeated in place of
        frames before its start.
        """
        offsets = torch.arange(1 - num_frames, 1 + num_next_frames, device=self.device)
        state_slots = (steps.unsqueeze(1) + offsets[:num_frames]) % self.num_slots
        episode_starts = self.tensors["episode_starts"][state_slots, env_indices.unsqueeze(1)]
        start_offsets = offsets[:num_frames].where(episode_starts, 1 - num_frames).amax(1, keepdim=True)
        slots = (steps.unsqueeze(1) + offsets.maximum(start_offsets)) % self.num_slots
        rows = slots * self.num_envs + env_indices.unsqueeze(1)
        frames = self.tensors["frames"].flatten(0, 1).index_select(0, rows.flatten())  # one contiguous copy per frame
        return frames.view(*rows.shape, *frames.shape[1:])

    def sample_frames(self, count: int) -> Tensor:
        """Sample at most ``count`` evenly spaced frames of the buffer, ``(M, ...)``."""
        num_frames = min(self.current_step + 1, self.num_slots) * self.num_envs
        rows = torch.linspace(0, num_frames - 1, min(count, num_frames), device=self.device).long()
        return self.tensors["frames"].flatten(0, 1).index_select(0, rows)

    def find_oldest_step(self) -> int:
        """Return the oldest time step within the capacity."""
        return max(0, self.current_step - self.capacity + 1)


class ExperienceCollector(Loader):
    """Collector of experience: an epsilon-greedy policy in parallel environments, and a replay buffer to sample from.

    Random numbers depend only on the seed and the time step, so a resumed run continues exactly. To resume, it resets
    each environment with its episode's seed and replays the episode's actions.

    Args:
        envs: parallel environments.
        batch_size: number of transitions per batch.
        frame_stack: number of frames per state.
        buffer_size: capacity of the replay buffer in environment steps, over all environments.
        learning_starts: environment steps with random actions before training starts.
        train_frequency: environment steps per optimizer step.
        exploration_steps: environment steps in which the exploration rate decreases linearly.
        epsilon_start, epsilon_end: initial and final exploration rate epsilon.
        seed: seed of the environments, the exploration and the sampling.
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
        epsilon_start: float,
        epsilon_end: float,
        seed: int,
    ) -> None:
        self.envs, self.batch_size, self.frame_stack, self.seed = envs, batch_size, frame_stack, seed
        self.learning_starts, self.train_frequency = learning_starts, train_frequency
        self.exploration_steps, self.epsilon_start, self.epsilon_end = exploration_steps, epsilon_start, epsilon_end
        self.buffer = ReplayBuffer(envs.num_envs, envs.frame_shape, -(-buffer_size // envs.num_envs))
        self.device = self.buffer.device
        self.num_vector_steps = self.num_optimizer_steps = 0
        self.checkpoint_step = 0  # time step of the last checkpoint
        self.episode_indices = np.zeros(envs.num_envs, np.int64)  # index of each environment's current episode
        self.episode_actions: list[list[int]] = [[] for _ in range(envs.num_envs)]  # actions of these episodes
        self.episode_returns = np.zeros(envs.num_envs)  # returns of these episodes so far
        self.recent_returns: list[float] = []

    def open_files(self, folder: Path) -> None:
        """Store the replay buffer in files of the run's folder."""
        self.buffer.open_files(folder / "replay_buffer")

    def delete_files(self) -> None:
        """Delete the files after training."""
        if self.buffer.files is not None:
            self.buffer.files.delete()

    def setup(self, runtime: "Runtime") -> None:
        """Allocate the replay buffer on the device if memory suffices, else on the CPU; batches are on the device.

        Raises:
            UsageError: there are several processes.
        """
        if runtime.world_size > 1:
            raise UsageError(f"dqn runs in one process, not {runtime.world_size}; start one, with more --num-envs")
        self.device = device = runtime.device
        if device.type == "cuda" and self.buffer.num_bytes > MAX_GPU_FRACTION * torch.cuda.mem_get_info(device)[0]:
            device = torch.device("cpu")
        self.buffer.allocate(device)

    @property
    def collections_until_step(self) -> int:
        """Number of calls of :meth:`collect` before the next optimizer step, according to ``train_frequency``."""
        count = self.envs.num_envs
        due_step = self.learning_starts + self.num_optimizer_steps * self.train_frequency
        return (due_step - self.num_vector_steps * count + count - 1) // count

    @property
    def epsilon(self) -> float:
        """Current exploration rate epsilon; 1 before the training starts."""
        steps = self.num_vector_steps * self.envs.num_envs - self.learning_starts
        if steps < 0:
            return 1.0
        progress = min(max(steps / max(self.exploration_steps, 1), 0.0), 1.0)
        return self.epsilon_start + (self.epsilon_end - self.epsilon_start) * progress

    def __len__(self) -> int:
        """Number of batches per epoch: an epoch is one optimizer step."""
        return 1

    def count_samples(self, batch: TransitionBatch) -> tuple[int, str]:
        """Return the number of environment steps per optimizer step, and their unit."""
        return self.train_frequency, "steps"

    @property
    def needs_checkpoint(self) -> bool:
        """True if a checkpoint is due before new time steps overwrite those that the last one on disk needs.

        A checkpoint is written in the background, and is on disk when the next one starts at the latest. Up to two
        checkpoint intervals pass before the next checkpoint is on disk, so the interval is one third of the reserve.
        """
        return self.buffer.current_step - self.checkpoint_step > self.buffer.num_reserve_steps // 3

    @property
    def checkpoint_files(self) -> list[Path]:
        """Files to sync to disk before a checkpoint that refers to them."""
        return [] if self.buffer.files is None else list(self.buffer.files.paths.values())

    def describe_batch(self, step: int) -> str:
        """Describe the batch of optimizer step ``step`` for messages."""
        num_steps = self.num_vector_steps * self.envs.num_envs
        return f"transitions after {num_steps:,} environment steps (optimizer step {step + 1})"

    def collect(self, policy: Callable[[Tensor], Tensor]) -> None:
        """Receive the results of the last actions and send the next, random ones or those of ``policy``.

        ``policy`` maps states ``(E, H, ...)`` to actions ``(E,)``.
        """
        count = self.envs.num_envs
        if self.num_vector_steps == 0:
            result = self.envs.reset(np.ones(count, bool), self._compute_seeds())
            episode_starts = np.ones(count, bool)
        else:
            result = self.envs.receive()
            episode_starts = result.terminated | result.truncated
            self.buffer.write(
                self.buffer.current_step,
                rewards=torch.from_numpy(result.rewards),
                terminated=torch.from_numpy(result.terminated | result.life_lost),
                truncated=torch.from_numpy(result.truncated),
            )
            self.episode_returns += result.rewards
            for index in np.flatnonzero(episode_starts):
                self.recent_returns = [*self.recent_returns, float(self.episode_returns[index])][-NUM_RECENT_EPISODES:]
                self.episode_returns[index], self.episode_actions[index] = 0.0, []
            if episode_starts.any():
                self.episode_indices += episode_starts
                result = self.envs.reset(episode_starts, self._compute_seeds())
        self.buffer.add(torch.from_numpy(np.ascontiguousarray(result.frames)), torch.from_numpy(episode_starts))
        rng = np.random.default_rng([self.seed, 1, self.num_vector_steps])
        actions = rng.integers(len(self.envs.action_names), size=count)
        greedy = rng.random(count) >= self.epsilon
        if greedy.any():
            actions = np.where(greedy, policy(self.get_states()).cpu().numpy(), actions)
        self.buffer.write(self.buffer.current_step, actions=torch.from_numpy(actions.astype(np.uint8)))
        for episode_actions, action in zip(self.episode_actions, actions.tolist(), strict=True):
            episode_actions.append(action)
        self.envs.send(actions)
        self.num_vector_steps += 1

    def get_states(self) -> Tensor:
        """Return the current states ``(E, H, ...)`` of the environments."""
        indices = torch.arange(self.envs.num_envs, device=self.buffer.device)
        return self.buffer.stack_frames(torch.full_like(indices, self.buffer.current_step), indices, self.frame_stack)

    def sample_batch(self) -> TransitionBatch:
        """Sample a batch of transitions uniformly.

        Raises:
            Error: the files of the replay buffer were missing when the run was resumed.
        """
        buffer = self.buffer
        if buffer.files is not None:
            buffer.files.check_content()
        rng = np.random.default_rng([self.seed, 2, self.num_optimizer_steps])
        oldest = buffer.find_oldest_step() + self.frame_stack - 1
        samples = (
            rng.integers(oldest, buffer.current_step, size=self.batch_size),
            rng.integers(buffer.num_envs, size=self.batch_size),
        )
        steps, env_indices = (torch.from_numpy(values).to(buffer.device) for values in samples)
        slots = steps % buffer.num_slots
        actions, rewards, terminated, truncated = (
            buffer.tensors[name][slots, env_indices] for name in ("actions", "rewards", "terminated", "truncated")
        )
        mean_return = sum(self.recent_returns) / len(self.recent_returns) if self.recent_returns else 0.0
        scalars = torch.tensor([self.epsilon, mean_return], device=buffer.device)
        frames = buffer.stack_frames(steps, env_indices, self.frame_stack, num_next_frames=1)
        batch = TransitionBatch(
            frames, actions.long(), rewards, 1 - terminated.float(), 1 - truncated.float(), scalars[0], scalars[1]
        )
        return TransitionBatch(*(tensor.to(self.device) for tensor in batch))

    def _compute_seeds(self) -> npt.NDArray[np.int64]:
        """Compute the seed of each environment's current episode."""
        return np.array(
            [np.random.SeedSequence([self.seed, index, int(episode)]).generate_state(1)[0] >> 1
             for index, episode in enumerate(self.episode_indices)], np.int64,
        )  # fmt: skip

    def state_dict(self) -> StateDict:
        """Return the progress; files contain the replay buffer."""
        self.checkpoint_step = self.buffer.current_step
        return {
            "num_vector_steps": self.num_vector_steps,
            "num_optimizer_steps": self.num_optimizer_steps,
            "current_step": self.buffer.current_step,
            "episode_indices": torch.from_numpy(self.episode_indices.copy()),
            "episode_actions": [torch.tensor(actions, dtype=torch.uint8) for actions in self.episode_actions],
            "episode_returns": torch.from_numpy(self.episode_returns.copy()),
            "recent_returns": list(self.recent_returns),
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the progress: reset each environment with its episode's seed and replay the episode's actions."""
        check_counts(state, "num_vector_steps", "num_optimizer_steps", "current_step")
        self.num_vector_steps, self.num_optimizer_steps = state["num_vector_steps"], state["num_optimizer_steps"]
        self.buffer.current_step = self.checkpoint_step = state["current_step"]
        self.episode_indices = state["episode_indices"].cpu().numpy()
        self.episode_returns = state["episode_returns"].cpu().numpy()
        self.episode_actions = [actions.tolist() for actions in state["episode_actions"]]
        self.recent_returns = state["recent_returns"]
        self.buffer.restore()
        if self.num_vector_steps:
            max_length = max(map(len, self.episode_actions))
            # shorter episodes start later, so that all end together
            delays = np.array([max_length - len(actions) for actions in self.episode_actions])
            seeds = self._compute_seeds()
            self.envs.reset(np.ones(self.envs.num_envs, bool), seeds)
            for step in range(max_length):
                self.envs.reset(delays == step, seeds)
                actions = [
                    episode_actions[step - delay] if step >= delay else 0
                    for episode_actions, delay in zip(self.episode_actions, delays, strict=True)
                ]
                self.envs.send(np.array(actions))
                if step < max_length - 1:  # the next collect() receives the results of the last actions
                    self.envs.receive()
