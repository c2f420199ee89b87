"""Deployment: export to ONNX, int8, and a session that detects without torch."""
