"""The device's side: as Flower's own examples have it, the model and data are made anew for every message."""

from pathlib import Path

import workload
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    backend = workload.open_model()
    data = workload.read_data(Path(str(context.node_config["data"])))
    arrays = {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}
    trained, loss = workload.train(backend, arrays, data, 1)
    record = ArrayRecord({name: Array(array) for name, array in trained.items()})
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data)})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)
