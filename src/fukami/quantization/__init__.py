"""Quantization: float16, int8, 1-bit, and ONNX export; also fast float32 convolutions for CPUs."""
