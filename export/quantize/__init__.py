"""`saccade quantize`: a bundle -> a variant of lower precision that names it, and what that costs."""
