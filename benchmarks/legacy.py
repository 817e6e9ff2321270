"""Flower's deprecated server and client on one gRPC stream: the lower bound of what a round can cost.

python benchmarks/legacy.py server PORT DEVICES ROUNDS TIMES
python benchmarks/legacy.py client PORT DATA
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import workload
from flwr.client import NumPyClient, start_client
from flwr.common import FitRes, NDArrays, Parameters, Scalar, ndarrays_to_parameters
from flwr.server import ServerConfig, start_server
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg


class TimedFedAvg(FedAvg):
    """FedAvg that notes the time of each round's end."""

    times = Path()

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        result = super().aggregate_fit(server_round, results, failures)
        with self.times.open("a") as file:
            file.write(f"{time.time()}\n")
        return result


class Client(NumPyClient):
    """One device: the model and data stay in memory from round to round."""

    def __init__(self, file: Path) -> None:
        self._backend = workload.open_model()
        self._names = list(self._backend.initial())
        self._data = workload.read_data(file)

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        arrays: dict[str, Any] = dict(zip(self._names, parameters, strict=True))
        trained, loss = workload.train(self._backend, arrays, self._data, 1)
        return list(trained.values()), len(self._data), {"train_loss": loss}


def serve(port: str, devices: int, rounds: int, times: Path) -> None:
    initial = ndarrays_to_parameters(list(workload.open_model().initial().values()))
    strategy = TimedFedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=devices,
        min_available_clients=devices,
        initial_parameters=initial,
    )
    strategy.times = times
    start_server(
        server_address=f"127.0.0.1:{port}", config=ServerConfig(num_rounds=rounds), strategy=strategy
    )


def main() -> None:
    role, port, *rest = sys.argv[1:]
    if role == "server":
        serve(port, int(rest[0]), int(rest[1]), Path(rest[2]))
    else:
        start_client(server_address=f"127.0.0.1:{port}", client=Client(Path(rest[0])).to_client())


if __name__ == "__main__":
    main()
