"""Metrics of epochs as TensorBoard reads them: records of Event messages, appended as they come.

Not torch's SummaryWriter: it writes from a thread, which a full disk ends, and then waits for it for ever.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

FILE = "events.out.tfevents.metrics"
"""TensorBoard looks for `tfevents` in a name."""


def plot(folder: Path, epochs: Iterable[Mapping[str, float]]) -> None:
    """Appends the figures of epochs, each at its number `epoch` and its end `time`. Raises OSError."""
    from tensorboard.compat.proto.event_pb2 import Event  # here, because only training wants them
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(exist_ok=True)
    with (folder / FILE).open("ab") as file:
        records = RecordWriter(file)
        if not file.tell():
            records.write(Event(file_version="brain.Event:2").SerializeToString())
        for metrics in epochs:
            curves = [name for name in metrics if name not in ("epoch", "time")]
            values = [Summary.Value(tag=name, simple_value=metrics[name]) for name in curves]
            event = Event(wall_time=metrics["time"], step=int(metrics["epoch"]), summary=Summary(value=values))
            records.write(event.SerializeToString())
