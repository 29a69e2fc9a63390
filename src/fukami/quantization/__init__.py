"""Quantization: float16, int8, one bit, and ONNX."""
