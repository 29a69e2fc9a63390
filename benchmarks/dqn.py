"""Deep Q-Network: mean return, and steps per second compared with Stable-Baselines3.

    python benchmarks/dqn.py catch [--seeds 0 1 2] [OPTIONS]
    python benchmarks/dqn.py pong [--seeds 0] [--out FOLDER] [--minutes 15] [OPTIONS]
    python benchmarks/dqn.py breakout [--seeds 0] [--out FOLDER] [OPTIONS]
    python benchmarks/dqn.py rate [--game pong] [--steps 4000] [--precision float32]
    python benchmarks/dqn.py memory

``catch``, ``pong`` and ``breakout`` train from the command line and record the mean return over 30 full episodes with
epsilon 0.05 and without sticky actions. ``catch`` is also evaluated over 1,000 episodes with epsilon 0 and 0.05. With
``--minutes`` the training is stopped after that time and evaluated; a further call with the same ``--out`` resumes it.

``rate`` trains our DQN and that of Stable-Baselines3 in turn, each in its own process, with the same settings: frames
of 84×84, a stack of four, an optimizer step with batch size 32 per four steps of four environments, Adam, no gradient
scaling. Stable-Baselines3 computes in float32. So does ours by default; with ``--precision auto`` it uses the default
precision of a training run. ``memory`` fills the replay buffer with a million steps of 84×84 pixels. Results go to
results.csv.
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

from common.processes import Worker, check_installed, measure_in_turn, read_memory
from common.record import record, run_command, strip_folders, train_seeds

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
WARMUP_ROUNDS = 1
NUM_ENVS = 4
COMMANDS = {
    "catch": "fukami train dqn",
    "pong": "fukami train dqn --env pong --steps 1200000 --buffer-size 400000 --learning-starts 10000 "
    "--exploration-fraction 0.166667 --target-update-interval 1000 --num-envs 8 --schedule polynomial "
    "--eval-every 200000 --double",
    "breakout": "fukami train dqn --env breakout --steps 10000000 --learning-starts 80000 --exploration-fraction 0.1 "
    "--target-update-interval 1000 --epsilon-end 0.01 --lr 1e-4 --eval-every 500000",
}


def train_and_record(options: argparse.Namespace) -> None:
    """Train with each seed, and record the mean return."""
    if options.minutes:
        train_for_minutes(options)
        return
    for seed, result, seconds, command in train_seeds(COMMANDS[options.benchmark], options):
        note = f"{result['count']} episodes, epsilon 0.05; deviation {result['return_deviation']:.2f}, not sticky"
        record(f"dqn {options.benchmark}", "return", result["return"], seed=seed, seconds=seconds, command=command,
               note=note)  # fmt: skip
        if options.benchmark == "catch":
            evaluate_catch(result["run"], seed)


def train_for_minutes(options: argparse.Namespace) -> None:
    """Train with the first seed for ``options.minutes``, from the last checkpoint if there is one, and evaluate."""
    (seed, *_), out = options.seeds, Path(options.out or tempfile.mkdtemp())
    run = out / f"dqn-{options.benchmark}-seed-{seed}"
    command = [*COMMANDS[options.benchmark].split(), *options.more, "--seed", str(seed)]
    resume = ["--resume"] if (run / "last.ckpt").exists() else []
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *command, "--out", str(run), *resume], stdout=subprocess.DEVNULL)
    try:
        process.wait(60 * options.minutes)
    except subprocess.TimeoutExpired:
        process.terminate()  # the process writes a checkpoint first
        process.wait()
    finally:
        process.kill()
    if process.returncode not in (0, 128 + signal.SIGTERM):
        sys.exit(f"the training ended with status {process.returncode}")
    seconds = time.monotonic() - start
    last_line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    result, _ = run_command(f"fukami eval {run}")
    note = (
        f"{last_line['step']:,} steps, the last {seconds / 60:.1f} minutes of them here; {result['count']} episodes, "
    )
    note += f"epsilon 0.05; deviation {result['return_deviation']:.2f}, no sticky actions"
    state = "complete" if process.returncode == 0 else "stopped"
    record(f"dqn {options.benchmark} {state}", "return", result["return"], seed=seed, seconds=seconds,
           command=strip_folders(command), note=note)  # fmt: skip


def evaluate_catch(run: str, seed: int) -> None:
    """Evaluate the run over a thousand episodes, with and without random actions."""
    for epsilon in (0, 0.05):
        command = f"fukami eval {run} --set eval_epsilon={epsilon} eval_episodes=1000"
        result, seconds = run_command(command)
        record("dqn catch evaluated", f"return, epsilon {epsilon}", result["return"], seed=seed, seconds=seconds,
               command=command.replace(run, "runs/dqn"), note=f"{result['count']} episodes")  # fmt: skip


def measure_throughput(options: argparse.Namespace) -> None:
    """Measure the steps per second of both in turn; ours in ``options.precision``, Stable-Baselines3 in float32."""
    workers = [Worker(run_ours, options)]
    if check_installed("stable_baselines3", "Stable-Baselines3") and check_installed("cv2", "its Atari games"):
        workers.append(Worker(run_stable_baselines3, options))
    speeds = measure_in_turn(workers, options.steps, options.rounds, WARMUP_ROUNDS)
    memory = [worker.request(0) for worker in workers]
    command = f"python benchmarks/dqn.py {shlex.join(sys.argv[1:])}"
    note = f"{options.game}, acting and learning, {NUM_ENVS} games; "
    note += f"{' and '.join(f'{speed:.4g}' for speed in speeds)} steps per second"
    name, other = f"dqn rate {options.precision}", "Stable-Baselines3 in float32"
    if len(speeds) == 1:
        record(name, "steps per second", speeds[0], command=command, note=note)
        return
    record(name, f"relative throughput vs. {other}", speeds[0] / speeds[1], command=command, note=note)
    record(name, f"relative memory vs. {other}", memory[0] / memory[1], command=command, note=note)


def measure_buffer_memory(options: argparse.Namespace) -> None:
    """Measure the memory of a replay buffer with a million steps."""
    from fukami.reinforcement.replay import ReplayBuffer

    before = read_memory("VmRSS")
    buffer = ReplayBuffer(NUM_ENVS, (84, 84), 10**6 // NUM_ENVS)
    buffer.allocate(torch.device("cpu"))
    frames = torch.randint(0, 256, (NUM_ENVS, 84, 84), dtype=torch.uint8)
    for _ in range(buffer.num_slots):
        buffer.add(frames, torch.zeros(NUM_ENVS, dtype=torch.bool))
    gigabytes = (read_memory("VmRSS") - before) / 1e9
    steps = buffer.num_envs * buffer.num_slots
    record("dqn memory", "GB per million steps", gigabytes, command="python benchmarks/dqn.py memory",
           note=f"{steps:,} steps with the slack that a resumed run needs")  # fmt: skip


def run_ours(options: argparse.Namespace, pipe) -> None:
    """Train our DQN in a worker for the requested steps; send the steps per second, and finally the peak memory."""
    from fukami.engine.recipe import get_recipe
    from fukami.engine.runtime import Runtime

    before = read_memory("VmRSS")
    recipe = get_recipe("dqn")(
        env=options.game, num_envs=NUM_ENVS, steps=10**6, buffer_size=20_000, learning_starts=1_000, lr=1e-4,
        epsilon_start=0.02, epsilon_end=0.02,
    )  # fmt: skip
    runtime = Runtime.start(DEVICE, options.precision)
    torch.manual_seed(0)
    data = recipe.load_data()
    data.train.setup(runtime)
    task = recipe.build_task(data.labels)
    task.setup(runtime)
    task.prepare_training()
    batches, train_step = iter(task.iterate_batches(data.train)), runtime.capture(task.step, task.supports_cuda_graph)
    train_step(next(batches))
    while steps := pipe.recv():
        start = time.monotonic()
        for _ in range(steps // recipe.train_frequency):
            train_step(next(batches))
        if CUDA:
            torch.cuda.synchronize()
        pipe.send(steps / (time.monotonic() - start))
    pipe.send(torch.cuda.max_memory_allocated() if CUDA else read_memory("VmHWM") - before)


def run_stable_baselines3(options: argparse.Namespace, pipe) -> None:
    """Train the DQN of Stable-Baselines3 in a worker."""
    import ale_py
    import gymnasium
    from stable_baselines3 import DQN
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    before = read_memory("VmRSS")
    gymnasium.register_envs(ale_py)
    name = f"{''.join(word.capitalize() for word in options.game.split('_'))}NoFrameskip-v4"
    envs = VecFrameStack(make_atari_env(name, n_envs=NUM_ENVS, seed=0), n_stack=4)
    model = DQN("CnnPolicy", envs, learning_rate=1e-4, buffer_size=20_000, learning_starts=1_000, batch_size=32,
                train_freq=1, gradient_steps=1, target_update_interval=1_000, exploration_fraction=0.01,
                exploration_final_eps=0.02, max_grad_norm=math.inf, device=DEVICE, seed=0)  # fmt: skip
    model.learn(1_100)
    while steps := pipe.recv():
        start = time.monotonic()
        model.learn(steps, reset_num_timesteps=False)
        pipe.send(steps / (time.monotonic() - start))
    pipe.send(torch.cuda.max_memory_allocated() if CUDA else read_memory("VmHWM") - before)


def main() -> None:
    """Run the selected benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=[*COMMANDS, "rate", "memory"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--game", default="pong")
    parser.add_argument("--steps", type=int, help="Steps per round of rate (default 4,000), or of a training run.")
    parser.add_argument("--rounds", type=int, default=5, help="Number of timed rounds in rate.")
    parser.add_argument("--precision", help="Precision of ours; default: float32 in rate, auto in training.")
    parser.add_argument("--minutes", type=float, help="Training time; default: until the end of training.")
    parser.add_argument("--out", help="Folder for the runs; temporary by default.")
    options, options.more = parser.parse_known_args()
    options.weights = ""
    if options.benchmark == "rate":
        options.precision, options.steps = options.precision or "float32", options.steps or 4_000
    else:
        flags = {"--precision": options.precision, "--steps": options.steps}
        options.more += [argument for flag, value in flags.items() if value for argument in (flag, str(value))]
    {"rate": measure_throughput, "memory": measure_buffer_memory}.get(options.benchmark, train_and_record)(options)


if __name__ == "__main__":
    main()
