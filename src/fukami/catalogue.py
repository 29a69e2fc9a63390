"""All built-in recipes; ``fukami list`` prints it. Nothing is imported here."""

from typing import NamedTuple


class Entry(NamedTuple):
    """Location of a recipe, its paper, and two results: the paper's and the one measured with fukami.

    ``location`` is ``package.module:Class``. ``benchmarks/results.csv`` contains ``result``; it is empty where none was
    measured.
    """

    location: str
    task: str
    year: int
    paper: str
    paper_result: str
    result: str = ""


BNN = "Courbariaux et al., Binarized Neural Networks"
FCN = "Long et al., Fully Convolutional Networks for Semantic Segmentation"
RCNN = "Girshick et al., Rich feature hierarchies for accurate object detection"
RESNET = "He et al., Deep Residual Learning for Image Recognition"
SEGNET = "Badrinarayanan et al., SegNet: A Deep Convolutional Encoder-Decoder Architecture"
VGG = "Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition"

RECIPES = {
    "alexnet": Entry(
        "classification.alexnet:AlexNet",
        "classification",
        2012,
        "Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks",
        "59.3 % ImageNet top-1",
    ),
    "alphago-policy": Entry(
        "self_play.alphago_policy:AlphaGoPolicy",
        "self-play",
        2016,
        "Silver et al., Mastering the game of Go with deep neural networks and tree search",
        "57.0 % of the moves on KGS, 30 million positions, 8 symmetries",
        "41.4 % of the moves in held-out games, trained on 1.06 million positions in 41 minutes on two cores, one seed",
    ),
    "alphago-zero": Entry(
        "self_play.alphago_zero:AlphaGoZero",
        "self-play",
        2017,
        "Silver et al., Mastering the game of Go without human knowledge",
        "5,185 Elo on 19×19, 40 blocks, 40 days",
        "96.8 % of the moves optimal in Connect Four, 64 simulations, 113 minutes on two cores, one seed",
    ),
    "binary-convnet": Entry(
        "classification.binary:BinaryConvNet",
        "classification",
        2016,
        BNN,
        "88.6 % CIFAR-10",
        "80.88 % CIFAR-10 as JPEG, half as wide, 24 epochs, one seed",
    ),
    "binary-deep-convnet": Entry(
        "classification.binary:BinaryDeepConvNet",
        "classification",
        2016,
        BNN,
        "99.04 % MNIST, fully connected layers",
        "99.28 % MNIST, DeepConvNet, one seed",
    ),
    "binary-resnet18": Entry(
        "classification.binary:BinaryResNet18",
        "classification",
        2018,
        "Liu et al., Bi-Real Net",
        "56.4 % ImageNet top-1",
    ),
    "dcgan": Entry(
        "generation.dcgan:DCGAN",
        "generation",
        2016,
        "Radford et al., Unsupervised Representation Learning with DCGAN",
        "82.8 % CIFAR-10, its features with an SVM",
        "72.70 % CIFAR-10, features learned there, one seed",
    ),
    "deep-convnet": Entry(
        "classification.deep_convnet:DeepConvNet",
        "classification",
        2016,
        "study note on Saitoh, Deep Learning from Scratch",
        "99.35 % MNIST",
        "99.58 % MNIST, mean of 5 seeds",
    ),
    "dqn": Entry(
        "reinforcement.dqn:DQN",
        "reinforcement",
        2015,
        "Mnih et al., Human-level control through deep reinforcement learning",
        "18.9 Pong, mean return",
        "17.83 Pong, Double DQN with Adam, 4.8 million frames, one seed",
    ),
    "faster-rcnn-resnet50-fpn": Entry(
        "detection.faster_rcnn:FasterRCNNResNet50FPN",
        "detection",
        2017,
        "Lin et al., Feature Pyramid Networks for Object Detection",
        "37.0 % AP COCO (torchvision)",
    ),
    "faster-rcnn-vgg16": Entry(
        "detection.faster_rcnn:FasterRCNNVGG16",
        "detection",
        2015,
        "Ren et al., Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks",
        "69.9 % mAP VOC 2007",
        "89.39 % mAP on BCCD, 320 pixels, one seed",
    ),
    "fcn-resnet50": Entry(
        "segmentation.fcn:FCNResNet50", "segmentation", 2015, FCN, "60.5 % mIoU COCO, VOC classes (torchvision)"
    ),
    "fcn-resnet101": Entry(
        "segmentation.fcn:FCNResNet101", "segmentation", 2015, FCN, "63.7 % mIoU COCO, VOC classes (torchvision)"
    ),
    "fcn16s-vgg16": Entry("segmentation.fcn:FCN16sVGG16", "segmentation", 2015, FCN, "62.4 % mIoU VOC 2011"),
    "fcn32s-vgg16": Entry("segmentation.fcn:FCN32sVGG16", "segmentation", 2015, FCN, "59.4 % mIoU VOC 2011"),
    "fcn8s-vgg16": Entry(
        "segmentation.fcn:FCN8sVGG16",
        "segmentation",
        2015,
        FCN,
        "62.7 % mIoU VOC 2011",
        "56.95 % mIoU on CamVid at half the size, one seed",
    ),
    "googlenet": Entry(
        "classification.googlenet:GoogLeNet",
        "classification",
        2015,
        "Szegedy et al., Going Deeper with Convolutions",
        "89.93 % ImageNet top-5, one crop",
        "65.67 % CIFAR-10 as JPEG, 5 epochs, one seed",
    ),
    "neural-style": Entry(
        "style.neural_style:NeuralStyle",
        "style",
        2016,
        "Gatys et al., Image Style Transfer Using Convolutional Neural Networks",
        "up to an hour on a K40, 512×512",
        "34.2 % of a plain loop's time to the same loss on a CPU, both in float32",
    ),
    "rcnn": Entry(
        "detection.rcnn:RCNN",
        "detection",
        2014,
        RCNN,
        "58.5 % mAP VOC 2007",
        "73.60 % mAP on BCCD with VGG-16, 320 pixels, one seed",
    ),
    "rcnn-boxes": Entry("detection.rcnn:RCNNBoxes", "detection", 2014, RCNN, "58.5 % mAP VOC 2007"),
    "rcnn-finetune": Entry(
        "detection.rcnn:RCNNFinetune", "detection", 2014, RCNN, "not reported; with the SVMs 54.2 % mAP VOC 2007"
    ),
    "rcnn-svm": Entry("detection.rcnn:RCNNSVM", "detection", 2014, RCNN, "54.2 % mAP VOC 2007"),
    "resnet18": Entry(
        "classification.resnet:ResNet18", "classification", 2016, RESNET, "72.12 % ImageNet top-1, 10 crops"
    ),
    "resnet20": Entry(
        "classification.resnet:ResNet20",
        "classification",
        2016,
        RESNET,
        "91.25 % CIFAR-10",
        "88.32 % CIFAR-10 as JPEG, 64 epochs, one seed",
    ),
    "resnet32": Entry("classification.resnet:ResNet32", "classification", 2016, RESNET, "92.49 % CIFAR-10"),
    "resnet34": Entry(
        "classification.resnet:ResNet34", "classification", 2016, RESNET, "75.48 % ImageNet top-1, 10 crops"
    ),
    "resnet44": Entry("classification.resnet:ResNet44", "classification", 2016, RESNET, "92.83 % CIFAR-10"),
    "resnet50": Entry(
        "classification.resnet:ResNet50", "classification", 2016, RESNET, "77.15 % ImageNet top-1, 10 crops"
    ),
    "resnet56": Entry("classification.resnet:ResNet56", "classification", 2016, RESNET, "93.03 % CIFAR-10"),
    "resnet101": Entry(
        "classification.resnet:ResNet101", "classification", 2016, RESNET, "78.25 % ImageNet top-1, 10 crops"
    ),
    "resnet110": Entry("classification.resnet:ResNet110", "classification", 2016, RESNET, "93.57 % CIFAR-10"),
    "resnet152": Entry(
        "classification.resnet:ResNet152", "classification", 2016, RESNET, "78.57 % ImageNet top-1, 10 crops"
    ),
    "segnet-basic": Entry(
        "segmentation.segnet:SegNetBasic",
        "segmentation",
        2017,
        SEGNET,
        "47.7 % mIoU CamVid",
        "43.75 % mIoU on CamVid at half the size, one seed",
    ),
    "segnet-vgg16": Entry(
        "segmentation.segnet:SegNetVGG16",
        "segmentation",
        2017,
        SEGNET,
        "60.1 % mIoU CamVid, 3,433 training images",
        "52.40 % mIoU on CamVid at half the size, one seed",
    ),
    "show-and-tell": Entry(
        "captioning.show_and_tell:ShowAndTell",
        "captioning",
        2015,
        "Vinyals et al., Show and Tell: A Neural Image Caption Generator",
        "27.7 BLEU-4 COCO",
        "12.76 BLEU-4 on 1,000 images of Flickr8k, mean of 3 seeds",
    ),
    "vgg11": Entry("classification.vgg:VGG11", "classification", 2015, VGG, "70.4 % ImageNet top-1, one scale"),
    "vgg13": Entry("classification.vgg:VGG13", "classification", 2015, VGG, "71.3 % ImageNet top-1, one scale"),
    "vgg16": Entry(
        "classification.vgg:VGG16",
        "classification",
        2015,
        VGG,
        "74.4 % ImageNet top-1, one scale",
        "70.8 % fine-tuned on 3,000 images of CIFAR-10, mean of 4 seeds",
    ),
    "vgg19": Entry("classification.vgg:VGG19", "classification", 2015, VGG, "74.5 % ImageNet top-1, one scale"),
}
