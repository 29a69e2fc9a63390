"""Deep Q-Network: what it wins, and how many steps a second it plays and learns beside Stable-Baselines3.

    python benchmarks/dqn.py catch [--seeds 0 1 2] [OPTIONS]
    python benchmarks/dqn.py pong [--seeds 0] [--out FOLDER] [--minutes 15] [OPTIONS]
    python benchmarks/dqn.py breakout [--seeds 0] [--out FOLDER] [OPTIONS]
    python benchmarks/dqn.py rate [--game pong] [--steps 4000] [--precision float32]
    python benchmarks/dqn.py memory

``catch``, ``pong`` and ``breakout`` train from the command line and record the mean return over 30 episodes with 5 % of
the actions by chance: no sticky actions, whole games. ``catch`` is judged by 1,000 balls, too, with chance and without.
With ``--minutes`` the training is stopped after as many, and evaluated as far as it is; repeated with the same
``--out``, it is resumed.

``rate`` lets ours and Stable-Baselines3's DQN play and learn in turn, each in a process of its own: the same game as
both have it (84×84, four frames, an update of 32 for every four steps of four games, Adam, gradients not scaled).
Stable-Baselines3 computes in float32, and so does ours unless ``--precision`` is another, such as ``auto``, its default
in a training. ``memory`` fills the memory with a million steps of 84×84 pixels. Results go to results.csv.
"""

import argparse
import json
import math
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from common.processes import Apart, ask_in_turn, installed, resident
from common.record import answer, anywhere, each_seed, record

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
WARMING = 1  # turns before those that are timed
GAMES = 4
LINES = {
    "catch": "fukami train dqn",
    "pong": "fukami train dqn --env pong --steps 1200000 --buffer-size 400000 --learning-starts 10000 "
    "--exploration-steps 200000 --target-update-interval 1000 --num-envs 8 --schedule polynomial "
    "--eval-every 200000 --double",
    "breakout": "fukami train dqn --env breakout --steps 10000000 --learning-starts 80000 --exploration-steps 1000000 "
    "--target-update-interval 1000 --epsilon-end 0.01 --lr 1e-4 --eval-every 500000",
}


def trainings(options: argparse.Namespace) -> None:
    """Train with each seed, and record what it wins."""
    if options.minutes:
        train_for_minutes(options)
        return
    for seed, result, seconds, command in each_seed(LINES[options.benchmark], options):
        note = f"{result['count']} episodes, epsilon 0.05; deviation {result['return_deviation']:.2f}, not sticky"
        record(f"dqn {options.benchmark}", "return", result["return"], seed=seed, seconds=seconds, command=command,
               note=note)  # fmt: skip
        if options.benchmark == "catch":
            judge(result["run"], seed)


def train_for_minutes(options: argparse.Namespace) -> None:
    """Train with the first seed for so many minutes, from the last checkpoint on where there is one, and evaluate."""
    (seed, *_), out = options.seeds, Path(options.out or tempfile.mkdtemp())
    run = out / f"dqn-{options.benchmark}-seed-{seed}"
    words = [*LINES[options.benchmark].split(), *options.more, "--seed", str(seed)]
    more = ["--resume"] if (run / "last.ckpt").exists() else []
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *words, "--out", str(run), *more], stdout=subprocess.DEVNULL)
    try:
        process.wait(60 * options.minutes)
    except subprocess.TimeoutExpired:
        process.terminate()  # it writes a checkpoint first
        process.wait()
    finally:
        process.kill()
    if process.returncode not in (0, 128 + signal.SIGTERM):
        sys.exit(f"the training ended with status {process.returncode}")
    seconds = time.monotonic() - began
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    result, _ = answer(f"fukami eval {run}")
    note = f"{last['step']:,} updates, the last {seconds / 60:.1f} minutes of them here; {result['count']} episodes, "
    note += f"epsilon 0.05; deviation {result['return_deviation']:.2f}, no sticky actions"
    record(f"dqn {options.benchmark} {'whole' if process.returncode == 0 else 'stopped'}", "return", result["return"],
           seed=seed, seconds=seconds, command=anywhere(words), note=note)  # fmt: skip


def judge(run: str, seed: int) -> None:
    """What the run wins in a thousand episodes, with actions by chance and without."""
    for epsilon in (0, 0.05):
        command = f"fukami eval {run} --set eval_epsilon={epsilon} eval_episodes=1000"
        result, seconds = answer(command)
        record("dqn catch evaluated", f"return, epsilon {epsilon}", result["return"], seed=seed, seconds=seconds,
               command=command.replace(run, "runs/dqn"), note=f"{result['count']} episodes")  # fmt: skip


