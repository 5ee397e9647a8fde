"""Online: answers pictures with labels and attention over HTTP, through ONNX Runtime. Never imports torch."""
