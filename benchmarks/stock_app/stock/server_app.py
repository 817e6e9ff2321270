"""The server's side: FedAvg without evaluation; the time of each round's end goes to a file."""

import time
from collections.abc import Iterable
from pathlib import Path

import workload
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class TimedFedAvg(FedAvg):
    times = Path()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        result = super().aggregate_train(server_round, replies)
        with self.times.open("a") as file:
            file.write(f"{time.time()}\n")
        return result


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    devices = int(config["devices"])
    strategy = TimedFedAvg(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)
    strategy.times = Path(str(config["times"]))
    initial = workload.open_model().initial()
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(array) for name, array in initial.items()}),
        num_rounds=int(config["rounds"]),
    )
