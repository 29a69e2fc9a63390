"""Games by their name: our own, those of gymnasium, and those of the Atari 2600."""

import importlib.util

from fukami.errors import UsageError
from fukami.reinforcement.vector_env import VectorEnv


def make_envs(name: str, num_envs: int, *, render: bool = False) -> VectorEnv:
    """So many games of a name: ``catch`` (embedded), an Atari game such as ``pong``, or what gymnasium calls so.

    With ``render`` its images are shown as people see them, which takes longer.

    Raises:
        UsageError: there is no such game, or it takes more than one number as an action, or the extra is not installed.
    """
    if name == "catch":
        from fukami.reinforcement.catch import Catch

        return Catch(num_envs)
    if importlib.util.find_spec("gymnasium") is None or importlib.util.find_spec("ale_py") is None:
        raise UsageError(f"the game {name!r} needs gymnasium and ale-py: pip install 'fukami[atari]', or play catch")
    from fukami.reinforcement import gymnasium_env

    return gymnasium_env.make_gymnasium_envs(name, num_envs, render)
