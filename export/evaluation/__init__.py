"""What a bundle is worth: accuracy, calibration, robustness, cost, and how far a variant is from its parent."""
