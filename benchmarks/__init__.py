"""Speed, always as a ratio of two things measured side by side in one run. Absolute times belong to one machine."""
