"""Pictures of label records: an overlay on the photograph, the forest as a tree in the terminal and as a picture."""
