"""Post-training quantization: ranges, calibration, the one-call `quantize`."""
