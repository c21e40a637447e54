"""The `edges` layout: one row per directed road edge and snapshot, turned into one series per junction or segment."""

from dataclasses import dataclass

import numpy as np

from jaxtrain.data.traffic_config import DataConfig
from jaxtrain.data.traffic_graph import edge_weights, head_to_tail
from jaxtrain.data.traffic_series import Series, check_speeds
from jaxtrain.data.traffic_tables import Table, read_table
from jaxtrain.data.traffic_time import snap, span

REQUIRED = ("timestamp", "node_a_id", "node_b_id", "speed_kmh")
WEATHER = ("temperature_c", "wind_speed_kmh", "precipitation_mm")
PLACES = ("lat_a", "lon_a", "lat_b", "lon_b")
ARROW = "->"  # between the two ids of a segment


@dataclass(frozen=True)
class Readings:
    """M readings of E directed edges between J junctions, placed on R rows."""

    time: np.ndarray  # (R,)
    row: np.ndarray  # (M,)
    edge: np.ndarray  # (M,)
    speed: np.ndarray  # (M,) float64, NaN = none
    junctions: np.ndarray  # (J,) unicode, sorted
    edges: np.ndarray  # (E, 2) junction numbers, sorted


def read_edges(config: DataConfig, path: str) -> Series:
    """A series per junction (aggregate mean or last) or per directed edge (segment)."""
    table = read_table(path, (*REQUIRED, "run_id", *WEATHER, *PLACES), REQUIRED, config.timezone)
    readings = _readings(config, table)
    junction_places = _junction_places(table, readings)
    weather = _weather(table, readings)
    names = readings.junctions[readings.edges]
    if config.aggregate == "segment":
        ids = np.array([f"{a}{ARROW}{b}" for a, b in names])
        weights = edge_weights(head_to_tail(names), len(ids))
        middles = None if junction_places is None else junction_places[readings.edges].mean(axis=1)
        return Series(readings.time, _edge_means(readings), ids, True, weights, weather, middles, names)
    speed = _last_readings(readings) if config.aggregate == "last" else _junction_means(readings)
    weights = edge_weights(readings.edges, len(readings.junctions))
    return Series(readings.time, speed, readings.junctions, True, weights, weather, junction_places)


def _readings(config: DataConfig, table: Table) -> Readings:
    stamps = table.stamps("timestamp", config.timezone)
    a, b = table.texts("node_a_id"), table.texts("node_b_id")
    speed = table.numbers("speed_kmh")
    if config.null_value is not None:
        speed[speed == config.null_value] = np.nan
    check_speeds(table.path, speed[:, None], config.max_value, table.label, lambda _: "speed_kmh")
    junctions, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    edges, edge = np.unique(codes.reshape(2, -1).T, axis=0, return_inverse=True)
    time, row = _rows(config, table, stamps)
    return Readings(time, row, edge.ravel(), speed, junctions, edges)


def _rows(config: DataConfig, table: Table, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(time of each grid row, grid row of each reading)."""
    if config.grid == "regular":
        snapped = snap(stamps, config.step_seconds)
        time = span(snapped.min(), snapped.max(), config.step_seconds)
        return time, (snapped - time[0]) // config.step_seconds
    snapshot = table.texts("run_id") if "run_id" in table.columns else stamps
    runs, row = np.unique(snapshot, return_inverse=True)
    time = np.full(len(runs), np.iinfo(np.int64).max)
    np.minimum.at(time, row, stamps)
    return time, row


def _mean_by(cell: np.ndarray, values: np.ndarray, cells: int) -> np.ndarray:
    """(cells,) mean of the values that are not NaN, NaN where there is none."""
    known = np.isfinite(values)
    count = np.bincount(cell[known], minlength=cells)
    total = np.bincount(cell[known], weights=values[known], minlength=cells)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _edge_means(readings: Readings) -> np.ndarray:
    """(R, E) float32: mean of an edge's readings in each row."""
    shape = len(readings.time), len(readings.edges)
    return _mean_by(readings.row * shape[1] + readings.edge, readings.speed, shape[0] * shape[1]).reshape(shape).astype(np.float32)


def _junction_means(readings: Readings) -> np.ndarray:
    """(R, J) float32: mean over the outgoing edges, each edge counting once however often it was read."""
    by_edge = _edge_means(readings)
    shape = len(readings.time), len(readings.junctions)
    cell = np.arange(shape[0])[:, None] * shape[1] + readings.edges[:, 0]
    return _mean_by(cell.ravel(), by_edge.ravel(), shape[0] * shape[1]).reshape(shape).astype(np.float32)


def _last_readings(readings: Readings) -> np.ndarray:
    """(R, J) float32: the last row of the file that belongs to the junction."""
    speed = np.full((len(readings.time), len(readings.junctions)), np.nan, np.float32)
    known = np.isfinite(readings.speed)
    speed[readings.row[known], readings.edges[readings.edge[known], 0]] = readings.speed[known]
    return speed


def _weather(table: Table, readings: Readings) -> np.ndarray | None:
    """(R, 3) float32, mean over the readings of each row; a column that the file lacks is 0. None without any."""
    columns = [table.numbers(name) if name in table.columns else None for name in WEATHER]
    if all(column is None or not np.isfinite(column).any() for column in columns):
        return None
    rows = len(readings.time)
    means = [np.zeros(rows) if c is None or not np.isfinite(c).any() else _mean_by(readings.row, c, rows) for c in columns]
    return np.stack(means, axis=1).astype(np.float32)


def _junction_places(table: Table, readings: Readings) -> np.ndarray | None:
    """(J, 2) float32 lat, lon of the junctions. None where the file has no places."""
    if not all(name in table.columns for name in PLACES):
        return None
    ends = readings.edges[readings.edge].T.ravel()
    lat = np.concatenate([table.numbers("lat_a"), table.numbers("lat_b")])
    lon = np.concatenate([table.numbers("lon_a"), table.numbers("lon_b")])
    places = np.stack([_mean_by(ends, v, len(readings.junctions)) for v in (lat, lon)], axis=1)
    return places.astype(np.float32) if np.isfinite(places).any() else None
