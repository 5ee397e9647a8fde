"""Online: answers pictures with labels and attention over HTTP, through ONNX Runtime. Never imports torch."""

import os

# numpy's arithmetic here is small, and its library would start a thread a CPU of the machine, whatever the plan says.
# It reads this when it is imported, which is after this package is.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# ONNX Runtime would report to its maker what it runs, and keep a database of it in the home folder. This too is read at
# the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
