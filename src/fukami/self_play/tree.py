"""Search trees of many games as arrays, and the compiled kernels of a simulation: selection, expansion and backup.

Sources: PUCT as in AlphaGo Zero (Silver et al. 2017, methods, "Search algorithm"); the rule for inner nodes, the
completed values and sequential halving of "Policy improvement by planning with Gumbel" (Danihelka et al. 2022); exact
outcomes of finished games are propagated to the parents as in "Monte-Carlo Tree Search Solver" (Winands et al. 2008).
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fukami.errors import require_extra

with require_extra("self-play", "the tree search"):
    from numba import njit

UNKNOWN = 2  # proof of a node whose outcome is not proven; otherwise -1, 0 or 1 for its side to move
VISIT_OFFSET = 50.0  # c_visit of Danihelka et al. 2022

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


class Tree(NamedTuple):
    """Trees of ``G`` games with at most ``M`` nodes each; node 0 is the root. ``A`` is the number of moves.

    Attributes:
        children: node after each move, ``(G, M, A)``; -1 if it is not expanded.
        visits: number of simulations through each move, ``(G, M, A)``.
        value_sums: sum of their values for the side to move, ``(G, M, A)``.
        log_priors: logarithm of the network's policy, ``(G, M, A)``; minus infinity for illegal moves.
        values: value of the network for the side to move, ``(G, M)``.
        proofs: proven outcome for the side to move, ``(G, M)``, or ``UNKNOWN``.
        parents, parent_moves: parent node and the move from it, ``(G, M)``.
        sizes: number of nodes, ``(G,)``.
        root_bonus: what selection at the root adds to the logarithm of the policy, ``(G, A)``: Gumbel noise.
        root_priors: policy at the root for PUCT, ``(G, A)``: with Dirichlet noise.
        start_visits: visits of the root's moves at the start of the search, ``(G, A)``.
    """

    children: Int32Array
    visits: Int32Array
    value_sums: Float32Array
    log_priors: Float32Array
    values: Float32Array
    proofs: npt.NDArray[np.int8]
    parents: Int32Array
    parent_moves: Int32Array
    sizes: Int32Array
    root_bonus: Float32Array
    root_priors: Float32Array
    start_visits: Int32Array


def create_tree(num_games: int, capacity: int, num_moves: int) -> Tree:
    """Create empty trees of ``capacity`` nodes."""
    edges, nodes, roots = (num_games, capacity, num_moves), (num_games, capacity), (num_games, num_moves)
    return Tree(
        np.full(edges, -1, np.int32),
        np.zeros(edges, np.int32),
        np.zeros(edges, np.float32),
        np.zeros(edges, np.float32),
        np.zeros(nodes, np.float32),
        np.full(nodes, UNKNOWN, np.int8),
        np.full(nodes, -1, np.int32),
        np.zeros(nodes, np.int32),
        np.zeros(num_games, np.int32),
        np.zeros(roots, np.float32),
        np.zeros(roots, np.float32),
        np.zeros(roots, np.int32),
    )


@njit(cache=True, nogil=True)
def get_move_value(tree, game, node, move):
    """Compute the value of a visited or proven move for the side to move: exact, or the mean of its simulations."""
    child = tree.children[game, node, move]
    if child >= 0 and tree.proofs[game, child] != UNKNOWN:
        return -np.float32(tree.proofs[game, child])
    return tree.value_sums[game, node, move] / tree.visits[game, node, move]


@njit(cache=True, nogil=True)
def mix_value(tree, game, node):
    """Compute the value of the moves that were not visited (Danihelka et al. 2022, appendix D, v_mix).

    It mixes the network's value of the node with the values of the visited moves, weighted by their policy.
    """
    total, prior_sum, weighted_sum = 0, 0.0, 0.0
    for move in range(tree.visits.shape[2]):
        count = tree.visits[game, node, move]
        if count > 0:
            prior = math.exp(tree.log_priors[game, node, move])
            total += count
            prior_sum += prior
            weighted_sum += prior * get_move_value(tree, game, node, move)
    value = tree.values[game, node]
    if total == 0 or prior_sum <= 0.0:
        return value
    return (value + total * weighted_sum / prior_sum) / (1 + total)


@njit(cache=True, nogil=True)
def improve_logits(tree, game, node, value_scale, logits):
    """Write the logits of the improved policy: log policy + sigma(completed value) (Danihelka et al. 2022, eq. 11).

    sigma(q) = (c_visit + largest number of visits) · c_scale · q with values q in 0..1. Illegal moves and, unless all
    moves are, moves that are proven to lose are minus infinity. Returns the number of visits of all moves.
    """
    mixed_value = mix_value(tree, game, node)
    num_moves = tree.visits.shape[2]
    max_visits, total = 0, 0
    for move in range(num_moves):
        total += tree.visits[game, node, move]
        max_visits = max(max_visits, tree.visits[game, node, move])
    scale = (VISIT_OFFSET + max_visits) * value_scale
    is_open = False
    for move in range(num_moves):
        logits[move] = tree.log_priors[game, node, move]
        if logits[move] > -np.inf:
            value = get_move_value(tree, game, node, move) if tree.visits[game, node, move] > 0 else mixed_value
            logits[move] += scale * (value + 1) / 2
            is_open = is_open or not is_proven_loss(tree, game, node, move)
    if is_open:
        for move in range(num_moves):
            if is_proven_loss(tree, game, node, move):
                logits[move] = -np.inf
    return total


@njit(cache=True, nogil=True)
def is_proven_loss(tree, game, node, move):
    """Return whether a move is proven to lose."""
    child = tree.children[game, node, move]
    return child >= 0 and tree.proofs[game, child] == 1


@njit(cache=True, nogil=True)
def apply_softmax(logits):
    """Replace logits by their softmax."""
    largest = logits.max()
    total = 0.0
    for index in range(len(logits)):
        logits[index] = math.exp(logits[index] - largest)
        total += logits[index]
    logits /= total


@njit(cache=True, nogil=True)
def select_inner_move(tree, game, node, value_scale, c_puct, logits):
    """Select the move of a simulation below the root.

    With ``c_puct`` by PUCT; otherwise the one that brings the visits closest to the improved policy (Danihelka et al.
    2022, equation 14).
    """
    if c_puct > 0:
        for move in range(len(logits)):
            logits[move] = math.exp(tree.log_priors[game, node, move])
        return select_by_puct(tree, game, node, c_puct, logits)
    total = improve_logits(tree, game, node, value_scale, logits)
    apply_softmax(logits)
    best, best_score = 0, -np.inf
    for move in range(len(logits)):
        score = logits[move] - tree.visits[game, node, move] / (1 + total)
        if score > best_score and tree.log_priors[game, node, move] > -np.inf:
            best, best_score = move, score
    return best


@njit(cache=True, nogil=True)
def select_by_puct(tree, game, node, c_puct, priors):
    """Select the move of greatest Q + U, U = c_puct · P · sqrt(1 + visits of all) / (1 + visits) (Silver et al. 2017).

    Q of a move without visits is the mixed value of its position.
    """
    mixed_value = mix_value(tree, game, node)
    total = 1
    for move in range(len(priors)):
        total += tree.visits[game, node, move]
    factor = c_puct * math.sqrt(total)
    best, best_score = -1, -np.inf
    for move in range(len(priors)):
        if tree.log_priors[game, node, move] == -np.inf:
            continue
        visits = tree.visits[game, node, move]
        value = get_move_value(tree, game, node, move) if visits > 0 else mixed_value
        score = value + factor * priors[move] / (1 + visits)
        if is_proven_loss(tree, game, node, move):
            score -= 1000.0
        if best < 0 or score > best_score:
            best, best_score = move, score
    return best


@njit(cache=True, nogil=True)
def select_root_move(tree, game, considered_visits, value_scale, c_puct, logits):
    """Select the move of a simulation at the root: by PUCT, or by sequential halving.

    Sequential halving selects among the moves with ``considered_visits`` visits since the start of the search the one
    of greatest Gumbel noise + log policy + sigma(completed value).
    """
    if c_puct > 0:
        return select_by_puct(tree, game, 0, c_puct, tree.root_priors[game])
    improve_logits(tree, game, 0, value_scale, logits)
    best, best_score, best_distance = -1, -np.inf, 0
    for move in range(len(logits)):
        if logits[move] == -np.inf:
            continue
        distance = abs(tree.visits[game, 0, move] - tree.start_visits[game, move] - considered_visits)
        score = logits[move] + tree.root_bonus[game, move]
        if best < 0 or distance < best_distance or (distance == best_distance and score > best_score):
            best, best_score, best_distance = move, score, distance
    return best


@njit(cache=True, nogil=True)
def select_leaves(tree, games, considered_visits, value_scale, c_puct, leaves, leaf_moves):
    """Run the selection of one simulation in each of the ``games`` ``(n,)``.

    Writes the node and the move that should be expanded, or -1 for a simulation that ended at a proven node, whose
    value is already backed up.
    """
    logits = np.empty(tree.visits.shape[2], np.float32)
    for index in range(len(games)):
        game = games[index]
        node = 0
        move = select_root_move(tree, game, considered_visits[index], value_scale, c_puct, logits)
        while True:
            child = tree.children[game, node, move]
            if child < 0:
                leaves[index], leaf_moves[index] = node, move
                break
            if tree.proofs[game, child] != UNKNOWN:
                leaves[index] = -1
                back_up(tree, game, child, np.float32(tree.proofs[game, child]))
                break
            node = child
            move = select_inner_move(tree, game, node, value_scale, c_puct, logits)


@njit(cache=True, nogil=True)
def back_up(tree, game, node, value):
    """Add the value of a node for its side to move to the moves that lead to it, and propagate its proof."""
    while node > 0:
        parent, move = tree.parents[game, node], tree.parent_moves[game, node]
        if tree.proofs[game, node] != UNKNOWN:
            prove(tree, game, parent, tree.proofs[game, node])
        value = -value
        tree.visits[game, parent, move] += 1
        tree.value_sums[game, parent, move] += value
        if tree.proofs[game, parent] != UNKNOWN:
            value = np.float32(tree.proofs[game, parent])
        node = parent


@njit(cache=True, nogil=True)
def prove(tree, game, node, child_proof):
    """Set the proof of a node after that of a child: a win, or the best outcome if all moves are proven."""
    if tree.proofs[game, node] != UNKNOWN:
        return
    if child_proof == -1:
        tree.proofs[game, node] = 1
        return
    best = -1
    for move in range(tree.visits.shape[2]):
        if tree.log_priors[game, node, move] == -np.inf:
            continue
        child = tree.children[game, node, move]
        if child < 0 or tree.proofs[game, child] == UNKNOWN:
            return
        best = max(best, -tree.proofs[game, child])
    tree.proofs[game, node] = best


@njit(cache=True, nogil=True)
def add_nodes(tree, games, leaves, leaf_moves, outcomes, legal, logits, values):
    """Expand a node in each of the ``games`` ``(n,)``, and back up its value; -1 as leaf replaces the root.

    Args:
        tree: the trees.
        games: games to expand.
        leaves, leaf_moves: parent and move of the new node.
        outcomes: outcome for the side to move; NaN if the game is not over.
        legal: legal moves, ``(n, A)``.
        logits, values: prediction of the network, not used where the game is over.

    Returns:
        The new nodes ``(n,)``.
    """
    nodes = np.empty(len(games), np.int32)
    for index in range(len(games)):
        game = games[index]
        if leaves[index] < 0:
            tree.sizes[game] = 0
        node = tree.sizes[game]
        nodes[index] = node
        tree.sizes[game] += 1
        tree.children[game, node] = -1
        tree.visits[game, node] = 0
        tree.value_sums[game, node] = 0
        tree.parents[game, node], tree.parent_moves[game, node] = leaves[index], leaf_moves[index]
        if leaves[index] >= 0:
            tree.children[game, leaves[index], leaf_moves[index]] = node
        if not math.isnan(outcomes[index]):
            tree.proofs[game, node] = round(outcomes[index])
            tree.values[game, node] = outcomes[index]
            tree.log_priors[game, node] = -np.inf
        else:
            tree.proofs[game, node] = UNKNOWN
            tree.values[game, node] = values[index]
            set_log_priors(tree.log_priors[game, node], legal[index], logits[index])
        if node > 0:
            back_up(tree, game, node, tree.values[game, node])
    return nodes


@njit(cache=True, nogil=True)
def set_log_priors(log_priors, legal, logits):
    """Write the logarithm of the softmax over the legal moves."""
    largest = -np.inf
    for move in range(len(legal)):
        if legal[move]:
            largest = max(largest, logits[move])
    total = 0.0
    for move in range(len(legal)):
        if legal[move]:
            total += math.exp(logits[move] - largest)
    log_total = largest + math.log(total)
    for move in range(len(legal)):
        log_priors[move] = logits[move] - log_total if legal[move] else -np.inf


@njit(cache=True, nogil=True)
def move_root(tree, game, root, states):
    """Make the subtree of a node the tree of its game, and free the other nodes."""
    size = tree.sizes[game]
    new_index = np.full(size, -1, np.int32)
    new_index[root] = 0
    count = 1
    for node in range(root + 1, size):  # a child has a larger index than its parent
        parent = tree.parents[game, node]
        if parent >= 0 and new_index[parent] >= 0:
            new_index[node] = count
            count += 1
    for node in range(root, size):
        target = new_index[node]
        if target < 0:
            continue
        states[game, target] = states[game, node]
        for move in range(tree.children.shape[2]):
            child = tree.children[game, node, move]
            tree.children[game, target, move] = -1 if child < 0 else new_index[child]
        tree.visits[game, target] = tree.visits[game, node]
        tree.value_sums[game, target] = tree.value_sums[game, node]
        tree.log_priors[game, target] = tree.log_priors[game, node]
        tree.values[game, target] = tree.values[game, node]
        tree.proofs[game, target] = tree.proofs[game, node]
        tree.parents[game, target] = -1 if target == 0 else new_index[tree.parents[game, node]]
        tree.parent_moves[game, target] = tree.parent_moves[game, node]
    tree.sizes[game] = count


@njit(cache=True, nogil=True)
def summarize_roots(tree, games, value_scale, c_puct, policies, values, moves):
    """Write the improved policies ``(n, A)``, the values ``(n,)`` and the best moves ``(n,)`` of the roots.

    With PUCT the policy is the fraction of visits, without those of moves that are proven to lose. The best move has
    the most visits, with sequential halving since the start of the search, and among these the greatest noise + logit
    of the improved policy. A proven root has its exact value, and the policy is only on its best moves.
    """
    logits = np.empty(tree.visits.shape[2], np.float32)
    for index in range(len(games)):
        game = games[index]
        total = improve_logits(tree, game, 0, value_scale, logits)
        proof = tree.proofs[game, 0]
        if proof != UNKNOWN and total > 0:
            for move in range(len(logits)):
                child = tree.children[game, 0, move]
                if child < 0 or tree.proofs[game, child] != -proof:
                    logits[move] = -np.inf
        best, most, num_counted = -1, -1, 0
        policies[index] = 0
        for move in range(len(logits)):
            if logits[move] == -np.inf:
                continue
            visits = tree.visits[game, 0, move]
            policies[index, move] = visits
            num_counted += visits
            if c_puct <= 0:
                visits -= tree.start_visits[game, move]
            score = logits[move] + tree.root_bonus[game, move]
            if visits > most or (visits == most and score > logits[best] + tree.root_bonus[game, best]):
                best, most = move, visits
        moves[index] = best
        apply_softmax(logits)
        weighted_value = np.float32(0)
        mixed_value = mix_value(tree, game, 0)
        for move in range(len(logits)):
            if logits[move] > 0:
                visited = tree.visits[game, 0, move] > 0
                weighted_value += logits[move] * (get_move_value(tree, game, 0, move) if visited else mixed_value)
        values[index] = weighted_value if proof == UNKNOWN else proof
        if c_puct > 0 and proof == UNKNOWN and num_counted > 0:
            policies[index] /= num_counted
            values[index] = mixed_value
        else:
            policies[index] = logits
