"""Offline: trains attention-based classifiers and CNN baselines in PyTorch and turns them into bundles.

The only package that imports torch; the service never imports it.
"""
