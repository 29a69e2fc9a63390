"""Environments of the Arcade Learning Environment and of gymnasium, optional dependencies."""

import re

import ale_py
import gymnasium
import numpy as np
import numpy.typing as npt
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from PIL import Image

from fukami.errors import Error, UsageError, build_unknown_error, find_name
from fukami.image import io as image_io
from fukami.reinforcement.vector_env import (
    FRAME_SIZE,
    FRAME_SKIP,
    MAX_EPISODE_FRAMES,
    MAX_NOOPS,
    FrameArray,
    StepResult,
)

gymnasium.register_envs(ale_py)
MAX_ACTIONS = 256  # the replay buffer stores a byte for each


def make_gymnasium_envs(name: str, num_envs: int, render: bool) -> "AtariEnv | GymnasiumEnv":
    """Create parallel environments of an Atari 2600 game, such as ``pong`` or ``ALE/Pong-v5``, or of gymnasium.

    Raises:
        UsageError: there is no environment of this name.
    """
    spec = gymnasium.registry.get(name)
    if spec is not None and "ale_py" not in str(spec.entry_point):
        return GymnasiumEnv(name, num_envs)
    atari = find_name(re.sub(r"^ALE/|(NoFrameskip)?-v\d+$", "", name), roms.get_all_rom_ids())
    if atari is None:
        raise build_unknown_error("environment", name, ["catch", *roms.get_all_rom_ids(), *gymnasium.registry])
    return AtariEnv(atari, num_envs, render)


