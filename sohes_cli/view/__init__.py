"""Pictures of label records: overlay, forest as a picture, tree in the terminal, and HTML report."""
