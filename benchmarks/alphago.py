"""AlphaGo and AlphaGo Zero: strength after a training of fixed length, matches, and the speed of self-play.

    python benchmarks/alphago.py connect4 OUT [--minutes 10] [--seeds 0 1 2] [OPTIONS]
    python benchmarks/alphago.py go OUT [--game go7] [--minutes 60] [--seeds 0] [OPTIONS]
    python benchmarks/alphago.py policy OUT --data GAMES [--seeds 0] [OPTIONS]
    python benchmarks/alphago.py match RUN [--games 200] [--simulations 64]
    python benchmarks/alphago.py solver RUN [--games 200]
    python benchmarks/alphago.py rates [--rounds 3] [--precision float32]
    python benchmarks/alphago.py cost OUT [--game connect4]

``connect4`` and ``go`` train from the command line, in folders of OUT: the command of a number of minutes is the one
that takes this long on two cores. A run that exists is continued. Connect Four: the fraction of optimal moves in the
positions of the test split, by the number of simulations. Go: the score against GNU Go level 1.

``policy`` trains the policy network on games in SGF files: the accuracy on other games and on those of AlphaGo, and the
rank of move 37 of its second game against Lee Sedol, file 00180.sgf of GAMES. ``match`` plays a run of Go against GNU
Go level 1, ``solver`` one of Connect Four against random optimal moves of the exact solver.

``rates`` counts the network evaluations per second of self-play with one thread: of ours, of the Monte Carlo tree
search of open_spiel (the one of its AlphaZero) and of a plain tree search in Python, in turn, all with the same network
and precision. The other two evaluate it in PyTorch without further optimization. ``cost`` measures positions per
second, where the time goes, and the memory. Results go to results.csv.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from common.processes import Worker, check_installed, measure_in_turn
from common.record import record, run_command, strip_folders, train_run
from fukami.data.formats import list_sgf_files
from fukami.data.sources import identify_source
from fukami.engine.load_run import load_task

CONNECT_FOUR = {  # options by minutes: on two cores with AVX2 for 10 and 60, with AVX-512 BF16 for 150
    10: "",
    60: "--positions 520000 --num-blocks 4 --num-channels 64",
    150: "--positions 1200000 --self-play-simulations 32 --num-blocks 5 --num-channels 64 --eval-every 200000",
}
GO_POSITIONS = {"go5": 16_500, "go7": 9_500, "go9": 5_400}  # per minute, evaluations included
NUM_GO_EVALUATIONS = 10
LEE_SEDOL_GAME, LEE_SEDOL_MOVE = "00180.sgf", 37
WARMUP_ROUNDS = 1
SEARCH_SIMULATIONS = 64  # of the compared tree searches
NUM_POSITIONS = 200  # searches per round of the compared tree searches; ours are of several positions each


def train(command: str, run: Path) -> tuple[dict, float]:
    """Train a run, or continue it; return its metrics and the seconds of the training, without the final test."""
    metrics, _ = train_run(command, run)
    return metrics, read_evaluations(run)[-1]["seconds"]


def read_evaluations(run: Path) -> list[dict]:
    """Read the evaluations during a training."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == "eval"]


def measure_connect_four(options: argparse.Namespace) -> None:
    """Train with each seed, and record the fractions of optimal moves and the learning curve."""
    for seed in options.seeds:
        fields = " ".join([CONNECT_FOUR[options.minutes], *options.more, f"--seed {seed}"])
        command = f"fukami train alphago-zero {fields.strip()}"
        run = options.out / f"connect4-{options.minutes}-seed-{seed}"
        name = f"alphago-zero connect4 {options.minutes} minutes"
        metrics, seconds = train(command, run)
        for line in read_evaluations(run):
            (simulations, value), *_ = line["sensible"].items()
            record(f"{name}, learning curve", f"optimal, sensible, {simulations} simulations", value, seed=seed,
                   seconds=line["seconds"], command=command, note=f"val; {line['count']:,} positions")  # fmt: skip
        for kind in ("sensible", "random", "play"):
            for simulations, value in metrics[kind].items():
                record(name, f"optimal, {kind}, {simulations} simulations", value, seed=seed, seconds=seconds,
                       command=command, note=f"test; {metrics['count']:,} positions of all kinds")  # fmt: skip


