"""Training examples: photographs and labels -> cropped images, their masks as packed bits and the forest among them."""
