"""Road graphs: weights from files, and the neighbour lists that the model reads.

weights (N, N) float32: weights[i, j] > 0 is an edge i -> j in travel direction; the diagonal is ignored.
"""

import numpy as np

from jaxtrain.data.dataset import Statistics

SELF, UPSTREAM, DOWNSTREAM, BOTH, NONE = range(5)


def edge_weights(edges: np.ndarray, nodes: int) -> np.ndarray:
    """(N, N) with 1 on each of the edges (E, 2)."""
    weights = np.zeros((nodes, nodes), np.float32)
    weights[edges[:, 0], edges[:, 1]] = 1
    return weights


def head_to_tail(pairs: np.ndarray) -> np.ndarray:
    """Links (E, 2) between directed edges pairs (N, 2): a -> b leads into b -> c."""
    leaving: dict[str, list[int]] = {}
    for index, (tail, _) in enumerate(pairs):
        leaving.setdefault(tail, []).append(index)
    links = [(i, j) for i, (_, head) in enumerate(pairs) for j in leaving.get(head, []) if i != j]
    return np.array(links, np.int64).reshape(-1, 2)


def neighbor_lists(weights: np.ndarray, directed: bool, max_neighbors: int) -> tuple[Statistics, int]:
    """Padded neighbour lists and the number of neighbours dropped because a node has more than `max_neighbors`.

    neighbors (N, D) int32, slot 0 the node itself, then its neighbours in node order, unused slots the node itself;
    relation (N, D) int32: 1 the neighbour is upstream (it feeds the node), 2 downstream, 3 both, 4 unused;
    neighbor_weight (N, D) float32; neighbor_mask (N, D) bool. directed: upstream neighbours only. D is the largest
    degree + 1. The largest weights are kept.
    """
    nodes = len(weights)
    feeds, fed = (weights.T > 0), (weights > 0)
    relation = np.select([feeds & fed, feeds, fed], [BOTH, UPSTREAM, DOWNSTREAM], NONE)
    if directed:
        relation = np.where(feeds, relation, NONE)
    np.fill_diagonal(relation, NONE)
    strength = weights.T if directed else np.maximum(weights.T, weights)
    dropped = 0
    lists = []
    for i in range(nodes):
        near = np.flatnonzero(relation[i] != NONE)
        if len(near) > max_neighbors:
            dropped += len(near) - max_neighbors
            near = np.sort(near[np.argsort(-strength[i, near], kind="stable")[:max_neighbors]])
        lists.append(near)
    depth = 1 + max(len(near) for near in lists)
    neighbors = np.repeat(np.arange(nodes, dtype=np.int32)[:, None], depth, axis=1)
    relations = np.full((nodes, depth), NONE, np.int32)
    weight = np.ones((nodes, depth), np.float32)
    relations[:, 0] = SELF
    for i, near in enumerate(lists):
        neighbors[i, 1 : len(near) + 1] = near
        relations[i, 1 : len(near) + 1] = relation[i, near]
        weight[i, 1 : len(near) + 1] = strength[i, near]
    lists_found: Statistics = {
        "neighbors": neighbors, "relation": relations, "neighbor_weight": weight, "neighbor_mask": relations != NONE,
    }  # fmt: skip
    return lists_found, dropped
