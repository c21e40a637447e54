"""Weights of another run for this one's groups and categories: rows of the embedding tables move by name."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Statistics
from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.tasks.tft_inputs import group_variable

TABLE = re.compile(r"embeddings/\w+/tables/(.+)")


def adapt(data: DataConfig, statistics: Statistics, params: Mapping[str, Any], other: Statistics) -> dict[str, Any]:
    """params of a run with the statistics `other`, with tables (1 + categories, H) for the categories of `statistics`.

    A category that the other run did not know starts as its unknown (row 0), which was trained with `unknown_dropout`.
    """
    found = dict(params)
    for path, values in params.items():
        match = TABLE.fullmatch(path)
        name = match and ("group_names" if match[1] == group_variable(data) else f"vocabulary/{match[1]}")
        if not name or name not in statistics or name not in other:
            continue
        table = np.asarray(values)
        place = {str(text): row for row, text in enumerate(other[name], 1)}
        found[path] = table[[0, *(place.get(str(text), 0) for text in statistics[name])]]
    return found
