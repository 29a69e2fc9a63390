"""Tree search of many games in parallel, so that the network evaluates large batches."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from fukami.errors import Error
from fukami.layers.ensemble import average_log_probs
from fukami.self_play import tree as kernels
from fukami.self_play.game import Game, Moves, States, Symmetries
from fukami.self_play.tree import UNKNOWN, Float32Array, Int32Array

Item = TypeVar("Item")
Result = TypeVar("Result")
CPU_GROUP_SIZE, GPU_GROUP_SIZE = 64, 512  # games whose leaves are one batch of the network
DIRICHLET_FRACTION = 0.25  # of the noise in the root's policy (Silver et al. 2017, methods)
MAX_TREE_BYTES = 2**30  # of the trees of such a group, unless one tree alone has more
Evaluate = Callable[[Float32Array], tuple[Float32Array, Float32Array]]  # planes to logits (N, A) and values (N,)


@dataclass(frozen=True)
class SearchOptions:
    """Options of the tree search.

    Attributes:
        simulations: simulations per move; 0: the network alone.
        max_considered_moves: moves that sequential halving considers at the root.
        value_scale: c_scale of Danihelka et al. 2022, the weight of values relative to the policy.
        c_puct: exploration constant of PUCT (Silver et al. 2017); 0: the Gumbel root instead.
        dirichlet_alpha: noise of the root's policy with PUCT, for exploration.
    """

    simulations: int = 16
    max_considered_moves: int = 16
    value_scale: float = 1.0
    c_puct: float = 0.0
    dirichlet_alpha: float = 1.0


class SearchResult(NamedTuple):
    """Result of a search in ``N`` positions; values are for the side to move.

    Attributes:
        moves: best moves, ``(N,)``.
        policies: improved policies, ``(N, A)``.
        visits: simulations through each move, ``(N, A)``.
        values: values after the search, -1..1, ``(N,)``.
        is_proven: whether the value is the proven outcome, ``(N,)``.
        network_policies, network_values: prediction of the network, ``(N, A)`` and ``(N,)``.
    """

    moves: Moves
    policies: Float32Array
    visits: Int32Array
    values: Float32Array
    is_proven: npt.NDArray[np.bool_]
    network_policies: Float32Array
    network_values: Float32Array

    def select(self, index: int) -> "SearchResult":
        """Return the result in one of the positions, as a batch of one."""
        return SearchResult._make(column[index : index + 1] for column in self)


class TreeSearch:
    """Trees of a number of games, searched in lockstep.

    Args:
        game: the rules.
        evaluate: the network.
        options: options of the search.
        num_games: number of games.
    """

    def __init__(self, game: Game, evaluate: Evaluate, options: SearchOptions, num_games: int) -> None:
        self.game, self.evaluate, self.options, self.num_games = game, evaluate, options, num_games
        self.capacity = get_capacity(options.simulations)
        self.tree = kernels.create_tree(num_games, self.capacity, game.num_moves)
        self.states = np.zeros((num_games, self.capacity, len(game.build_initial_state())), np.uint8)

    def search(
        self,
        states: States,
        simulations: npt.NDArray[np.int64] | None = None,
        rng: np.random.Generator | None = None,
        explores: npt.NDArray[np.bool_] | None = None,
    ) -> SearchResult:
        """Search from positions ``(N, S)`` that are not over, N at most the number of games.

        Args:
            states: the positions.
            simulations: simulations in each, at most those of the options ``(N,)``.
            rng: generator of the exploration noise; None: no noise.
            explores: where there is noise, ``(N,)``; None: everywhere.
        """
        count = len(states)
        games = np.arange(count)
        self._set_roots(games, states)
        limits = np.full(count, self.options.simulations) if simulations is None else simulations
        return self._run(games, limits, rng, np.ones(count, bool) if explores is None else explores)

    def continue_search(self, states: States, moves: "list[list[int]]") -> SearchResult:
        """Search from positions as :meth:`search` without noise, and reuse the subtrees of the last search.

        Args:
            states: the positions, which follow from those of the last search.
            moves: the moves between them, per position.
        """
        games = np.arange(len(states))
        is_new = np.array([not self._reuse_subtree(game, played) for game, played in enumerate(moves)])
        self._set_roots(games[is_new], states[is_new])
        return self._run(games, np.full(len(states), self.options.simulations), None, np.zeros(len(states), bool))

    def _set_roots(self, games: npt.NDArray[np.int64], states: States) -> None:
        """Start new trees from positions."""
        self._expand(games, np.full(len(games), -1, np.int32), np.zeros(len(games), np.int32), states)

    def _reuse_subtree(self, game: int, moves: list[int]) -> bool:
        """Make the node after ``moves`` the root, if it exists and there is room for the next simulations."""
        node = 0 if self.tree.sizes[game] else -1
        for move in moves:
            node = int(self.tree.children[game, node, move]) if node >= 0 else -1
        if node < 0:
            return False
        if node > 0:
            kernels.move_root(self.tree, game, node, self.states)
        return int(self.tree.sizes[game]) + self.options.simulations <= self.capacity

    def _run(
        self,
        games: npt.NDArray[np.int64],
        limits: npt.NDArray[np.int64],
        rng: np.random.Generator | None,
        explores: npt.NDArray[np.bool_],
    ) -> SearchResult:
        """Run the simulations, and summarize the roots."""
        options, tree, count = self.options, self.tree, len(games)
        legal = tree.log_priors[games, 0] > -np.inf
        tree.start_visits[games] = tree.visits[games, 0]
        self._set_noise(games, legal, rng, explores)
        num_considered = np.minimum(legal.sum(1), options.max_considered_moves)
        if not num_considered.all():
            raise Error(f"{self.game.name} has no legal move in a position without an outcome; its rules are invalid")
        schedules = np.stack(
            [schedule_visits(int(m), int(n), options.simulations) for m, n in zip(num_considered, limits, strict=True)]
        )
        leaves, leaf_moves = np.empty(count, np.int32), np.empty(count, np.int32)
        for simulation in range(options.simulations):
            is_active = (simulation < limits) & (tree.proofs[games, 0] == UNKNOWN)
            active = games[is_active]
            if not len(active):
                break
            kernels.select_leaves(
                tree, active, schedules[is_active, simulation], options.value_scale, options.c_puct, leaves, leaf_moves
            )
            is_leaf = leaves[: len(active)] >= 0
            if is_leaf.any():
                parents, moves = leaves[: len(active)][is_leaf], leaf_moves[: len(active)][is_leaf]
                expanded = active[is_leaf]
                states = self.game.play(self.states[expanded, parents], moves.astype(np.int64))
                self._expand(expanded, parents, moves, states)
        return self.summarize(games)

    def summarize(self, games: npt.NDArray[np.int64]) -> SearchResult:
        """Summarize the roots of games."""
        options, tree, count = self.options, self.tree, len(games)
        policies, values = np.empty((count, self.game.num_moves), np.float32), np.empty(count, np.float32)
        best_moves = np.empty(count, np.int64)
        kernels.summarize_roots(tree, games, options.value_scale, options.c_puct, policies, values, best_moves)
        return SearchResult(
            best_moves,
            policies,
            tree.visits[games, 0].copy(),
            values,
            tree.proofs[games, 0] != UNKNOWN,
            np.exp(tree.log_priors[games, 0]),
            tree.values[games, 0].copy(),
        )

    def _expand(self, games: npt.NDArray[np.int64], parents: Int32Array, moves: Int32Array, states: States) -> None:
        """Add nodes with these states, evaluated by the network where the game is not over."""
        if not len(games):
            return
        outcomes = self.game.outcome(states)
        legal = self.game.legal_moves(states)
        logits, values = np.zeros(legal.shape, np.float32), np.zeros(len(states), np.float32)
        is_open = np.isnan(outcomes)
        if is_open.all():
            logits, values = self.evaluate(self.game.planes(states))
        elif is_open.any():
            logits[is_open], values[is_open] = self.evaluate(self.game.planes(states[is_open]))
        if not (np.isfinite(logits).all() and np.isfinite(values).all()):
            raise Error("the network predicts values that are not finite; use other weights, or --precision float32")
        nodes = kernels.add_nodes(self.tree, games, parents, moves, outcomes, legal, logits, values)
        self.states[games, nodes] = states

    def _set_noise(
        self,
        games: npt.NDArray[np.int64],
        legal: npt.NDArray[np.bool_],
        rng: np.random.Generator | None,
        explores: npt.NDArray[np.bool_],
    ) -> None:
        """Set the exploration noise of the roots: Gumbel, or Dirichlet with PUCT."""
        options, tree = self.options, self.tree
        priors = np.exp(tree.log_priors[games, 0])
        tree.root_bonus[games], tree.root_priors[games] = 0, priors
        if rng is None:
            return
        if options.c_puct:
            gammas = np.where(legal, rng.gamma(options.dirichlet_alpha, size=legal.shape), 0) + 1e-12 * legal
            noise = gammas / gammas.sum(1, keepdims=True)
            mixed = (1 - DIRICHLET_FRACTION) * priors + DIRICHLET_FRACTION * noise
            tree.root_priors[games] = np.where(explores[:, None], mixed, priors)
        else:
            tree.root_bonus[games] = np.where(explores[:, None], rng.gumbel(size=legal.shape), 0)


def build_symmetric_evaluate(evaluate: Evaluate, symmetries: Symmetries) -> Evaluate:
    """Build the function that averages the predictions of a network over the symmetries of the board.

    The averages are those of the probabilities of the moves, whose logarithms it returns as logits, and of the values
    (Silver et al. 2016, methods, "Symmetries").
    """
    inverse_moves = torch.from_numpy(np.argsort(symmetries.moves, axis=1))
    num_symmetries = len(inverse_moves)

    def evaluate_symmetries(planes: Float32Array) -> tuple[Float32Array, Float32Array]:
        cells = planes.reshape(*planes.shape[:2], -1)[..., symmetries.cells]
        boards = np.moveaxis(cells, 2, 0).reshape(-1, *planes.shape[1:])
        logits, values = evaluate(boards)
        log_policies = torch.from_numpy(logits).log_softmax(1).view(num_symmetries, len(planes), -1)
        log_policies = log_policies.gather(2, inverse_moves[:, None].expand_as(log_policies))
        return average_log_probs(log_policies).numpy(), values.reshape(num_symmetries, -1).mean(0)

    return evaluate_symmetries


def get_capacity(simulations: int) -> int:
    """Return the number of nodes of a tree: a reused subtree may be as large as a search."""
    return 2 * (1 + simulations)


def limit_group_size(size: int, game: Game, simulations: int) -> int:
    """Return how many of ``size`` games can be searched in parallel with trees of at most ``MAX_TREE_BYTES``."""
    node_bytes = len(game.build_initial_state()) + 16 * game.num_moves  # the arrays of the moves have 4 bytes each
    return max(1, min(size, MAX_TREE_BYTES // (get_capacity(simulations) * node_bytes)))


def get_group_size(device: torch.device) -> int:
    """Return how many games a tree search has whose network is on a device."""
    return CPU_GROUP_SIZE if device.type == "cpu" else GPU_GROUP_SIZE


def map_groups(function: Callable[[Item], Result], groups: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """Yield the results of a function for groups of games, on a CPU in parallel threads."""
    num_threads = torch.get_num_threads()
    if device.type != "cpu" or num_threads == 1 or len(groups) == 1:
        yield from map(function, groups)
        return
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, groups)
    finally:
        torch.set_num_threads(num_threads)


@lru_cache(maxsize=4096)
def schedule_visits(num_considered: int, simulations: int, length: int) -> Int32Array:
    """Return for each simulation the number of visits of the moves among which sequential halving selects.

    The best half of the moves remains after each phase, and each phase has the same number of simulations (Danihelka
    et al. 2022, section 3.4; Karnin et al. 2013). The result ``(length,)`` is padded with 0.
    """
    sequence: list[int] = []
    num_phases = max(1, (num_considered - 1).bit_length())
    visits = 0
    remaining = num_considered
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (num_phases * max(remaining, 1)))):
            sequence += [visits] * remaining
            visits += 1
        remaining = max(min(2, num_considered), remaining // 2)
    return np.array([*sequence[:simulations], *[0] * (length - simulations)], np.int32)