def rate(options: argparse.Namespace) -> None:
    """Steps a second of both, in turn; ours in ``options.precision``, theirs in float32."""
    processes = [Apart(ours, options)]
    if installed("stable_baselines3", "Stable-Baselines3") and installed("cv2", "its Atari games"):
        processes.append(Apart(theirs, options))
    speeds = ask_in_turn(processes, options.steps, options.rounds, WARMING)
    taken = [each.ask(0) for each in processes]
    command = f"python benchmarks/dqn.py {shlex.join(sys.argv[1:])}"
    note = (
        f"{options.game}, acting and learning, 4 games; {' and '.join(f'{each:.4g}' for each in speeds)} steps a second"
    )
    name, other = f"dqn rate {options.precision}", "Stable-Baselines3 in float32"
    if len(speeds) == 1:
        record(name, "steps per second", speeds[0], command=command, note=note)
        return
    record(name, f"steps a second over those of {other}", speeds[0] / speeds[1], command=command, note=note)
    record(name, f"memory over that of {other}", taken[0] / taken[1], command=command, note=note)


def memory(options: argparse.Namespace) -> None:
    """Gigabytes in which a million steps are remembered."""
    from fukami.reinforcement.replay import ReplayBuffer

    before = resident("VmRSS")
    remembered = ReplayBuffer(GAMES, (84, 84), 10**6 // GAMES)
    remembered.allocate(torch.device("cpu"))
    seen = torch.randint(0, 256, (GAMES, 84, 84), dtype=torch.uint8)
    for _ in range(remembered.num_slots):
        remembered.add(seen, torch.zeros(GAMES, dtype=torch.bool))
    taken = (resident("VmRSS") - before) / 1e9
    steps = remembered.num_envs * remembered.num_slots
    record("dqn memory", "gigabytes of a million steps", taken, command="python benchmarks/dqn.py memory",
           note=f"{steps:,} steps with the slack that a resumed run needs")  # fmt: skip


def ours(options: argparse.Namespace, pipe) -> None:
    """Play and learn as often as asked; tells the steps a second, and at last the memory."""
    from fukami.engine.recipe import get_recipe
    from fukami.engine.runtime import Runtime

    before = resident("VmRSS")
    recipe = get_recipe("dqn")(
        env=options.game, num_envs=GAMES, steps=10**6, buffer_size=20_000, learning_starts=1_000, lr=1e-4
    )
    runtime = Runtime.start(DEVICE, options.precision)
    torch.manual_seed(0)
    data = recipe.load_data()
    data.train.setup(runtime)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    batches, update = iter(task.iterate_batches(data.train)), runtime.capture(task.step, task.supports_cuda_graph)
    update(next(batches))
    while steps := pipe.recv():
        began = time.monotonic()
        for _ in range(steps // recipe.train_frequency):
            update(next(batches))
        if CUDA:
            torch.cuda.synchronize()
        pipe.send(steps / (time.monotonic() - began))
    pipe.send(torch.cuda.max_memory_allocated() if CUDA else resident("VmHWM") - before)


def theirs(options: argparse.Namespace, pipe) -> None:
    """The same of Stable-Baselines3."""
    import ale_py
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    before = resident("VmRSS")
    gymnasium.register_envs(ale_py)
    name = f"{''.join(word.capitalize() for word in options.game.split('_'))}NoFrameskip-v4"
    games = VecFrameStack(make_atari_env(name, n_envs=GAMES, seed=0), n_stack=4)
    model = DQN("CnnPolicy", games, learning_rate=1e-4, buffer_size=20_000, learning_starts=1_000, batch_size=32,
                train_freq=1, gradient_steps=1, target_update_interval=1_000, exploration_fraction=0.01,
                exploration_final_eps=0.02, max_grad_norm=math.inf, device=DEVICE, seed=0)  # fmt: skip
    model.learn(1_100)
    while steps := pipe.recv():
        began = time.monotonic()
        model.learn(steps, reset_num_timesteps=False)
        pipe.send(steps / (time.monotonic() - began))
    pipe.send(torch.cuda.max_memory_allocated() if CUDA else resident("VmHWM") - before)


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=[*LINES, "rate", "memory"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--game", default="pong")
    parser.add_argument("--steps", type=int, help="of a turn of rate, 4,000 by default; or of a training")
    parser.add_argument("--rounds", type=int, default=5, help="turns of rate that are timed")
    parser.add_argument("--precision", help="ours; by default float32 in rate, and the fastest in a training")
    parser.add_argument("--minutes", type=float, help="of a training; without it, until it is done")
    parser.add_argument("--out", help="a folder where the runs stay")
    options, options.more = parser.parse_known_args()
    options.weights = ""
    if options.benchmark == "rate":
        options.precision, options.steps = options.precision or "float32", options.steps or 4_000
    else:
        given = {"--precision": options.precision, "--steps": options.steps}
        options.more += [word for flag, value in given.items() if value for word in (flag, str(value))]
    {"rate": rate, "memory": memory}.get(options.benchmark, trainings)(options)


if __name__ == "__main__":
    main()
