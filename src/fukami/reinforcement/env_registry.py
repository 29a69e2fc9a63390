"""Creation of environments by name: Catch, Atari 2600 games and gymnasium's environments."""

import importlib.util

from fukami.errors import UsageError, get_install_command
from fukami.reinforcement.vector_env import VectorEnv


def make_envs(name: str, num_envs: int, *, render: bool = False) -> VectorEnv:
    """Create ``num_envs`` parallel environments: ``catch`` (bundled), an Atari game such as ``pong``, or gymnasium's.

    ``render`` enables color frames for videos, which takes longer.

    Raises:
        UsageError: there is no environment of this name, its actions are not discrete, or the extra is not installed.
    """
    if name == "catch":
        from fukami.reinforcement.catch import Catch

        return Catch(num_envs)
    if importlib.util.find_spec("gymnasium") is None or importlib.util.find_spec("ale_py") is None:
        raise UsageError(
            f"the environment {name!r} needs gymnasium and ale-py: {get_install_command('atari')}; or use --env catch"
        )
    from fukami.reinforcement import gymnasium_env

    return gymnasium_env.make_gymnasium_envs(name, num_envs, render)
