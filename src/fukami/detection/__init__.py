"""Object detection: R-CNN and Faster R-CNN."""