class AtariEnv:
    """Parallel Atari 2600 games with the paper's preprocessing (Mnih et al. 2015, methods).

    Frames are 84×84 grayscale, the maximum of two consecutive frames; each action is repeated for four frames. An
    episode starts with up to 30 frames of no-ops, the first with the fire button where the game has one. There are no
    sticky actions, and an episode is a whole game.

    Args:
        game: name of the ROM.
        num_envs: number of environments, each in a thread.
        render: also emulate full-size color frames, for :meth:`render`.
    """

    frame_shape: tuple[int, ...] = (FRAME_SIZE, FRAME_SIZE)

    def __init__(self, game: str, num_envs: int, render: bool = False) -> None:
        self.num_envs = num_envs
        self.envs = _make_atari_envs(game, num_envs, FRAME_SIZE, FRAME_SIZE)
        self.render_envs = _make_atari_envs(game, num_envs, 210, 160, grayscale=False) if render else None
        self.action_names = tuple(action.name.lower() for action in self.envs.ale.get_action_set())
        self.has_reset = False
        self.lives = np.zeros(num_envs, np.int64)

    def reset(self, mask: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Reset the environments selected by ``mask`` ``(E,)``, each with its seed; return the frames of all."""
        options = {"reset_mask": mask} if self.has_reset else None
        reset_seeds = seeds[mask] if self.has_reset else seeds
        for envs in filter(None, (self.envs, self.render_envs)):
            frames, info = envs.reset(seed=reset_seeds, options=options)
            if envs is self.envs:
                self.frames, self.lives = frames, info["lives"].copy()
            else:
                self.rendered_frames = frames
        self.has_reset = True
        all_false = np.zeros(self.num_envs, bool)
        return StepResult(self.frames[:, 0], np.zeros(self.num_envs, np.float32), all_false, all_false, all_false)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Start a step with the actions ``(E,)`` in the background threads."""
        self.envs.send(actions)
        if self.render_envs:
            self.render_envs.send(actions)

    def receive(self) -> StepResult:
        """Wait for the step and return its result."""
        self.frames, rewards, terminated, truncated, info = self.envs.recv()
        life_lost = (info["lives"] < self.lives) & ~terminated
        self.lives = info["lives"].copy()
        if self.render_envs:
            self.rendered_frames = self.render_envs.recv()[0]
        return StepResult(
            self.frames[:, 0], rewards.astype(np.float32), terminated.astype(bool), truncated.astype(bool), life_lost
        )

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """Render an environment in color, ``(210, 160, 3)``."""
        return np.array(self.rendered_frames[index, 0])

    def close(self) -> None:
        """Close the environments."""
        for envs in filter(None, (self.envs, self.render_envs)):
            envs.close()


def _make_atari_envs(game: str, count: int, height: int, width: int, grayscale: bool = True) -> AtariVectorEnv:
    # ale-py draws 0 to noop_max - 1 frames; the fire button takes one of them
    return AtariVectorEnv(
        game, count, img_height=height, img_width=width, grayscale=grayscale, frameskip=FRAME_SKIP, stack_num=1,
        noop_max=MAX_NOOPS + 1, max_num_frames_per_episode=MAX_EPISODE_FRAMES, reward_clipping=False,
        episodic_life=False, repeat_action_probability=0.0, autoreset_mode=AutoresetMode.NEXT_STEP,
    )  # fmt: skip


class GymnasiumEnv:
    """Environments of gymnasium with discrete actions; images become 84×84 grayscale, vectors are unchanged.

    Args:
        name: gymnasium's name.
        num_envs: number of environments, all in this thread.

    Raises:
        UsageError: the action space or the observation space is not supported.
    """

    def __init__(self, name: str, num_envs: int) -> None:
        self.num_envs = num_envs
        try:
            self.envs = [gymnasium.make(name, render_mode="rgb_array") for _ in range(num_envs)]
        except Exception as error:  # a missing dependency, or any error of an environment of the user
            raise Error(f"the environment {name} cannot be created ({type(error).__name__}: {error})") from error
        space, actions = self.envs[0].observation_space, self.envs[0].action_space
        if not isinstance(actions, gymnasium.spaces.Discrete):
            raise UsageError(f"{name} has the action space {actions}; choose an environment with discrete actions")
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) not in (1, 2, 3):
            raise UsageError(f"{name} has the observation space {space}; choose an environment with images or vectors")
        if actions.n > MAX_ACTIONS:
            raise UsageError(f"{name} has {actions.n} actions; choose an environment with at most {MAX_ACTIONS}")
        if len(space.shape) > 1 and space.dtype != np.uint8:
            raise UsageError(f"{name} has images of {space.dtype}; choose an environment with images of uint8")
        self.first_action = int(actions.start)
        self.action_names = tuple(str(action) for action in range(int(actions.n)))
        self.is_vector = len(space.shape) == 1
        self.frame_shape: tuple[int, ...] = space.shape if self.is_vector else (FRAME_SIZE, FRAME_SIZE)
        dtype = np.float32 if self.is_vector else np.uint8
        self.frames = np.zeros((num_envs, *self.frame_shape), dtype)
        self.is_done = np.ones(num_envs, bool)
        self.pending_actions = np.zeros(num_envs, np.int64)

    def reset(self, mask: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Reset the environments selected by ``mask`` ``(E,)``, each with its seed; return the frames of all."""
        for index in np.flatnonzero(mask):
            observation, _ = self.envs[index].reset(seed=int(seeds[index]))
            self.frames[index] = self._preprocess_observation(observation)
        self.is_done = self.is_done & ~mask
        all_false = np.zeros(self.num_envs, bool)
        return StepResult(self.frames.copy(), np.zeros(self.num_envs, np.float32), all_false, all_false, all_false)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Store the actions ``(E,)`` of the next step."""
        self.pending_actions = actions

    def receive(self) -> StepResult:
        """Do the step and return its result."""
        rewards = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for index in np.flatnonzero(~self.is_done):
            observation, reward, terminated[index], truncated[index], _ = self.envs[index].step(
                self.first_action + int(self.pending_actions[index])
            )
            self.frames[index], rewards[index] = self._preprocess_observation(observation), float(reward)
        self.is_done = self.is_done | terminated | truncated
        return StepResult(
            self.frames.copy(), rewards, terminated, truncated & ~terminated, np.zeros(self.num_envs, bool)
        )

    def _preprocess_observation(self, observation: npt.ArrayLike) -> FrameArray:
        """Convert an observation to a frame: a float32 vector or an 84×84 grayscale image."""
        if self.is_vector:
            return np.asarray(observation, np.float32)
        image = image_io.convert_mode(image_io.convert_array_to_image(np.asarray(observation)), "L")
        return np.array(image.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BOX))

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """Render an environment in color, ``(H, W, 3)``.

        Raises:
            Error: rendering needs another dependency of gymnasium.
        """
        try:
            return np.asarray(self.envs[index].render(), np.uint8)
        except gymnasium.error.DependencyNotInstalled as error:
            raise Error(f"rendering needs another dependency of gymnasium: {error}") from None

    def close(self) -> None:
        """Close all environments."""
        for env in self.envs:
            env.close()
