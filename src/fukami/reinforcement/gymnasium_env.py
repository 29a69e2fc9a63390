"""Games of the Arcade Learning Environment and of gymnasium, both of which are optional."""

import re
from typing import Any

import ale_py
import gymnasium
import numpy as np
import numpy.typing as npt
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from PIL import Image

from fukami.errors import Error, UsageError, build_unknown_error
from fukami.image import io as image_io
from fukami.reinforcement.vector_env import FRAME_SIZE, FRAME_SKIP, MAX_EPISODE_FRAMES, MAX_NOOPS, StepResult

gymnasium.register_envs(ale_py)


def make_gymnasium_envs(name: str, num_envs: int, render: bool) -> "AtariEnv | GymnasiumEnv":
    """So many games of a name: one of the Atari 2600, such as ``pong`` or ``ALE/Pong-v5``, or an environment's.

    Raises:
        UsageError: there is no such game.
    """
    known = gymnasium.registry.get(name)
    if known is not None and "ale_py" not in str(known.entry_point):
        return GymnasiumEnv(name, num_envs)
    atari = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.sub(r"^ALE/|(NoFrameskip)?-v\d+$", "", name)).lower()
    if atari not in roms.get_all_rom_ids():
        raise build_unknown_error("game", name, ["catch", *roms.get_all_rom_ids(), *gymnasium.registry])
    return AtariEnv(atari, num_envs, render)


