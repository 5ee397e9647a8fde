"""The fixed names of a graph's input and outputs: what graph, manifest and golden file agree on."""

INPUT = "pixel_values"
LOGITS = "logits"
POOLING = "pooling"
ROLLOUT = "rollout"
CLASS_TOKENS = "class_tokens"


def attention_output(index: int) -> str:
    """Of attention layer `index`, from 0."""
    return f"attention_{index:02d}"
