"""The live view: messages folded into a picture, and the picture drawn."""
