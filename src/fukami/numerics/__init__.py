"""Fewer bits: networks of float32 as networks of int8, of one bit, and as ONNX."""