def measure_go(options: argparse.Namespace) -> None:
    """Train with each seed, and record the score against GNU Go and the learning curve."""
    for seed in options.seeds:
        positions = options.minutes * GO_POSITIONS[options.game]
        fields = f"--positions {positions} --eval-every {positions // NUM_GO_EVALUATIONS}"
        fields = " ".join([fields, *options.more, f"--seed {seed}"])
        command = f"fukami train alphago-zero --game {options.game} {fields}"
        run = options.out / f"{options.game}-{options.minutes}-seed-{seed}"
        metrics, seconds = train(command, run)
        name = f"alphago-zero {options.game} {options.minutes} minutes"
        for line in read_evaluations(run):
            record(f"{name}, learning curve", f"score, {line['simulations']} simulations", line["score"], seed=seed,
                   seconds=line["seconds"], command=command,
                   note=f"{line['count']} games against GNU Go level 1")  # fmt: skip
        note = f"{metrics['count']} games against GNU Go level 1; {describe_colors(metrics)}"
        record(name, f"score, {metrics['simulations']} simulations", metrics["score"], seed=seed, seconds=seconds,
               command=command, note=note)  # fmt: skip


def describe_colors(result: dict) -> str:
    """Describe the results of a match by color."""
    return " · ".join(
        "{}: {wins} wins, {draws} draws, {losses} losses".format(color, **result[side])
        for color, side in (("Black", "as_first"), ("White", "as_second"))
    )


def measure_policy(options: argparse.Namespace) -> None:
    """Train with each seed, and record the accuracy and the rank of move 37."""
    (game,) = (file for file in list_sgf_files(identify_source(str(options.data)).path) if file.name == LEE_SEDOL_GAME)
    for seed in options.seeds:
        fields = " ".join([f"--data {shlex.quote(str(options.data))}", *options.more, f"--seed {seed}"])
        command = f"fukami train alphago-policy {fields}"
        run = options.out / f"policy-seed-{seed}"
        _, seconds = train(command, run)
        metrics, _ = run_command(f"fukami eval {run}")
        context = {"seed": seed, "seconds": seconds, "command": strip_folders(shlex.split(command))}
        for name, part in (("games", metrics), ("AlphaGo's games", metrics["test_players"])):
            for metric in ("top1", "top5", "cross_entropy", "value_mse", "constant_mse", "winner_accuracy"):
                record("alphago-policy", f"{metric}, {name}", part[metric], note=f"test; {part['count']:,} positions",
                       **context)  # fmt: skip
        rows = {row["line"]: row for row in load_task(run).predict([game])}
        note = f"{rows[LEE_SEDOL_MOVE]['played']} in {LEE_SEDOL_GAME}, without search"
        record("alphago-policy", f"rank of move {LEE_SEDOL_MOVE}", rows[LEE_SEDOL_MOVE]["rank"], note=note, **context)
        ranks = [row["rank"] for row in rows.values() if "rank" in row]
        record("alphago-policy", f"moves ranked first in {LEE_SEDOL_GAME}", ranks.count(1) / len(ranks),
               note=f"{len(ranks)} positions, without search", **context)  # fmt: skip


def measure_match(options: argparse.Namespace) -> None:
    """Play against GNU Go."""
    command = f"fukami play {options.run} --against gnugo --games {options.games} --simulations {options.simulations}"
    result, seconds = run_command(command)
    record(f"{Path(options.run).name} on {result['game']} against GNU Go level 1",
           f"score, {options.simulations} simulations", result["score"], seconds=seconds,
           command=strip_folders(shlex.split(command)),
           note=f"{result['games']} games; {describe_colors(result)}")  # fmt: skip


def measure_solver(options: argparse.Namespace) -> dict:
    """Play against the solver; return the result of the match."""
    command = f"fukami play {options.run} --against solver --games {options.games} --simulations {options.simulations}"
    result, seconds = run_command(command)
    first = result["as_first"]
    total = sum(first.values())
    note = f"{total} games as first player: {first['wins']} wins, {first['draws']} draws, {first['losses']} losses"
    record(f"{Path(options.run).name} against the solver", f"wins as first player, {options.simulations} simulations",
           first["wins"] / total, seconds=seconds, command=strip_folders(shlex.split(command)), note=note)  # fmt: skip
    return result


def make_network(precision: str) -> tuple:
    """Make the task of the default network with random weights, and its plain evaluation in PyTorch."""
    from fukami.engine.runtime import Runtime
    from fukami.self_play.alphago_zero import AlphaGoZero

    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = AlphaGoZero()
    task = recipe.build_task(())
    for parameter in task.ema_model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    task.setup(Runtime.start("cpu", precision, num_threads=1))
    model = task.ema_model.eval()

    def evaluate(planes):
        with torch.inference_mode(), task.runtime.autocast():
            prediction = model(torch.from_numpy(planes))
            return prediction.policy.numpy(), prediction.value.numpy()

    return task, evaluate


