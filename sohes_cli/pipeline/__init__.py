"""All phases and the evaluation in one command: `sohes pipeline`."""
