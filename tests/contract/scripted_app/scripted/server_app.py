"""A ServerApp that does what a test tells it, one JSON line after another over a Unix socket.

{"op": "nodes"}                                     → {"nodes": [id, …]}
{"op": "push", "node": id, "type": "train", "floats": n}   → {"id": message ID}
{"op": "pull", "ids": [...]}                        → {"replies": [{"to", "error", "sum", "src"}]}
{"op": "strategy", …}                               → see `run_strategy`
{"op": "task", …}                                   → see `run_task`
"""

import json
import socket

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from scripted.strategies import members, run_strategy
from scripted.tasks import run_task
from trellis.tensors import pack_arrays, unpack_arrays

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(context.run_config["socket"]))
        stream = connection.makefile("rw")
        for line in stream:
            stream.write(json.dumps(answer(grid, json.loads(line))) + "\n")
            stream.flush()


def answer(grid: Grid, command: dict) -> dict:
    match command["op"]:
        case "nodes":
            return {"nodes": list(grid.get_node_ids())}
        case "push":
            arrays = {"w": np.ones(command["floats"], dtype=np.float32)}
            content = RecordDict({"arrays": pack_arrays(arrays)})
            message = Message(content, dst_node_id=command["node"], message_type=command["type"])
            (message_id,) = grid.push_messages([message])
            return {"id": message_id}
        case "pull":
            return {"replies": [described(m) for m in grid.pull_messages(command["ids"])]}
        case "members":
            return members(grid, command)
        case "strategy":
            return run_strategy(grid, command)
        case "task":
            return run_task(grid, command)
        case other:
            raise ValueError(f"unknown op {other!r}")


def described(message: Message) -> dict:
    found = {"to": message.metadata.reply_to_message_id, "src": message.metadata.src_node_id}
    if message.has_error():
        return found | {"error": [message.error.code, message.error.reason], "sum": None}
    arrays = unpack_arrays(message.content["arrays"])
    return found | {"error": None, "sum": float(arrays["w"].astype(np.float64).sum())}