def run_ours(precision: str, pipe) -> None:
    """Search the moves of self-play in groups; send the evaluations per second."""
    from fukami.self_play.search import CPU_GROUP_SIZE, SearchOptions, TreeSearch

    task, _ = make_network(precision)
    evaluate, counts = task.build_evaluate(), [0]

    def count_evaluations(planes):
        counts[0] += len(planes)
        return evaluate(planes)

    search = TreeSearch(task.game, count_evaluations, SearchOptions(SEARCH_SIMULATIONS), CPU_GROUP_SIZE)
    states = np.tile(task.game.build_initial_state(), (CPU_GROUP_SIZE, 1))
    rng = np.random.default_rng(0)
    while pipe.recv():
        counts[0], start = 0, time.perf_counter()
        for _ in range(NUM_POSITIONS // 8):
            states = task.game.play(states, search.search(states, rng=rng).moves)
            over = ~np.isnan(task.game.outcome(states))
            states[over] = task.game.build_initial_state()
        pipe.send(counts[0] / (time.perf_counter() - start))
    pipe.send(0)


def run_open_spiel(precision: str, pipe) -> None:
    """Search with open_spiel's tree search, whose evaluator calls the same network; send the evaluations per second."""
    import pyspiel
    from open_spiel.python.algorithms import mcts

    _, evaluate = make_network(precision)
    counts = [0]

    class NetworkEvaluator(mcts.Evaluator):
        def __init__(self):
            self.cache = {}

        def infer(self, state):
            key = state.history_str()
            if key not in self.cache:
                counts[0] += 1
                planes = np.array(state.observation_tensor(), np.float32).reshape(1, 3, 6, 7)  # own, opponent, empty
                logits, values = evaluate(planes[:, :2])
                policy = np.exp(logits[0] - logits[0].max())
                self.cache[key] = policy / policy.sum(), float(values[0])
            return self.cache[key]

        def evaluate(self, state):
            value = self.infer(state)[1]
            return np.array([value, -value]) * (1 if state.current_player() == 0 else -1)

        def prior(self, state):
            policy, _ = self.infer(state)
            return [(action, policy[action]) for action in state.legal_actions()]

    game = pyspiel.load_game("connect_four")
    evaluator = NetworkEvaluator()
    bot = mcts.MCTSBot(game, 1.25, SEARCH_SIMULATIONS, evaluator, solve=False, dirichlet_noise=(0.25, 1.0),
                       child_selection_fn=mcts.SearchNode.puct_value)  # fmt: skip
    while pipe.recv():
        counts[0], start, state = 0, time.perf_counter(), game.new_initial_state()
        evaluator.cache.clear()
        while time.perf_counter() - start < 10:
            state.apply_action(bot.step(state))
            if state.is_terminal():
                state = game.new_initial_state()
        pipe.send(counts[0] / (time.perf_counter() - start))
    pipe.send(0)


class PlainNode:
    """Node of a plain tree search."""

    def __init__(self, prior: float) -> None:
        self.prior, self.visits, self.value_sum, self.children = prior, 0, 0.0, {}


def run_plain(precision: str, pipe) -> None:
    """Search with a plain tree search in Python, one position at a time; send the evaluations per second."""
    task, evaluate = make_network(precision)
    game, count = task.game, 0

    def expand(node, state):
        nonlocal count
        count += 1
        logits, values = evaluate(game.planes(state))
        legal = np.flatnonzero(game.legal_moves(state)[0])
        policy = np.exp(logits[0, legal] - logits[0, legal].max())
        for move, prior in zip(legal, policy / policy.sum(), strict=True):
            node.children[int(move)] = PlainNode(float(prior))
        return float(values[0])

    def select(node):
        factor = 1.25 * math.sqrt(node.visits)

        def compute_score(item):
            child = item[1]
            value = -child.value_sum / child.visits if child.visits else 0
            return value + factor * child.prior / (1 + child.visits)

        return max(node.children.items(), key=compute_score)

    def search(state):
        root = PlainNode(1.0)
        expand(root, state)
        for _ in range(SEARCH_SIMULATIONS):
            path, node, current = [root], root, state
            while node.children:
                move, node = select(node)
                current = game.play(current, np.array([move]))
                path.append(node)
            outcome = float(game.outcome(current)[0])
            value = expand(node, current) if math.isnan(outcome) else outcome
            for visited in reversed(path):
                visited.visits += 1
                visited.value_sum += value
                value = -value
        return max(root.children, key=lambda move: root.children[move].visits)

    while pipe.recv():
        count, start, state = 0, time.perf_counter(), game.build_initial_state()[None]
        while time.perf_counter() - start < 10:
            state = game.play(state, np.array([search(state)]))
            if not np.isnan(game.outcome(state)[0]):
                state = game.build_initial_state()[None]
        pipe.send(count / (time.perf_counter() - start))
    pipe.send(0)


def measure_rates(options: argparse.Namespace) -> None:
    """Measure the evaluations per second of all searches in turn, each with one thread."""
    functions, names = [run_ours, run_plain], ["ours", "a plain search in Python"]
    if check_installed("pyspiel", "open_spiel"):
        functions.append(run_open_spiel)
        names.append("open_spiel's search")
    workers = [Worker(function, options.precision) for function in functions]
    speeds = measure_in_turn(workers, 1, options.rounds, WARMUP_ROUNDS)
    for worker in workers:
        worker.request(0)
    for name, speed in zip(names[1:], speeds[1:], strict=True):
        note = f"Connect Four, {SEARCH_SIMULATIONS} simulations, the same network, one thread; "
        note += f"{speeds[0]:.4g} and {speed:.4g} per second"
        metric = f"relative evaluations per second in {options.precision} vs. {name}"
        command = "python benchmarks/alphago.py rates"
        record("alphago-zero rates", metric, speeds[0] / speed,
               command=f"{command} --precision {options.precision} --rounds {options.rounds}", note=note,
               device="cpu")  # fmt: skip


def measure_cost(options: argparse.Namespace) -> None:
    """Measure the positions per second of a short training, the fractions of its phases, and the peak memory."""
    run = Path(options.out) / f"cost-{options.game}"
    fields = "--positions 40000 --learning-starts 10000 --eval-every 40000 --eval-games 2"
    command = f"fukami train alphago-zero --game {options.game} {fields}"
    code = f"import sys; sys.argv = {[*shlex.split(command), '--out', str(run)]!r}; " + (
        "from fukami.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
        "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    process = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    memory = 1024 * int(process.stdout.splitlines()[-1])
    phases = json.loads((run / "recipe.json").read_text())["time"]["seconds"]
    training = sum(phases[name] for name in ("data", "forward", "backward", "optimizer"))
    name = f"alphago-zero cost {options.game}"
    learning = 1 - phases["data"] / training
    note = f"40,000 positions in {training:.1f} s of self-play and learning"
    record(name, "positions per second", 40_000 / training, command=command, note=note)
    record(name, "fraction of the time in learning", learning, command=command, note=note)
    record(name, "peak memory in GB", memory / 1e9, command=command, note=note)


def main() -> None:
    """Run a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name in ("connect4", "go"):
        command = commands.add_parser(name)
        command.add_argument("out", type=Path)
        command.add_argument("--seeds", type=int, nargs="+", default=[0])
        if name == "connect4":
            command.add_argument("--minutes", type=int, choices=CONNECT_FOUR, default=10)
        else:
            command.add_argument("--minutes", type=int, default=60)
            command.add_argument("--game", choices=GO_POSITIONS, default="go7")
    policy = commands.add_parser("policy")
    policy.add_argument("out", type=Path)
    policy.add_argument("--data", type=Path, required=True)
    policy.add_argument("--seeds", type=int, nargs="+", default=[0])
    for name in ("match", "solver"):
        command = commands.add_parser(name)
        command.add_argument("run")
        command.add_argument("--games", type=int, default=200)
        command.add_argument("--simulations", type=int, default=64 if name == "match" else 800)
    rates = commands.add_parser("rates")
    rates.add_argument("--rounds", type=int, default=3)
    rates.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    cost = commands.add_parser("cost")
    cost.add_argument("out", type=Path)
    cost.add_argument("--game", default="connect4")
    options, options.more = parser.parse_known_args()
    if options.more and options.benchmark not in ("connect4", "go", "policy"):
        parser.error(f"unknown arguments: {shlex.join(options.more)}")
    functions = {
        "connect4": measure_connect_four, "go": measure_go, "policy": measure_policy, "match": measure_match,
        "solver": measure_solver, "rates": measure_rates, "cost": measure_cost,
    }  # fmt: skip
    functions[options.benchmark](options)


if __name__ == "__main__":
    main()
