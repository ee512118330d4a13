"""The engine's life and places as Prometheus metrics, read when they are asked for."""

from collections.abc import Callable, Iterable, Mapping
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine_client import Cause, EngineClient, EngineStatus


class EngineLife(Collector):
    """`places`: by what they are for, how many are held and how many are waited for. `weights`: their format."""

    def __init__(self, engine: EngineClient, places: Callable[[], Mapping[str, tuple[int, int]]], weights: str) -> None:
        self._engine = engine
        self._places = places
        self._weights = weights

    def collect(self) -> Iterable[Metric]:
        """Every state and cause has a sample, so that an alert on it has one to look at."""
        state = GaugeMetricFamily("twogear_engine_state", "1 for the state that the engine is in", labels=["state"])
        for name in get_args(EngineStatus.__annotations__["state"]):
            state.add_metric([name], float(self._engine.status.state == name))
        restarts = CounterMetricFamily(
            "twogear_engine_restarts", "Engines that ended and were started again", labels=["cause"]
        )
        for cause in get_args(Cause):
            restarts.add_metric([cause], self._engine.restarts.get(cause, 0))
        places = GaugeMetricFamily(
            "twogear_engine_places", "Places in the engine, held and waited for", labels=["lane", "state"]
        )
        for lane, (held, waiting) in self._places().items():
            places.add_metric([lane, "held"], held)
            places.add_metric([lane, "waiting"], waiting)
        weights = GaugeMetricFamily(
            "twogear_weights_info", "1 for the format that the weights are held in", labels=["format"]
        )
        weights.add_metric([self._weights], 1.0)
        yield from (state, restarts, places, weights)
