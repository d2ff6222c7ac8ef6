"""What every training phase needs: checkpoints that appear whole, and logs that a resumed run continues."""
