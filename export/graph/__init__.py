"""What an ONNX graph says about itself: where it attends, on which grid, and how its logits read the tokens."""
