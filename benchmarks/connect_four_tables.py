"""Compute the files of Connect Four that are part of the package: outcomes of the opening, evaluation positions.

    python benchmarks/connect_four_tables.py outcomes [--workers 2] [--out FILE]
    python benchmarks/connect_four_tables.py positions [--out FILE]

`outcomes` solves all positions of six stones, without the previous table. FILE.partial.npy contains what is solved; the
same command continues from it. `positions` plays games of random and of sensible players, selects at most one position
of each in which the outcomes of the moves differ, and solves it.
"""

import argparse
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fukami.self_play import connect_four_positions
from fukami.self_play import connect_four_solver as solver
from fukami.self_play.connect_four import ConnectFour, compute_keys, view_bitboards

UNSOLVED = 2
CHUNK = 8  # positions; a restart loses at most one chunk for each worker
SPLITS = {"val": 500, "test": 1000}  # positions of each kind
MIN_STONES, MAX_STONES = 10, 36
NUM_GAMES = 64  # played at the same time
GAME = ConnectFour()


def compute_outcomes(options):
    """Solve the positions of the table with several threads that share a transposition table."""
    out = options.out or solver.TABLE_FILE
    partial = out.with_name(out.name + ".partial.npy")
    positions = solver.enumerate_positions(solver.TABLE_STONES)
    outcomes = np.load(partial) if partial.exists() else np.full(len(positions), UNSOLVED, np.int8)
    transpositions = solver.build_transpositions(options.bits)
    no_table = np.empty(0, np.int64), np.empty(0, np.int8)
    chunks = [chunk for chunk in np.array_split(np.arange(len(positions)), len(positions) // CHUNK)
              if (outcomes[chunk] == UNSOLVED).any()]  # fmt: skip
    lock, start, num_solved = threading.Lock(), time.monotonic(), 0

    def solve_chunk(chunk):
        nonlocal num_solved
        solved = solver.solve_positions(positions[chunk], transpositions, *no_table)
        with lock:
            outcomes[chunk] = solved
            num_solved += len(chunk)
            write_file(partial, lambda file: np.save(file, outcomes))
            left = (outcomes == UNSOLVED).sum()
            seconds = time.monotonic() - start
            print(f"{len(outcomes) - left:,} of {len(outcomes):,} solved, {seconds / num_solved:.2f} s each, "
                  f"{left * seconds / num_solved / 60:.0f} minutes left", flush=True)  # fmt: skip

    with ThreadPoolExecutor(options.workers) as executor:
        list(executor.map(solve_chunk, chunks))
    values = np.pad(outcomes + 1, (0, -len(outcomes) % 4)).astype(np.uint8).reshape(-1, 4)
    packed = (values << np.arange(0, 8, 2, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    write_file(out, lambda file: file.write(packed.tobytes()))
    partial.unlink()
    losses, draws, wins = np.bincount(outcomes + 1, minlength=3)
    print(f"{out}: {wins:,} wins, {draws:,} draws and {losses:,} losses of the side to move")


def write_file(path, write):
    """Write a file that is complete whenever it exists."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        write(file)
    temporary.replace(path)


def find_wins(states):
    """Find the moves ``(N, 7)`` that win at once."""
    wins = np.zeros((len(states), GAME.num_moves), bool)
    games, moves = np.nonzero(GAME.legal_moves(states))
    wins[games, moves] = GAME.outcome(GAME.play(states[games], moves)) == -1
    return wins


def list_moves(states, kind):
    """List the moves ``(N, 7)`` that a player of a kind chooses from at random.

    A sensible player wins at once if it can, else blocks a win of the opponent.
    """
    legal = GAME.legal_moves(states)
    if kind == "random":
        return legal
    own, opponent = np.split(states, 2, axis=1)
    wins, blocks = find_wins(states), find_wins(np.concatenate([opponent, own], axis=1))
    is_win, is_block = wins.any(axis=1, keepdims=True), blocks.any(axis=1, keepdims=True)
    return np.where(is_win, wins, np.where(is_block, blocks, legal))


def play_games(kind, random):
    """Play games, and return the position of each at a random number of stones, unless it is over before."""
    states = np.repeat(GAME.build_initial_state()[None], NUM_GAMES, axis=0)
    stones = random.integers(MIN_STONES, MAX_STONES + 1, NUM_GAMES)
    selected = []
    for number in range(MAX_STONES + 1):
        selected.append(states[stones == number])
        moves = (list_moves(states, kind) * random.random((len(states), GAME.num_moves))).argmax(axis=1)
        states = GAME.play(states, moves)
        continues = np.isnan(GAME.outcome(states)) & (stones > number)
        states, stones = states[continues], stones[continues]
    return np.concatenate(selected)


def compute_positions(options):
    """Select the evaluation positions and find their optimal moves."""
    arrays, keys = {}, set()
    for seed, kind in enumerate(("random", "sensible")):
        random = np.random.default_rng(seed)
        positions = []
        while len(positions) < sum(SPLITS.values()):
            states = play_games(kind, random)
            optimal = solver.find_optimal_moves(states)
            differs = (optimal != GAME.legal_moves(states)).any(axis=1)
            for state, moves, key, is_valid in zip(
                states, optimal, compute_keys(view_bitboards(states)).tolist(), differs, strict=True
            ):
                if is_valid and key not in keys:
                    keys.add(key)
                    positions.append((state, moves))
            print(f"{kind}: {len(positions):,} positions", flush=True)
        start = 0
        for split, count in SPLITS.items():
            states, optimal = zip(*positions[start : start + count], strict=True)
            arrays[f"{split}_{kind}_states"], arrays[f"{split}_{kind}_optimal"] = np.stack(states), np.stack(optimal)
            start += count
    write_file(options.out or connect_four_positions.FILE, lambda file: np.savez_compressed(file, **arrays))


def main():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    outcomes = commands.add_parser("outcomes")
    outcomes.add_argument("--workers", type=int, default=2)
    outcomes.add_argument("--bits", type=int, default=24, help="entries of the transposition table: 2**BITS")
    outcomes.set_defaults(run=compute_outcomes)
    positions = commands.add_parser("positions")
    positions.set_defaults(run=compute_positions)
    for command in (outcomes, positions):
        command.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
