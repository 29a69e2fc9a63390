"""Image classification: DeepConvNet, VGG, GoogLeNet, ResNet and binarized networks."""
