"""Image classification: DeepConvNet, AlexNet, VGG, GoogLeNet, ResNet and binarized networks."""
