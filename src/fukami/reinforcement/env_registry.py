"""Creation of environments by name: Catch, Atari 2600 games and gymnasium's environments."""

from fukami.errors import require_extra
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
    with require_extra("atari", f"the environment {name!r}", "use --env catch"):
        from fukami.reinforcement import gymnasium_env

    return gymnasium_env.make_gymnasium_envs(name, num_envs, render)
