"""Latency and memory of models on this machine."""
