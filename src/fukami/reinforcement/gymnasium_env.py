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


def make_gymnasium_envs(name: str, count: int, colour: bool) -> "AtariEnv | GymnasiumEnv":
    """So many games of a name: one of the Atari 2600, such as ``pong`` or ``ALE/Pong-v5``, or an environment's.

    Raises:
        UsageError: there is no such game.
    """
    known = gymnasium.registry.get(name)
    if known is not None and "ale_py" not in str(known.entry_point):
        return GymnasiumEnv(name, count)
    atari = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.sub(r"^ALE/|(NoFrameskip)?-v\d+$", "", name)).lower()
    if atari not in roms.get_all_rom_ids():
        raise build_unknown_error("game", name, ["catch", *roms.get_all_rom_ids(), *gymnasium.registry])
    return AtariEnv(atari, count, colour)


class AtariEnv:
    """Games of the Atari 2600 as the paper has them: 84×84 grey, the greater of two frames, each action four times.

    Each begins with up to 30 frames in which nothing is done, and with the fire button where it needs that. No action
    is ever repeated by chance ("sticky"); an episode is a whole game.

    Args:
        game: the name of its ROM.
        count: side by side, in threads of their own.
        colour: also in colour and whole, for the eye.
    """

    shape: tuple[int, ...] = (FRAME_SIZE, FRAME_SIZE)

    def __init__(self, game: str, count: int, colour: bool = False) -> None:
        self.count = count
        self.envs = _make_atari_envs(game, count, img_height=FRAME_SIZE, img_width=FRAME_SIZE)
        self.shown = _make_atari_envs(game, count, img_height=210, img_width=160, grayscale=False) if colour else None
        self.actions = tuple(each.name.lower() for each in self.envs.ale.get_action_set())
        self.begun = False
        self.lives = np.zeros(count, np.int64)

    def reset(self, which: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Begin anew where ``which`` ``(G,)`` says so, each game with its seed."""
        options = {"reset_mask": which} if self.begun else None
        own = seeds[which] if self.begun else seeds
        for envs in filter(None, (self.envs, self.shown)):
            frames, found = envs.reset(seed=own, options=options)
            if envs is self.envs:
                self.frames, self.lives = frames, found["lives"].copy()
            else:
                self.pictures = frames
        self.begun = True
        nothing = np.zeros(self.count, bool)
        return StepResult(self.frames[:, 0], np.zeros(self.count, np.float32), nothing, nothing, nothing)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Take an action in each game; the threads go on by themselves."""
        self.envs.send(actions)
        if self.shown:
            self.shown.send(actions)

    def receive(self) -> StepResult:
        """What has become of them."""
        self.frames, rewards, ended, cut, found = self.envs.recv()
        lost = (found["lives"] < self.lives) & ~ended
        self.lives = found["lives"].copy()
        if self.shown:
            self.pictures = self.shown.recv()[0]
        return StepResult(self.frames[:, 0], rewards.astype(np.float32), ended.astype(bool), cut.astype(bool), lost)

    def picture(self, game: int) -> npt.NDArray[np.uint8]:
        """A game in colour, ``(210, 160, 3)``."""
        return np.array(self.pictures[game, 0])

    def close(self) -> None:
        """End them all."""
        self.envs.close()


def _make_atari_envs(game: str, count: int, **form: Any) -> AtariVectorEnv:
    return AtariVectorEnv(
        game, count, frameskip=FRAME_SKIP, stack_num=1, noop_max=MAX_NOOPS, max_num_frames_per_episode=MAX_EPISODE_FRAMES,
        reward_clipping=False, episodic_life=False, repeat_action_probability=0.0,
        autoreset_mode=AutoresetMode.NEXT_STEP, **form,
    )  # fmt: skip


class GymnasiumEnv:
    """Any environment of gymnasium with numbered actions; pictures become 84×84 grey, vectors stay as they are.

    Args:
        name: as gymnasium has it.
        count: side by side, one after another in this thread.

    Raises:
        UsageError: its actions or what is seen are of another kind.
    """

    def __init__(self, name: str, count: int) -> None:
        self.count = count
        try:
            self.envs = [gymnasium.make(name, render_mode="rgb_array") for _ in range(count)]
        except gymnasium.error.DependencyNotInstalled as error:
            raise Error(f"{name} needs more than gymnasium: {error}") from None
        space, actions = self.envs[0].observation_space, self.envs[0].action_space
        if not isinstance(actions, gymnasium.spaces.Discrete):
            raise UsageError(f"{name} takes {actions} as an action; an agent here chooses one of a few")
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) not in (1, 2, 3):
            raise UsageError(f"in {name} one sees {space}; an agent here sees pictures or vectors")
        self.first = int(actions.start)
        self.actions = tuple(str(number) for number in range(int(actions.n)))
        self.vector = len(space.shape) == 1
        self.shape: tuple[int, ...] = space.shape if self.vector else (FRAME_SIZE, FRAME_SIZE)
        kind = np.float32 if self.vector else np.uint8
        self.frames = np.zeros((count, *self.shape), kind)
        self.over = np.ones(count, bool)
        self.chosen = np.zeros(count, np.int64)

    def reset(self, which: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64]) -> StepResult:
        """Begin anew where ``which`` ``(G,)`` says so, each game with its seed."""
        for game in np.flatnonzero(which):
            observed, _ = self.envs[game].reset(seed=int(seeds[game]))
            self.frames[game] = self._framed(observed)
        self.over = self.over & ~which
        nothing = np.zeros(self.count, bool)
        return StepResult(self.frames.copy(), np.zeros(self.count, np.float32), nothing, nothing, nothing)

    def send(self, actions: npt.NDArray[np.int64]) -> None:
        """Take an action in each game."""
        self.chosen = actions

    def receive(self) -> StepResult:
        """What has become of them."""
        rewards = np.zeros(self.count, np.float32)
        ended, cut = np.zeros(self.count, bool), np.zeros(self.count, bool)
        for game in np.flatnonzero(~self.over):
            observed, reward, ended[game], cut[game], _ = self.envs[game].step(self.first + int(self.chosen[game]))
            self.frames[game], rewards[game] = self._framed(observed), float(reward)
        self.over = self.over | ended | cut
        return StepResult(self.frames.copy(), rewards, ended, cut & ~ended, np.zeros(self.count, bool))

    def _framed(self, observed: Any) -> npt.NDArray[Any]:
        """What is seen as the network sees it."""
        if self.vector:
            return np.asarray(observed, np.float32)
        picture = image_io.convert_mode(image_io.convert_array_to_image(np.asarray(observed)), "L")
        return np.array(picture.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BOX))

    def picture(self, game: int) -> npt.NDArray[np.uint8]:
        """A game in colour, ``(H, W, 3)``.

        Raises:
            Error: gymnasium needs more to draw it.
        """
        try:
            return np.asarray(self.envs[game].render(), np.uint8)
        except gymnasium.error.DependencyNotInstalled as error:
            raise Error(f"this game cannot be drawn yet: {error}") from None

    def close(self) -> None:
        """End them all."""
        for env in self.envs:
            env.close()
