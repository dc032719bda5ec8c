"""The board: numbers, texts, histograms and hyperparameters in; TensorBoard's event files out.

The one room that knows TensorBoard; it needs no torch. What is written is on its way to the disk when the call returns.
One number: 1 event holds all scalars of a step, half as many bytes as one each. Choice not taken: torch's SummaryWriter, an
event for every scalar and a thread that learns of a full disk after the fact.
"""

import html
import io
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

__all__ = ["Board", "Histogram", "Layout", "escaped", "events", "open_board", "preformatted"]

Layout = Mapping[str, Mapping[str, Sequence[str]]]  # category, title of a chart, patterns of the tags in it
Value = bool | int | float | str
STATUS = {"complete": "STATUS_SUCCESS", "pruned": "STATUS_SUCCESS", "failed": "STATUS_FAILURE"}


class Histogram(NamedTuple):
    """How often what: ``counts[i]`` values lie below ``edges[i]`` and above the edge before it, ``low`` at first."""

    low: float
    edges: list[float]
    counts: list[float]
    total: float
    total_of_squares: float


class Board:
    """Writes events to a file; ``clock`` says when they were.

    With ``purge_step`` TensorBoard drops what the folder's earlier files have of that step and those after it. All methods
    raise OSError where the file cannot be written.
    """

    def __init__(self, file: io.BufferedIOBase, purge_step: int | None = None, clock: Callable[[], float] = time.time) -> None:
        self.file, self.record, self.clock = file, RecordWriter(file), clock
        self.add(Event(file_version="brain.Event:2"), purge_step or 0)
        if purge_step is not None:
            self.add(Event(session_log=SessionLog(status=SessionLog.START)), purge_step)
        self.file.flush()

    def add(self, event: Event, step: int) -> None:
        """One event."""
        event.step, event.wall_time = step, self.clock()
        self.record.write(event.SerializeToString())

    def values(self, values: Iterable[Any], step: int) -> None:
        """One event of several values, flushed."""
        self.add(Event(summary=Summary(value=values)), step)
        self.file.flush()

    def scalars(self, scalars: Mapping[str, int | float], step: int) -> None:
        """Numbers by tag; a tag's first part, up to the slash, is its group."""
        self.values([Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()], step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Text as Markdown; what others wrote goes through ``escaped`` or ``preformatted``."""
        metadata = text_metadata.create_summary_metadata(display_name="", description="")
        self.values([Summary.Value(tag=tag, metadata=metadata, tensor=string(markdown.encode(errors="replace"), 1))], step)

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Histograms by tag."""
        values = []
        for tag, (low, edges, counts, total, squares) in histograms.items():
            limits = {"min": low, "max": edges[-1], "bucket_limit": edges, "bucket": counts}
            histo = HistogramProto(num=sum(counts), sum=total, sum_squares=squares, **limits)
            values.append(Summary.Value(tag=tag, histo=histo))
        self.values(values, step)

    def layout(self, layout: Layout, step: int = 0) -> None:
        """The charts of the custom scalars tab; equal ones of several runs are one."""
        shown = layout_pb2.Layout()
        for category, charts in layout.items():
            of_category = shown.category.add(title=category).chart
            for title, tags in charts.items():
                of_category.add(title=title).multiline.tag.extend(tags)
        plugin = SummaryMetadata.PluginData(plugin_name=layout_metadata.PLUGIN_NAME)
        tag, metadata = layout_metadata.CONFIG_SUMMARY_TAG, SummaryMetadata(plugin_data=plugin)
        self.values([Summary.Value(tag=tag, metadata=metadata, tensor=string(shown.SerializeToString()))], step)

    def experiment(self, domains: Mapping[str, Sequence[Value]], metrics: Mapping[str, str], began: float) -> None:
        """Which hyperparameters the trials of a study have, with their values, and which results: tags and what they are."""
        infos = [hparam_info(name, values) for name, values in domains.items()]
        named = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=tag, description=what)
                 for tag, what in metrics.items()]  # fmt: skip
        experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=named, time_created_secs=began)
        self.hparams(hparams_metadata.EXPERIMENT_TAG, experiment=experiment)

    def session(self, name: str, values: Mapping[str, Value], state: str, began: float, ended: float) -> None:
        """A trial's hyperparameters and how it ended, under a name of its own; its results are the scalars of its folder."""
        start = plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=began)
        for key, value in values.items():
            setattr(start.hparams[key], value_field(value), value)
        end = plugin_data_pb2.SessionEndInfo(status=api_pb2.Status.Value(STATUS[state]), end_time_secs=ended)
        self.hparams(hparams_metadata.SESSION_START_INFO_TAG, session_start_info=start)
        self.hparams(hparams_metadata.SESSION_END_INFO_TAG, session_end_info=end)

    def hparams(self, tag: str, **content: Any) -> None:
        """A message for the HParams tab."""
        data = plugin_data_pb2.HParamsPluginData(version=hparams_metadata.PLUGIN_DATA_VERSION, **content)
        of_plugin = {"plugin_name": hparams_metadata.PLUGIN_NAME, "content": data.SerializeToString(deterministic=True)}
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(**of_plugin))
        self.values([Summary.Value(tag=tag, metadata=metadata, tensor=hparams_metadata.NULL_TENSOR)], 0)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def open_board(folder: Path, purge_step: int | None = None) -> Board:
    """A new event file in the folder, behind those that are there; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)  # TensorBoard reads a folder's files in the order of their names
    name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"
    return Board((folder / name).open("wb"), purge_step)


def events(write: Callable[[Board], None], at: float, purge_step: int | None = None) -> bytes:
    """The content of an event file of that time: equal for what is equal."""
    file = io.BytesIO()
    write(Board(file, purge_step, lambda: at))
    return file.getvalue()


def escaped(text: str) -> str:
    """Text that no reader of HTML takes for HTML."""
    return html.escape("".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in text), quote=False)


def preformatted(text: str) -> str:
    """Text that TensorBoard shows as it is."""
    return f"<pre>{escaped(text)}</pre>"


def string(content: bytes, *shape: int) -> TensorProto:
    """A tensor of one string."""
    dims = [TensorShapeProto.Dim(size=n) for n in shape]
    return TensorProto(dtype=DT_STRING, string_val=[content], tensor_shape=TensorShapeProto(dim=dims))


def value_field(value: Value) -> str:
    """The field of a hyperparameter's message that holds it."""
    return "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else "number_value"


def hparam_info(name: str, values: Sequence[Value]) -> Any:
    """What a hyperparameter is: numbers in an interval, or one of several values."""
    kinds = {"bool_value": "DATA_TYPE_BOOL", "string_value": "DATA_TYPE_STRING", "number_value": "DATA_TYPE_FLOAT64"}
    kind = kinds[value_field(values[0])]
    info = api_pb2.HParamInfo(name=name, type=api_pb2.DataType.Value(kind), differs=len(set(values)) > 1)
    if kind == "DATA_TYPE_FLOAT64":
        finite = [float(value) for value in values if math.isfinite(float(value))]
        info.domain_interval.min_value, info.domain_interval.max_value = min(finite, default=0.0), max(finite, default=0.0)
    else:
        info.domain_discrete.extend(sorted(set(values)))
    return info
