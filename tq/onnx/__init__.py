"""Packed networks as ONNX files, and the engines that run these."""