class AtariEnv:
    """Games of the Atari 2600 as the paper has them: 84×84 grey, the greater of two frames, each action four times.

    Each begins with up to 30 frames in which nothing is done, and with the fire button where it needs that. No action
    is ever repeated by chance ("sticky"); an episode is a whole game.

    Args:
        game: the name of its ROM.
        num_envs: side by side, in threads of their own.
        render: also in colour and whole, for the eye.
    """

    frame_shape: tuple[int, ...] = (FRAME_SIZE, FRAME_SIZE)

    def __init__(self, game: str, num_envs: int, render: bool = False) -> None:
        self.num_envs = num_envs
        self.envs = _make_atari_envs(game, num_envs, img_height=FRAME_SIZE, img_width=FRAME_SIZE)
        self.render_envs = (
            _make_atari_envs(game, num_envs, img_height=210, img_width=160, grayscale=False) if render else None
        )
        self.action_names = tuple(each.name.lower() for each in self.envs.ale.get_action_set())
        self.has_reset = False
        self.lives = np.zeros(num_envs, np.int64)

    def reset(self, mask: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Begin anew where ``mask`` ``(G,)`` says so, each game with its seed."""
        options = {"reset_mask": mask} if self.has_reset else None
        own = seeds[mask] if self.has_reset else seeds
        for envs in filter(None, (self.envs, self.render_envs)):
            frames, found = envs.reset(seed=own, options=options)
            if envs is self.envs:
                self.frames, self.lives = frames, found["lives"].copy()
            else:
                self.rendered_frames = frames
        self.has_reset = True
        nothing = np.zeros(self.num_envs, bool)
        return StepResult(self.frames[:, 0], np.zeros(self.num_envs, np.float32), nothing, nothing, nothing)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Take an action in each game; the threads go on by themselves."""
        self.envs.send(actions)
        if self.render_envs:
            self.render_envs.send(actions)

    def receive(self) -> StepResult:
        """What has become of them."""
        self.frames, rewards, ended, cut, found = self.envs.recv()
        lost = (found["lives"] < self.lives) & ~ended
        self.lives = found["lives"].copy()
        if self.render_envs:
            self.rendered_frames = self.render_envs.recv()[0]
        return StepResult(self.frames[:, 0], rewards.astype(np.float32), ended.astype(bool), cut.astype(bool), lost)

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """A game in colour, ``(210, 160, 3)``."""
        return np.array(self.rendered_frames[index, 0])

    def close(self) -> None:
        """End them all."""
        self.envs.close()


def _make_atari_envs(game: str, count: int, **form: Any) -> AtariVectorEnv:
    return AtariVectorEnv(
        game, count, frameskip=FRAME_SKIP, stack_num=1, noop_max=MAX_NOOPS,
        max_num_frames_per_episode=MAX_EPISODE_FRAMES, reward_clipping=False, episodic_life=False,
        repeat_action_probability=0.0, autoreset_mode=AutoresetMode.NEXT_STEP, **form,
    )  # fmt: skip


class GymnasiumEnv:
    """Any environment of gymnasium with numbered actions; images become 84×84 grey, vectors stay as they are.

    Args:
        name: as gymnasium has it.
        num_envs: side by side, one after another in this thread.

    Raises:
        UsageError: its actions or what is seen are of another kind.
    """

    def __init__(self, name: str, num_envs: int) -> None:
        self.num_envs = num_envs
        try:
            self.envs = [gymnasium.make(name, render_mode="rgb_array") for _ in range(num_envs)]
        except gymnasium.error.DependencyNotInstalled as error:
            raise Error(f"{name} needs more than gymnasium: {error}") from None
        space, actions = self.envs[0].observation_space, self.envs[0].action_space
        if not isinstance(actions, gymnasium.spaces.Discrete):
            raise UsageError(f"{name} takes {actions} as an action; an agent here chooses one of a few")
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) not in (1, 2, 3):
            raise UsageError(f"in {name} one sees {space}; an agent here sees images or vectors")
        self.first_action = int(actions.start)
        self.action_names = tuple(str(number) for number in range(int(actions.n)))
        self.is_vector = len(space.shape) == 1
        self.frame_shape: tuple[int, ...] = space.shape if self.is_vector else (FRAME_SIZE, FRAME_SIZE)
        kind = np.float32 if self.is_vector else np.uint8
        self.frames = np.zeros((num_envs, *self.frame_shape), kind)
        self.is_done = np.ones(num_envs, bool)
        self.pending_actions = np.zeros(num_envs, np.int64)

    def reset(self, mask: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Begin anew where ``mask`` ``(G,)`` says so, each game with its seed."""
        for game in np.flatnonzero(mask):
            observed, _ = self.envs[game].reset(seed=int(seeds[game]))
            self.frames[game] = self._preprocess_observation(observed)
        self.is_done = self.is_done & ~mask
        nothing = np.zeros(self.num_envs, bool)
        return StepResult(self.frames.copy(), np.zeros(self.num_envs, np.float32), nothing, nothing, nothing)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Take an action in each game."""
        self.pending_actions = actions

    def receive(self) -> StepResult:
        """What has become of them."""
        rewards = np.zeros(self.num_envs, np.float32)
        ended, cut = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for game in np.flatnonzero(~self.is_done):
            observed, reward, ended[game], cut[game], _ = self.envs[game].step(
                self.first_action + int(self.pending_actions[game])
            )
            self.frames[game], rewards[game] = self._preprocess_observation(observed), float(reward)
        self.is_done = self.is_done | ended | cut
        return StepResult(self.frames.copy(), rewards, ended, cut & ~ended, np.zeros(self.num_envs, bool))

    def _preprocess_observation(self, observed: Any) -> npt.NDArray[Any]:
        """What is seen as the network sees it."""
        if self.is_vector:
            return np.asarray(observed, np.float32)
        image = image_io.convert_mode(image_io.convert_array_to_image(np.asarray(observed)), "L")
        return np.array(image.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BOX))

    def render(self, index: int) -> npt.NDArray[np.uint8]:
        """A game in colour, ``(H, W, 3)``.

        Raises:
            Error: gymnasium needs more to draw it.
        """
        try:
            return np.asarray(self.envs[index].render(), np.uint8)
        except gymnasium.error.DependencyNotInstalled as error:
            raise Error(f"this game cannot be drawn yet: {error}") from None

    def close(self) -> None:
        """End them all."""
        for env in self.envs:
            env.close()
